"""16-bit products in float32: closer to the true numbers, only where they may be, part by part, through any layer."""

import pytest
import torch
from torch import nn

from svd_core.kernels.doubled import doubled_smooth
from svd_core.kernels.frame_conv import reference as frame_conv
from svd_core.kernels.geglu import reference as geglu_reference
from svd_core.model import unet
from svd_core.model.backend import Backend, scaled_dot_product
from svd_core.model.cpu import conv as cpu_conv
from svd_core.model.cpu import geglu as cpu_geglu
from svd_core.model.cpu import probe, wide
from svd_core.model.transformer import GEGLU

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
LINEAR, CONV, ATTENTION = nn.functional.linear, torch.conv2d, nn.functional.scaled_dot_product_attention


@pytest.fixture
def widened(monkeypatch):
    """The probe says yes; counts what is computed in float32."""
    calls = []

    def counted(route):
        return lambda *args, **kwargs: calls.append(route.__name__) or route(*args, **kwargs)

    monkeypatch.setattr(wide, "chosen", lambda route, dtype: True)
    monkeypatch.setattr(
        wide,
        "_ROUTES",
        {LINEAR: counted(wide.linear), CONV: counted(wide.convolution), ATTENTION: counted(wide.attention)},
    )
    monkeypatch.setattr(cpu_conv, "over_frames", counted(wide.over_frames))
    monkeypatch.setattr(wide, "geglu", counted(wide.geglu))
    monkeypatch.setattr(cpu_conv, "chosen", lambda dtype: False)
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
@pytest.mark.parametrize("how", [{}, {"stride": 2}, {"kernel": 1}, {"padding": 0}, {"bias": False}])
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (16, 12)])
@pytest.mark.parametrize("most", [probe.BLOCK_VALUES, 5000])
def test_a_convolution_is_rounded_once(widened, monkeypatch, dtype, how, size, most):
    if how.get("padding") == 0 and size == (1, 1):
        pytest.skip("an image smaller than its kernel")
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
    assert widened == ["over_frames"]


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
    for tokens, others in ((14, 14), (200, 77)):
        q = drawn(3, 2, tokens, 8, dtype=torch.bfloat16)
        k, v = (drawn(3, 2, others, 8, dtype=torch.bfloat16) for _ in range(2))
        assert torch.equal(scaled_dot_product(q, k, v), ATTENTION(q, k, v))


@HALF
@torch.inference_mode()
def test_an_upsampler_runs_by_corner(widened, monkeypatch, dtype):
    monkeypatch.setattr(cpu_conv, "DOUBLED_PIXELS", {dtype: 4})
    upsample, x = unet.Upsample(16, backend=Backend(dtype=dtype)), images(2, 16, 3, 5, dtype=dtype)
    ours, exact = upsample(x, (6, 10)), exactly(lambda *given: doubled_smooth(*given), x, upsample.conv)
    torch.testing.assert_close(ours, exact, rtol=0, atol=4 * torch.finfo(dtype).eps)  # sums of weights are rounded
    assert widened == ["convolution"] * 4


@torch.inference_mode()
def test_parts_cover_everything_and_stay_below_the_limit(monkeypatch):
    monkeypatch.setattr(wide, "BLOCK_VALUES", 100)
    for count, values in ((1, 1), (1, 1000), (7, 30), (1000, 1), (99, 7), (5, 100)):
        parts = wide._parts(count, values)
        assert [number for part in parts for number in range(count)[part]] == list(range(count))
        assert all(len(range(count)[part]) * values <= max(100, values) for part in parts)


def test_no_widened_part_is_larger_than_the_limit(widened, monkeypatch):
    sizes = []
    widen = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda self: sizes.append(self.numel()) or widen(self))
    monkeypatch.setattr(wide, "BLOCK_VALUES", 4000)
    backend = Backend(dtype=torch.bfloat16)
    with torch.inference_mode():
        backend.linear(48, 300)(drawn(500, 48, dtype=torch.bfloat16))
        backend.conv(16, 40)(images(9, 16, 10, 11, dtype=torch.bfloat16))
        backend.frame_conv(16, 200)(images(2, 16, 5, 60, dtype=torch.bfloat16))
    assert max(sizes) <= 4000 and len(sizes) > 30


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
    assert not widened


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
    for layer, given in ((half.conv(8, 16), x), (half.frame_conv(8, 16), x), (half.linear(4, 16), x)):
        with torch.inference_mode():
            torch.compile(layer, backend="eager", fullgraph=True)(given)
    assert not widened


@pytest.fixture
def small_probe(monkeypatch):
    shapes = {LINEAR: ((9, 16), (8, 16)), CONV: ((1, 16, 4, 5), (8, 16, 3, 3)), ATTENTION: ((1, 2, 9, 8),) * 3}
    monkeypatch.setattr(wide, "PROBE_SHAPES", shapes)
    monkeypatch.setattr(wide, "FEW_TOKENS", 1)


@HALF
@pytest.mark.parametrize("route", [LINEAR, CONV, ATTENTION])
@pytest.mark.parametrize(("seconds", "taken"), [(0.8, True), (0.9, False)])
def test_the_probe_refuses_what_is_hardly_faster(small_probe, monkeypatch, dtype, route, seconds, taken):
    monkeypatch.setattr(probe, "least_seconds", lambda *_: [seconds, 1.0])
    assert wide._probe_agrees(route, dtype) is taken


@pytest.mark.parametrize("route", [LINEAR, CONV, ATTENTION])
def test_the_probe_refuses_other_numbers(small_probe, monkeypatch, route):
    right = wide._ROUTES[route]
    monkeypatch.setattr(probe, "least_seconds", lambda *_: [0.5, 1.0])
    monkeypatch.setattr(wide, "_ROUTES", {route: lambda *args: 1.1 * right(*args)})
    assert not wide._probe_agrees(route, torch.bfloat16)


def test_geglu_goes_where_linear_layers_go(monkeypatch):
    tokens = drawn(3, 16, dtype=torch.bfloat16)
    monkeypatch.setattr(cpu_geglu, "chosen", lambda dtype: True)
    with torch.inference_mode():
        monkeypatch.setattr(wide, "chosen", lambda route, dtype: route is CONV)
        assert cpu_geglu.geglu_route(tokens) is cpu_geglu.in_two_products
        monkeypatch.setattr(wide, "chosen", lambda route, dtype: route is LINEAR)
        assert cpu_geglu.geglu_route(tokens) is wide.geglu
        assert cpu_geglu.geglu_route(tokens.double()) is None
