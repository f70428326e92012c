"""Which form of an operation runs, without Triton's interpreter and without a GPU: devices, probes and choices."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kernel_cases import SMALL, channels_last
from synthetic import TINY
from torch import nn

from svd_core import kernels
from svd_core.kernels import Operation, choice
from svd_core.kernels.choice import Choices
from svd_core.kernels.doubled import copied_twice
from svd_core.kernels.layer_norm import rows_of
from svd_core.model.backend import TORCH
from svd_core.model.fused import fused, own_weights
from svd_core.model.unet import VideoUNet

ROOT = Path(__file__).resolve().parents[2]


def doubling(**forms) -> Operation:
    """An operation that doubles its argument; `forms` are its kernels."""
    return Operation(
        "double",
        lambda x: x * 2,
        lambda: forms,
        lambda x: "" if x.ndim == 1 else "not a row",
        lambda x: x.shape[-1] // 100,
        lambda x: (x[:10],),
    )


def timed(**seconds):
    """Choices on a device that can, where each form takes what is told here in the order of its first run."""
    order = list(seconds.values())
    calls = iter(range(10**6))
    return Choices(lambda device: "", lambda run: (run(), order[next(calls) % len(order)])[1])


def process_seconds(run):
    run()
    return 1.0


def right(x):
    return x + x


def wrong(x):
    return x + x + 1e-3


def wrong_far_out(x):
    out = x + x
    out[50:] = 0
    return out


def failing(x):
    raise RuntimeError("PTX assembly aborted\nmore of it")


@pytest.fixture
def use(monkeypatch):
    def choose(choices):
        monkeypatch.setattr(choice, "choices", lambda: choices)
        return choices

    return choose


X = torch.linspace(1, 2, 100)


@pytest.mark.parametrize(
    ("forms", "seconds", "chosen"),
    [
        ({"right": right}, {"reference": 2.0, "right": 1.0}, "right"),
        ({"right": right}, {"reference": 1.0, "right": 2.0}, "reference"),
        ({"wrong": wrong}, {"reference": 2.0, "wrong": 1.0}, "reference"),
        ({"wrong_far_out": wrong_far_out}, {"reference": 2.0, "wrong": 1.0}, "reference"),
        ({"failing": failing}, {"reference": 2.0, "failing": 1.0}, "reference"),
        ({"wrong": wrong, "right": right}, {"reference": 2.0, "right": 1.0}, "right"),
        ({"failing": failing, "right": right}, {"reference": 2.0, "right": 1.0}, "right"),
        ({"one": right, "two": right}, {"reference": 3.0, "one": 2.0, "two": 1.0}, "two"),
    ],
)
def test_a_kernel_is_chosen_where_it_is_right_and_faster(use, forms, seconds, chosen):
    choices = use(timed(**seconds))
    with torch.no_grad():
        result = doubling(**forms)(X)
    assert [made.name for made in choices.made.values()] == [chosen]
    torch.testing.assert_close(result, X * 2, rtol=0, atol=0)


def test_a_choice_is_made_once_for_each_shape_class_and_dtype(use):
    choices = use(timed(reference=2.0, right=1.0))
    operation = doubling(right=right)
    with torch.no_grad():
        for x in (X, X[:99], X[:98], X.half(), X.repeat(3)):
            operation(x)
    assert [(key.shape_class, key.dtype) for key in choices.made] == [
        (1, torch.float32),
        (0, torch.float32),
        (1, torch.float16),
        (3, torch.float32),
    ]


def test_the_report_says_what_was_chosen_and_why(use):
    use(timed(reference=2.0, right=1.0))
    with torch.no_grad():
        doubling(right=right)(X)
    assert kernels.report().splitlines()[1:] == ["double 1 float32 on cpu: right (1000.000 ms, reference 2000.000 ms)"]
    use(timed(reference=2.0, failing=1.0))
    with torch.no_grad():
        doubling(failing=failing)(X)
    assert "reference (failing: RuntimeError: PTX assembly aborted)" in kernels.report()


def test_the_reference_runs_while_training_compiling_and_under_autocast(use):
    choices = use(timed(reference=2.0, right=1.0))
    operation = doubling(right=right)
    operation(X.clone().requires_grad_())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        operation(X)
    with torch.no_grad():
        torch.compile(operation, backend="eager", fullgraph=True)(X)
        operation(X[None])
        operation(X[:0])
        operation(X.double())
    assert not choices.made


def test_memory_that_runs_out_is_no_choice(use):
    def hungry(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    choices = use(timed(reference=2.0, hungry=1.0))
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError):
        doubling(hungry=hungry)(X)
    assert not choices.made


@pytest.mark.parametrize(
    ("capability", "hip", "triton", "reason"),
    [
        ((7, 5), None, True, "compute capability 7.5 is below 8.0"),
        ((9, 4), "6.4", True, "the kernels are for NVIDIA devices"),
        ((8, 0), None, False, "triton is not installed"),
        ((8, 0), None, True, ""),
        ((12, 0), None, True, ""),
    ],
)
def test_kernels_are_for_nvidia_devices_of_capability_8_with_triton(monkeypatch, capability, hip, triton, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: triton or None)
    assert choice.incapable(torch.device("cuda", 0)) == reason


def test_the_cpu_runs_the_reference():
    assert choice.incapable(torch.device("cpu")) == "cpu is no CUDA device"
    with torch.no_grad():
        assert not kernels.geglu.wanted(X)


def test_importing_the_kernels_imports_no_triton():
    program = "import sys, svd_core.kernels, svd_core.model.unet; print('triton' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_sample_is_what_kernels_take_and_an_operation_refuses_what_they_cannot(case):
    args = case.arguments(torch.float32)
    assert not case.operation.refusal(*args)
    sample = case.operation.sample(*args)
    assert not case.operation.refusal(*sample)
    assert case.operation.reference(*sample) is not None


@pytest.mark.parametrize(
    ("operation", "args", "reason"),
    [
        (kernels.geglu, (torch.ones(4, 6).T, torch.ones(8, 4), None), "row after row"),
        (
            kernels.group_norm,
            (torch.ones(2, 32, 3, 3), torch.ones(32), torch.ones(32), 32, 1e-5, None),
            "channels last",
        ),
        (kernels.group_norm, (channels_last(torch.ones(2, 32, 3, 3)), None, None, 32, 1e-5, None), "no weight"),
        (kernels.add_layer_norm, (torch.ones(2, 9000), X, X, 1e-5, None, None), "9000 channels"),
        (kernels.frame_attention, (*(torch.ones(1, 33, 2, 64),) * 3, 1, None), "33 frames"),
        (kernels.frame_attention, (*(torch.ones(1, 3, 2, 80),) * 3, 1, None), "head width 80"),
        (kernels.frame_conv, (torch.ones(1, 8, 3, 4), torch.ones(8, 8, 3, 1, 1), None), "channels last"),
        (kernels.frame_conv, (channels_last(torch.ones(1, 8, 3, 4)), torch.ones(8, 8, 1, 1, 1), None), "(3,1,1)"),
    ],
)
def test_arguments_that_no_kernel_takes_are_refused_in_words(operation, args, reason):
    assert reason in operation.refusal(*args)


@pytest.mark.parametrize(
    ("shape", "embedding", "expected"),
    [
        ((2, 5, 7, 4), (5, 1, 4), (7, 5)),
        ((2, 5, 7, 4), (2, 1, 1, 4), (35, 2)),
        ((2, 5, 7, 4), (2, 5, 1, 4), (7, 10)),
        ((6, 7, 4), (4,), (42, 1)),
        ((2, 5, 7, 4), (2, 1, 7, 4), None),
        ((2, 5, 7, 4), (5, 1, 1), None),
    ],
)
def test_rows_find_their_embedding(shape, embedding, expected):
    tokens, values = torch.zeros(shape), torch.randn(embedding)
    found = rows_of(tokens, values)
    assert found == expected
    if found is not None:
        repeat, count = found
        rows = torch.arange(tokens.numel() // shape[-1])
        added = values.reshape(count, -1)[(rows // repeat) % count].view(shape)
        torch.testing.assert_close(added, tokens + values)


class Wrapped(nn.Linear):
    pass


def test_only_a_plain_layer_gives_its_weights_to_a_kernel(use):
    use(timed(reference=2.0, right=1.0))
    operation = Operation("none", lambda x, weight, bias: "kernel", dict, lambda *_: "no", lambda *_: 0, lambda *a: a)
    plain, hooked, replaced = (nn.Linear(4, 4) for _ in range(3))
    hooked.register_forward_hook(lambda *_: None)
    replaced.forward = lambda x: x
    with torch.no_grad():
        ran = [fused(operation, own_weights, each, X, otherwise=lambda: "layer") for each in (plain, hooked, replaced)]
        ran.append(fused(operation, own_weights, Wrapped(4, 4), X, otherwise=lambda: "layer"))
    assert ran == ["kernel", "layer", "layer", "layer"]


def test_a_network_asks_for_every_operation_and_gets_the_same_result(use):
    """Forms that are neither a kernel nor the layer: what reaches them is what the layers would have computed with."""
    torch.manual_seed(0)
    config = replace(TINY.unet, head_channels=16)
    network = VideoUNet(config, backend=TORCH).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, context = torch.randn(6, 8, 8, 16), torch.randn(6, 1, TINY.unet.context_dim)
    call = (x, torch.randn(6), context, torch.randn(6, TINY.unet.vector_dim), 3)
    with torch.no_grad():
        expected = network(*call)
        asked = set()

        class Recording(Choices):
            def form(self, operation, args):
                assert not operation.refusal(*args), (operation.name, operation.refusal(*args))
                asked.add(operation.name)
                return operation.reference

        use(Recording(lambda device: ""))
        actual = network(*call)
    convolved = {"group_norm", "group_norm_silu", "blend", "frame_conv"}
    assert asked == {"geglu", "add_layer_norm", "frame_attention", "linear_add", *convolved}
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kinds", [nn.GroupNorm, nn.Conv2d, (nn.GroupNorm, nn.Conv2d), nn.LayerNorm])
def test_layers_that_must_be_called_are_and_nothing_is_added_twice_or_lost(use, kinds):
    """A convolution that gave up its bias may be followed by a norm that takes none in, and the other way round."""
    network = VideoUNet(replace(TINY.unet, head_channels=16), backend=TORCH).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    layers = [layer for layer in network.modules() if isinstance(layer, kinds)]
    for layer in layers[::2]:
        layer.register_forward_hook(lambda *_: None)
    call = (torch.randn(6, 8, 8, 16), torch.randn(6), torch.randn(6, 1, TINY.unet.context_dim))
    call += (torch.randn(6, TINY.unet.vector_dim), 3)
    with torch.no_grad():
        expected = network(*call)
        use(Choices(lambda device: "", process_seconds))
        torch.testing.assert_close(network(*call), expected, rtol=1e-5, atol=1e-5)


def test_doubling_by_copies_is_nearest_neighbour_upsampling():
    images = channels_last(torch.randn(2, 8, 3, 5))
    copied = copied_twice(images)
    assert torch.equal(copied, nn.functional.interpolate(images, scale_factor=2, mode="nearest"))
    assert copied.is_contiguous(memory_format=torch.channels_last)


def test_a_network_can_still_be_copied():
    network = VideoUNet(TINY.unet, backend=TORCH)
    block = copy.deepcopy(network.input_blocks[1])
    assert block[1].time_stack[0].attn1.frames == kernels.frame_attention
