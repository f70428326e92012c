"""16-bit products in float32: closer to the true numbers, only where they may be, part by part, through any layer."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from svd_core.kernels.doubled import doubled_smooth
from svd_core.kernels.frame_conv import reference as frame_conv
from svd_core.kernels.geglu import reference as geglu_reference
from svd_core.model import backend, fused, unet
from svd_core.model.backend import Backend, scaled_dot_product
from svd_core.model.clip_vision import Attention as ClipAttention
from svd_core.model.cpu import conv as cpu_conv
from svd_core.model.cpu import geglu as cpu_geglu
from svd_core.model.cpu import onednn, probe, wide
from svd_core.model.cpu.route import by_chosen_route
from svd_core.model.storage import Fp8Linear
from svd_core.model.transformer import GEGLU

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
LINEAR, CONV, ATTENTION = nn.functional.linear, torch.conv2d, nn.functional.scaled_dot_product_attention


@pytest.fixture
def widened(monkeypatch):
    """The probe says yes; tells what is computed in float32."""
    calls = []

    def count(module, name):
        route = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **how: calls.append(name) or route(*args, **how))

    monkeypatch.setattr(wide, "chosen", lambda route, dtype: True)
    monkeypatch.setattr(cpu_conv, "chosen", lambda dtype: False)
    for module, name in (
        (wide, "linear"),
        (wide, "convolution"),
        (cpu_conv, "frame_convolution"),
        (fused, "doubled_smooth"),
        (wide, "geglu"),
        (backend, "attention"),
    ):
        count(module, name)
    return calls


def drawn(*shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def images(*shape, dtype):
    return drawn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def exactly(operation, x, layer, **how):
    """By double precision, rounded to 16 bits once: nothing is closer."""
    bias = None if layer.bias is None else layer.bias.double()
    return operation(x.double(), layer.weight.double(), bias, **how).to(x.dtype)


def is_rounded_once(ours, exact):
    """Equal but where a sum in float32 lies on the other side of a border between two numbers of 16 bits."""
    assert ours.dtype == exact.dtype and ours.shape == exact.shape
    assert (ours != exact).float().mean() < 0.01
    torch.testing.assert_close(ours, exact, rtol=2 * torch.finfo(exact.dtype).eps, atol=1e-6)


@HALF
@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (5, 48), (2, 3, 7, 48), (300, 48)])
@pytest.mark.parametrize("most", [probe.BLOCK_VALUES, 5000])
def test_a_linear_layer_is_rounded_once(widened, monkeypatch, dtype, bias, shape, most):
    monkeypatch.setattr(wide, "BLOCK_VALUES", most)
    layer = Backend(dtype=dtype).linear(48, 130, bias=bias)
    x = drawn(*shape, dtype=dtype)
    is_rounded_once(layer(x), exactly(LINEAR, x, layer))
    assert widened == ["linear"]


@HALF
@torch.inference_mode()
@pytest.mark.parametrize(
    ("how", "size"),
    [
        *product(
            ({}, {"stride": 2}, {"stride": 3}, {"kernel": 1}, {"bias": False}),
            ((5, 7), (1, 1), (16, 12)),
        ),
        *product(({"padding": 0},), ((5, 7), (16, 12))),  # where the kernel fits
    ],
)
@pytest.mark.parametrize("most", [probe.BLOCK_VALUES, 5000])
def test_a_convolution_is_rounded_once(widened, monkeypatch, dtype, how, size, most):
    monkeypatch.setattr(wide, "BLOCK_VALUES", most)
    layer = Backend(dtype=dtype).conv(20, 50, **how)
    x = images(3, 20, *size, dtype=dtype)
    ours = layer(x)
    is_rounded_once(ours, exactly(CONV, x, layer, stride=layer.stride, padding=layer.padding))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert widened == ["convolution"]


@HALF
@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 20, 5, 7), (2, 20, 3, 40), (2, 20, 1, 1)])
@pytest.mark.parametrize("most", [probe.BLOCK_VALUES, 3000])
def test_a_convolution_across_frames_is_rounded_once(widened, monkeypatch, dtype, shape, most):
    monkeypatch.setattr(wide, "BLOCK_VALUES", most)
    layer = Backend(dtype=dtype).frame_conv(20, 50)
    x = images(*shape, dtype=dtype)
    ours = layer(x)
    is_rounded_once(ours, exactly(frame_conv, x, layer))
    assert ours.movedim(1, -1).is_contiguous()
    assert widened == ["frame_convolution"]


@HALF
@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 16), (2, 5, 16), (2, 3, 4, 16)])
def test_geglu_is_rounded_once(widened, dtype, shape):
    geglu = GEGLU(16, 24, backend=Backend(dtype=dtype)).requires_grad_(False)
    x = drawn(*shape, dtype=dtype)
    is_rounded_once(geglu(x), exactly(geglu_reference, x, geglu.proj))
    assert widened == ["geglu"]


@HALF
@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 2, 16, 8), (5, 3, 7, 8), (2, 1, 1, 8)])
@pytest.mark.parametrize("most", [probe.BLOCK_VALUES, 400])
def test_attention_is_rounded_once(widened, monkeypatch, dtype, shape, most):
    monkeypatch.setattr(wide, "BLOCK_VALUES", most)
    monkeypatch.setattr(wide, "FEW_TOKENS", 1)
    q, k, v = (drawn(*shape, dtype=dtype) * scale for scale in (1, 0.5, 2))
    ours = scaled_dot_product(q, k, v)
    is_rounded_once(ours, ATTENTION(q.double(), k.double(), v.double()).to(dtype))
    assert ours.transpose(1, 2).is_contiguous()
    assert widened == ["attention"]


@torch.inference_mode()
def test_attention_of_few_tokens_is_torchs_own(widened):
    for tokens, others in ((14, 14), (200, 77), (200, 127)):
        q = drawn(3, 2, tokens, 8, dtype=torch.bfloat16)
        k, v = (drawn(3, 2, others, 8, dtype=torch.bfloat16) for _ in range(2))
        assert torch.equal(scaled_dot_product(q, k, v), ATTENTION(q, k, v))
    assert not widened
    q = drawn(3, 2, 128, 8, dtype=torch.bfloat16)
    scaled_dot_product(q, q, q)
    assert widened == ["attention"]


@torch.inference_mode()
def test_attention_that_torch_alone_can_do_is_torchs_own(widened):
    q, k = drawn(1, 2, 200, 8, dtype=torch.bfloat16), drawn(2, 2, 200, 8, dtype=torch.bfloat16)
    for v in (k, drawn(2, 2, 200, 4, dtype=torch.bfloat16)):
        assert torch.equal(scaled_dot_product(q, k, v), ATTENTION(q, k, v))
    assert not widened


@HALF
@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("most", [probe.BLOCK_VALUES, 3000])
def test_an_upsampler_by_corner_is_rounded_once(widened, monkeypatch, dtype, bias, most):
    monkeypatch.setattr(wide, "BLOCK_VALUES", most)
    monkeypatch.setattr(cpu_conv, "DOUBLED_PIXELS", dict.fromkeys(cpu_conv.DOUBLED_PIXELS, 4))
    upsample, x = unet.Upsample(16, backend=Backend(dtype=dtype)), images(3, 16, 3, 5, dtype=dtype)
    if not bias:
        upsample.conv.bias = None
    ours = upsample(x, (6, 10))
    is_rounded_once(ours, exactly(doubled_smooth, x, upsample.conv))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert widened == ["doubled_smooth"]


@HALF
@torch.inference_mode()
def test_a_convolution_of_few_pixels_is_a_widened_product(widened, monkeypatch, dtype):
    monkeypatch.setattr(cpu_conv, "chosen", lambda dtype: True)
    monkeypatch.setattr(cpu_conv, "MANY_WEIGHTS", 1)
    layer, x = Backend(dtype=dtype).conv(16, 8), images(2, 16, 3, 5, dtype=dtype)
    is_rounded_once(layer(x), exactly(CONV, x, layer, padding=1))
    assert widened == ["linear"]


@torch.inference_mode()
def test_bare_and_eight_bit_linear_layers_are_widened_too(widened):
    tokens = drawn(2, 5, 32, dtype=torch.bfloat16)
    ClipAttention(32, 4, backend=Backend(dtype=torch.bfloat16))(tokens)
    assert widened == ["linear", "linear"]
    Fp8Linear(nn.Linear(32, 16, dtype=torch.bfloat16))(tokens)
    assert widened == ["linear"] * 3


@torch.inference_mode()
def test_widened_products_take_the_library_of_float32_ones(widened, monkeypatch):
    products = []
    monkeypatch.setattr(onednn, "linear_by_onednn", lambda: True)
    monkeypatch.setattr(onednn, "onednn_linear", lambda *args: products.append(args[0].dtype) or LINEAR(*args))
    GEGLU(16, 24, backend=Backend(dtype=torch.bfloat16))(drawn(3, 16, dtype=torch.bfloat16))
    assert products == [torch.float32] * 2


@torch.inference_mode()
def test_parts_cover_everything_and_stay_below_the_limit(monkeypatch):
    monkeypatch.setattr(wide, "BLOCK_VALUES", 100)
    for count, values in ((1, 1), (1, 1000), (7, 30), (1000, 1), (99, 7), (5, 100)):
        parts = wide._parts(count, values)
        assert [number for part in parts for number in range(count)[part]] == list(range(count))
        assert all(len(range(count)[part]) * values <= max(100, values) for part in parts)


class LargestInFloat32(TorchDispatchMode):
    """How many values the largest float32 tensor has that anything makes."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float32 and made.device.type == "cpu":
            self.most = max(self.most, made.numel())
        return made


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda half: half.linear(48, 300), (500, 48)),
        (lambda half: half.linear(300, 48), (500, 300)),
        (lambda half: half.conv(16, 40), (9, 16, 10, 11)),
        (lambda half: half.conv(40, 16), (9, 40, 6, 7)),
        (lambda half: half.frame_conv(16, 200), (2, 16, 5, 60)),
        (lambda half: half.frame_conv(200, 4), (2, 200, 5, 60)),
        (lambda half: GEGLU(16, 90, backend=half), (300, 16)),
        (lambda half: lambda x: unet.Upsample(8, backend=half)(x, (20, 20)), (4, 8, 10, 10)),
        (lambda half: lambda x: scaled_dot_product(x, x, x), (9, 2, 150, 8)),
        (lambda half: lambda x: scaled_dot_product(x[:, :, :129], x, x), (9, 2, 150, 8)),
    ],
)
@torch.inference_mode()
def test_nothing_in_float32_is_larger_than_a_block(widened, monkeypatch, make, shape):
    monkeypatch.setattr(wide, "BLOCK_VALUES", 4000)
    monkeypatch.setattr(cpu_conv, "DOUBLED_PIXELS", dict.fromkeys(cpu_conv.DOUBLED_PIXELS, 4))
    x = drawn(*shape, dtype=torch.bfloat16)
    layer = make(Backend(dtype=torch.bfloat16))
    with LargestInFloat32() as largest:
        layer(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x)
    assert widened and 1000 < largest.most <= 4000


@torch.inference_mode()
def test_other_dtypes_and_tensor_classes_keep_torchs_own(widened):
    for dtype in (torch.float32, torch.float64):
        Backend(dtype=dtype).linear(16, 8)(drawn(3, 16, dtype=dtype))
        Backend(dtype=dtype).conv(16, 8)(images(2, 16, 4, 4, dtype=dtype))
    other = type("Quantised", (torch.Tensor,), {})
    half = Backend(dtype=torch.bfloat16)
    for layer, x in (
        (half.linear(16, 8), drawn(3, 16, dtype=torch.bfloat16)),
        (half.conv(16, 8), images(2, 16, 4, 4, dtype=torch.bfloat16)),
        (half.frame_conv(16, 8), images(2, 16, 4, 4, dtype=torch.bfloat16)),
    ):
        layer(x.as_subclass(other))
        layer(x[:0])
        layer.weight = nn.Parameter(layer.weight.data.as_subclass(other), requires_grad=False)
        layer(x)
    assert not widened


@torch.inference_mode()
def test_a_grouped_convolution_keeps_torchs_own(widened):
    layer = cpu_conv.deriving_conv(nn.Conv2d)(8, 16, 3, groups=2, dtype=torch.bfloat16)
    x = images(2, 8, 4, 4, dtype=torch.bfloat16)
    assert torch.equal(layer(x), CONV(x, layer.weight, layer.bias, groups=2))
    with by_chosen_route(x):
        assert torch.equal(CONV(x, layer.weight, layer.bias, groups=2), layer(x))
    assert not widened


@torch.inference_mode()
def test_calls_of_another_form_keep_torchs_own(widened):
    layer = Backend(dtype=torch.bfloat16).conv(8, 6, stride=2)
    x = images(2, 8, 4, 4, dtype=torch.bfloat16)
    assert layer(x[0]).shape == (6, 2, 2)
    with by_chosen_route(x):
        CONV(input=x, weight=layer.weight, bias=layer.bias)
        CONV(x, layer.weight)
        CONV(x, layer.weight, None, 1, "same")
        LINEAR(input=x, weight=drawn(3, 4, dtype=torch.bfloat16))
        LINEAR(x, torch.empty(0, 4, dtype=torch.bfloat16), None)
        ATTENTION(x, x, x, is_causal=True)
        with pytest.raises(RuntimeError, match="type"):
            LINEAR(x, drawn(3, 4, dtype=torch.float16), None)
    assert not widened


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_layer_keeps_torchs_own(widened):
    x = images(1, 8, 4, 4, dtype=torch.bfloat16)
    layer = Backend(dtype=torch.bfloat16).conv(8, 6)
    traced = torch.jit.trace(layer, x, check_trace=False)
    assert not widened
    assert traced(x.repeat(2, 1, 1, 1)).shape == (2, 6, 4, 4)


def test_gradients_autocast_and_the_probe_keep_torchs_own(widened, monkeypatch):
    half, x = Backend(dtype=torch.bfloat16), images(2, 16, 4, 4, dtype=torch.bfloat16)
    layer = half.conv(16, 8)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            half.conv(16, 8)(x)
        monkeypatch.setattr(wide, "chosen", lambda route, dtype: False)
        half.conv(16, 8)(x)
        half.frame_conv(16, 8)(x)
        GEGLU(16, 24, backend=half)(x.movedim(1, -1))
    assert not widened


class Casting(nn.Conv2d):
    """A host's layer, which keeps its weights in another dtype and casts them for each call."""

    def forward(self, x):
        return self._conv_forward(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


@torch.inference_mode()
def test_a_hosts_layer_casts_first(widened):
    layer = Backend(type("Operations", (), {"Conv2d": Casting})).conv(8, 16)
    x = images(2, 8, 4, 4, dtype=torch.bfloat16)
    rounded = nn.Conv2d(8, 16, 3, padding=1, dtype=torch.bfloat16)
    rounded.load_state_dict(layer.state_dict())
    is_rounded_once(layer(x), exactly(CONV, x, rounded, padding=1))
    assert widened == ["convolution"]


@torch.inference_mode()
def test_a_padding_that_wraps_is_kept(widened):
    layer = cpu_conv.deriving_conv(nn.Conv2d)(8, 16, 3, padding=1, padding_mode="circular", dtype=torch.bfloat16)
    x = images(2, 8, 4, 4, dtype=torch.bfloat16)
    wrapped = nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    is_rounded_once(layer(x), exactly(CONV, wrapped, layer))
    assert widened == ["convolution"]


def test_compiled_layers_have_no_graph_break(widened):
    half = Backend(dtype=torch.bfloat16)
    x = images(2, 8, 4, 4, dtype=torch.bfloat16)
    for layer, given in (
        (half.conv(8, 16), x),
        (half.frame_conv(8, 16), x),
        (half.linear(4, 16), x),
        (GEGLU(4, 16, backend=half), x),
        (lambda x: scaled_dot_product(x, x, x), drawn(1, 1, 130, 8, dtype=torch.bfloat16)),
    ):
        with torch.inference_mode():
            torch.compile(layer, backend="eager", fullgraph=True)(given)
    assert not widened


def test_a_probe_times_one_thread_and_gives_the_others_back(monkeypatch):
    monkeypatch.setattr(probe, "PROBE_ROUNDS", 2)
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        seconds = probe.least_seconds([lambda: seen.append(torch.get_num_threads())] * 2, [])
        assert torch.get_num_threads() == 2 and seen == [1] * 4 and all(each >= 0 for each in seconds)
        with pytest.raises(ZeroDivisionError):
            probe.least_seconds([lambda: 1 / 0], [])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def small_probe(monkeypatch):
    shapes = {LINEAR: ((9, 16), (8, 16)), CONV: ((1, 16, 4, 5), (8, 16, 3, 3)), ATTENTION: ((1, 2, 9, 8),) * 3}
    monkeypatch.setattr(wide, "PROBE_SHAPES", shapes)
    monkeypatch.setattr(wide, "FEW_TOKENS", 1)


@HALF
@pytest.mark.parametrize("route", [LINEAR, CONV, ATTENTION])
@pytest.mark.parametrize(("seconds", "taken"), [(0.84, True), (0.86, False)])
def test_the_probe_refuses_what_is_hardly_faster(small_probe, monkeypatch, dtype, route, seconds, taken):
    monkeypatch.setattr(probe, "least_seconds", lambda *_: [seconds, 1.0])
    assert wide.chosen.ask(route, dtype) is taken


@pytest.mark.parametrize("route", [LINEAR, CONV, ATTENTION])
def test_the_probe_refuses_other_numbers(small_probe, monkeypatch, route):
    right = wide._ROUTES[route]
    monkeypatch.setattr(probe, "least_seconds", lambda *_: [0.5, 1.0])
    monkeypatch.setattr(wide, "_ROUTES", {route: lambda *args: 1.1 * right(*args)})
    assert not wide.chosen.ask(route, torch.bfloat16)


def test_geglu_goes_where_linear_layers_go(monkeypatch):
    tokens = drawn(3, 16, dtype=torch.bfloat16)
    monkeypatch.setattr(cpu_geglu, "chosen", lambda dtype: True)
    with torch.inference_mode():
        monkeypatch.setattr(wide, "chosen", lambda route, dtype: route is CONV)
        assert cpu_geglu.geglu_route(tokens) is cpu_geglu.in_two_products
        monkeypatch.setattr(wide, "chosen", lambda route, dtype: route is LINEAR)
        assert cpu_geglu.geglu_route(tokens) is wide.geglu
        assert cpu_geglu.geglu_route(tokens.double()) is None


def test_frozen_layers_are_widened_though_gradients_are_recorded(widened):
    half, x = Backend(dtype=torch.bfloat16), images(2, 16, 4, 4, dtype=torch.bfloat16)
    frozen = half.conv(16, 8).requires_grad_(False)
    frozen(x)
    assert widened == ["convolution"]
    frozen(x.requires_grad_()).sum().backward()
    assert x.grad is not None and widened == ["convolution"]
