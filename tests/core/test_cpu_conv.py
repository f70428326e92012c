"""Convolutions of few pixels as products, of many channels by row, and of doubled images by corner: the same numbers,
only where they may be, and through a host's own layers."""

import pytest
import torch
from torch import nn

from svd_core.decode.frames import Doubling, convolved
from svd_core.decode.places import Placement
from svd_core.kernels import by_row
from svd_core.kernels.by_row import convolved_by_row, weight_sums
from svd_core.kernels.doubled import corner_weights, doubled_smooth, smoothed_by_corner
from svd_core.kernels.unfolded import unfolded
from svd_core.model import cpu_conv, fused, unet, vae
from svd_core.model.backend import TORCH, Backend


@pytest.fixture
def products(monkeypatch):
    """Any number of weights will do, and the probe says yes; counts the products."""
    calls = []
    monkeypatch.setattr(cpu_conv, "MANY_WEIGHTS", 1)
    monkeypatch.setattr(cpu_conv, "chosen", lambda dtype: True)
    monkeypatch.setattr(cpu_conv, "unfolded", lambda *args: calls.append(args) or unfolded(*args))
    return calls


def images(*shape, dtype=torch.float32):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return drawn.contiguous(memory_format=torch.channels_last)


class Casting(nn.Conv2d):
    """A host's layer, which keeps its weights in another dtype and casts them for each call."""

    def forward(self, x):
        return self._conv_forward(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


HOST = type("Operations", (), {"Conv2d": Casting})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "padding"), [((3, 3), (1, 1)), ((3, 1), (1, 0))])
def test_error_is_at_most_twice_that_of_torchs_own(dtype, bias, kernel, padding):
    x = images(2, 48, 5, 3, dtype=dtype)
    layer = nn.Conv2d(48, 96, kernel, padding=padding, bias=bias, dtype=dtype).requires_grad_(False)
    exact = nn.functional.conv2d(
        x.double(), layer.weight.double(), layer.bias.double() if bias else None, padding=padding
    )
    ours = unfolded(x, layer.weight, layer.bias)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert (ours - exact).norm() <= 2 * (layer(x) - exact).norm()


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (3, 8, 1, 5), (2, 8, 4, 1), (1, 8, 8, 8)])
def test_edges_and_a_contiguous_input(shape):
    x = images(*shape)
    layer = nn.Conv2d(8, 5, 3, padding=1).requires_grad_(False)
    for given in (x, x.contiguous()):
        torch.testing.assert_close(unfolded(given, layer.weight, layer.bias), layer(x))


@torch.inference_mode()
def test_layers_take_it_where_pixels_are_few(products):
    layer = Backend().conv(16, 24)
    for size, taken in (((8, 8), 1), ((8, 9), 0)):
        products.clear()
        x = images(2, 16, *size)
        torch.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
        assert len(products) == taken


@torch.inference_mode()
def test_both_branches_in_one_call_choose_as_one_by_one(products):
    layer = Backend().conv(16, 24)
    both = images(100, 16, 8, 8)
    together, apart = layer(both), torch.cat([layer(part) for part in both.split(50)])
    torch.testing.assert_close(together, apart)
    assert len(products) == 3


@torch.inference_mode()
def test_convolutions_across_frames_take_it(products):
    layer = Backend().frame_conv(16, 16)
    clip = images(1, 16, 5, 12)
    expected = nn.functional.conv2d(clip, layer.weight[..., 0], layer.bias, padding=(1, 0))
    torch.testing.assert_close(layer(clip), expected)
    layer(images(1, 16, 5, 65))
    assert len(products) == 1


@torch.inference_mode()
def test_a_hosts_layer_casts_first(products):
    layer = Backend(HOST, dtype=torch.bfloat16).conv(8, 16)
    assert isinstance(layer, Casting)
    x = images(2, 8, 4, 4)
    expected = nn.functional.conv2d(x, layer.weight.float(), layer.bias.float(), padding=1)
    torch.testing.assert_close(layer(x), expected)
    assert products[0][1].dtype == torch.float32


def test_gradients_keep_torchs_own(products):
    layer = Backend().conv(8, 16)
    layer(images(2, 8, 4, 4)).sum().backward()
    assert layer.weight.grad is not None and not products


@torch.inference_mode()
def test_strides_dtypes_tensor_classes_and_gaps_keep_torchs_own(products, monkeypatch):
    Backend().conv(8, 16, stride=2)(images(2, 8, 4, 4))
    Backend(dtype=torch.float64).conv(8, 16)(images(2, 8, 4, 4, dtype=torch.float64))
    layer = Backend().conv(8, 16)
    layer(images(2, 8, 4, 4).as_subclass(type("Quantised", (torch.Tensor,), {})))
    layer.weight = nn.Parameter(torch.randn(16, 16, 3, 3)[:, :8], requires_grad=False)
    layer(images(2, 8, 4, 4))
    monkeypatch.setattr(cpu_conv, "MANY_WEIGHTS", 16 * 8 * 9 + 1)
    Backend().conv(8, 16)(images(2, 8, 4, 4))
    assert not products


@torch.inference_mode()
def test_torchs_own_stays_where_the_probe_says_so(products, monkeypatch):
    monkeypatch.setattr(cpu_conv, "chosen", lambda dtype: False)
    Backend().conv(8, 16)(images(2, 8, 4, 4))
    assert not products


ROUTES = [
    (cpu_conv.as_product, torch.float32),
    (cpu_conv.as_product, torch.bfloat16),
    (convolved_by_row, torch.float32),
]


@pytest.mark.parametrize(("slower", "taken"), [(1.0, True), (1.5, False)])
@pytest.mark.parametrize(("route", "dtype"), ROUTES)
def test_the_probe_refuses_what_is_slower(monkeypatch, route, dtype, slower, taken):
    monkeypatch.setattr(cpu_conv, "least_seconds", lambda *_: [slower, 1.0])
    assert cpu_conv._probe_agrees(dtype, route, (2, 32, 3, 5), 8, 1) is taken


@pytest.mark.parametrize(("route", "dtype"), ROUTES)
def test_the_probe_refuses_other_numbers(monkeypatch, route, dtype):
    monkeypatch.setattr(cpu_conv, "least_seconds", lambda *_: [0.5, 1.0])
    assert cpu_conv._probe_agrees(dtype, route, (2, 32, 3, 5), 8, 1)
    assert not cpu_conv._probe_agrees(dtype, lambda *args: 1.5 * route(*args), (2, 32, 3, 5), 8, 1)
    assert not cpu_conv._probe_agrees(dtype, lambda *args: route(*args) * float("nan"), (2, 32, 3, 5), 8, 1)


def test_a_compiled_layer_has_no_graph_break(products):
    layer = Backend().conv(8, 16)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.inference_mode():
        x = images(2, 8, 4, 4)
        torch.testing.assert_close(compiled(x), nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
    assert not products


@pytest.fixture
def corners(monkeypatch):
    """Counts the convolutions that run by corner, from four pixels on."""
    calls = []
    monkeypatch.setattr(cpu_conv, "DOUBLED_PIXELS", {torch.float32: 4, torch.bfloat16: 4})
    monkeypatch.setattr(fused, "smoothed_by_corner", lambda *args: calls.append(args) or smoothed_by_corner(*args))
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (3, 8, 1, 5), (2, 8, 4, 1), (2, 8, 7, 6)])
def test_corners_are_the_doubled_images_convolution(shape, bias):
    x = images(*shape, dtype=torch.float64)
    layer = nn.Conv2d(8, 5, 3, padding=1, bias=bias, dtype=torch.float64).requires_grad_(False)
    for given in (x, x.contiguous()):
        ours = smoothed_by_corner(given, layer.weight, layer.bias)
        torch.testing.assert_close(ours, doubled_smooth(x, layer.weight, layer.bias), rtol=0, atol=1e-13)
        assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("call", [lambda conv, x: conv(x), convolved])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_by_corner_is_at_most_that_of_torchs_own_and_a_weights_rounding(dtype, call):
    x = images(1, 288, 9, 8, dtype=dtype)
    layer = nn.Conv2d(288, 40, 3, padding=1, dtype=dtype).requires_grad_(False)
    exact = doubled_smooth(x.double(), layer.weight.double(), layer.bias.double())
    ours = smoothed_by_corner(x, layer.weight, layer.bias, call)
    torchs = doubled_smooth(x, layer.weight, layer.bias)
    assert (ours - exact).norm() <= 1.5 * (torchs - exact).norm()


def test_corners_weights_sum_in_float32_and_round_once():
    weight = torch.tensor([1.0, 2**-8, 2**-8, 0, 2**-8, 2**-8, 0, 0, 0]).view(1, 1, 3, 3).bfloat16()
    assert corner_weights(weight)[0][0].flatten().tolist() == [1, 2**-7, 0, 2**-7]
    assert corner_weights(weight)[1][1].flatten().tolist() == [1 + 2**-7, 2**-7, 0, 0]  # 1 + 2**-8 alone would be 1


@torch.inference_mode()
def test_upsamplers_of_both_networks_run_by_corner(corners):
    x = images(2, 16, 3, 5)
    upsample = unet.Upsample(16, backend=TORCH)
    expected = doubled_smooth(x, upsample.conv.weight, upsample.conv.bias)
    torch.testing.assert_close(upsample(x, (6, 10)), expected)
    upsample(x, (5, 10))  # an odd size, where no pixel is simply doubled
    decoders = vae.Upsample(16, backend=TORCH)
    torch.testing.assert_close(decoders(x), doubled_smooth(x, decoders.conv.weight, decoders.conv.bias))
    assert len(corners) == 2


@torch.inference_mode()
def test_bands_of_a_decode_run_by_corner_and_show_no_seam(corners):
    upsample, frame = vae.Upsample(16, backend=TORCH), images(1, 16, 13, 5)
    layer, place = upsample.in_bands(4 * 4 * 5 * 16 * 4), Placement.of("device", torch.device("cpu")).frame
    expected = doubled_smooth(frame, upsample.conv.weight, upsample.conv.bias)
    torch.testing.assert_close(layer(frame, place), expected)
    assert len(corners) == 4
    torch.testing.assert_close(Doubling(upsample.conv, layer.size)(frame, place), expected)
    assert len(corners) == 4


@torch.inference_mode()
def test_few_pixels_other_dtypes_hooks_and_gaps_keep_the_layer(corners):
    for dtype, shape in ((torch.float32, (50, 16, 1, 3)), (torch.float64, (1, 16, 4, 4))):
        unet.Upsample(16, backend=Backend(dtype=dtype))(images(*shape, dtype=dtype), [2 * side for side in shape[2:]])
    upsample, x = unet.Upsample(16, backend=TORCH), images(1, 16, 4, 4)
    with torch.inference_mode(mode=False), torch.enable_grad():
        unet.Upsample(16, backend=TORCH)(images(1, 16, 4, 4), (8, 8)).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        upsample(x, (8, 8))
    hook = upsample.conv.register_forward_hook(lambda *_: None)
    upsample(x, (8, 8))
    hook.remove()
    upsample.conv.weight = nn.Parameter(torch.randn(16, 32, 3, 3)[:, :16], requires_grad=False)
    upsample(x, (8, 8))
    assert not corners


def test_a_compiled_upsampler_has_no_graph_break(corners):
    upsample = unet.Upsample(16, backend=TORCH)
    compiled = torch.compile(upsample, backend="eager", fullgraph=True)
    with torch.inference_mode():
        x = images(2, 16, 4, 4)
        torch.testing.assert_close(compiled(x, (8, 8)), upsample(x, (8, 8)))
    assert len(corners) == 1


@pytest.fixture
def rows(monkeypatch):
    """Counts the convolutions that run by row, from a few channels and pixels on."""
    calls = []
    monkeypatch.setattr(cpu_conv, "MANY_CHANNELS", 8)
    monkeypatch.setattr(cpu_conv, "PIXELS_A_THREAD", 4)
    monkeypatch.setattr(cpu_conv, "chosen_by_row", lambda: True)
    monkeypatch.setattr(cpu_conv, "convolved_by_row", lambda *args: calls.append(args) or convolved_by_row(*args))
    return calls


SHAPES = [(1, 8, 1, 1), (3, 8, 1, 5), (2, 8, 4, 1), (2, 8, 7, 6), (1, 8, 9, 8), (5, 8, 3, 11)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("values", [1, 8 * 6 * 4, 2**21])
def test_by_row_it_is_the_same_convolution_in_parts_of_any_size(monkeypatch, shape, bias, values):
    monkeypatch.setattr(by_row, "PART_VALUES", values)
    monkeypatch.setattr(by_row, "PART_PIXELS", 1)
    monkeypatch.setattr(by_row, "SUMMED_VALUES", 3 * values)
    x = images(*shape, dtype=torch.float64)
    layer = nn.Conv2d(8, 5, 3, padding=1, bias=bias, dtype=torch.float64).requires_grad_(False)
    expected = layer(x)
    for given in (x, x.contiguous()):
        kept = given.clone()
        ours = convolved_by_row(given, layer.weight, layer.bias)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(given, kept)


@pytest.mark.parametrize("channels", [256, 320, 640])
def test_error_by_row_is_at_most_that_of_torchs_own(channels):
    x = images(1, channels, 9, 24)
    layer = nn.Conv2d(channels, 96, 3, padding=1).requires_grad_(False)
    exact = nn.functional.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    ours = convolved_by_row(x, layer.weight, layer.bias)
    assert (ours - exact).norm() <= (layer(x) - exact).norm()


def test_no_number_is_lost_by_row():
    """A value that is not finite reaches all that see it, and what is large or small keeps its digits."""
    x, weight = images(1, 8, 6, 12), torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    for factor in (1e-20, 1e20):
        torch.testing.assert_close(
            convolved_by_row(factor * x, weight, None) / factor, convolved_by_row(x, weight, None), rtol=1e-5, atol=1e-5
        )
    x[0, 3, 2, 5] = float("nan")
    ours = convolved_by_row(x, weight, None)
    assert ours[0, :, 1:4, 4:7].isnan().all() and ours[0, :, 4:].isfinite().all() and ours[0, :, :1].isfinite().all()


def test_a_weights_sums_are_its_polynomials_values():
    weight = torch.tensor([1.0, 2.0, 3.0]).expand(1, 1, 3, 3)
    zero, near, _, far, _, infinity = (sums.flatten().tolist() for sums in weight_sums(weight))
    points = by_row.POINTS
    for values, point in ((zero, 0.0), (near, points[1]), (far, points[3])):
        distance = by_row._distances(point)
        assert values == pytest.approx([(1 + 2 * point + 3 * point**2) / distance] * 3)
    assert infinity == [3.0] * 3


@torch.inference_mode()
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_layers_of_many_channels_run_by_row(rows, layout):
    layer = Backend().conv(8, 16)
    layer.weight.data = layer.weight.data.contiguous(memory_format=layout)
    x = images(2, 8, 4, 12)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
    assert len(rows) == 1


@torch.inference_mode()
def test_no_bit_by_row_depends_on_how_many_images_there_are(rows):
    layer = Backend().conv(32, 48)
    both = images(6, 32, 9, 16)
    assert torch.equal(layer(both), torch.cat([layer(part) for part in both.split([1, 2, 3])]))
    assert len(rows) == 4


@torch.inference_mode()
def test_a_hosts_layer_casts_before_it_runs_by_row(rows):
    layer = Backend(HOST, dtype=torch.bfloat16).conv(8, 16)
    x = images(2, 8, 4, 12)
    expected = nn.functional.conv2d(x, layer.weight.float(), layer.bias.float(), padding=1)
    torch.testing.assert_close(layer(x), expected)
    assert rows[0][1].dtype == torch.float32


@torch.inference_mode()
def test_what_is_no_plain_sum_of_many_channels_keeps_torchs_own(rows, monkeypatch):
    x, wide = images(2, 8, 4, 12), images(2, 8, 4, 5)  # of eight columns three would be idle
    for layer in (
        Backend().conv(8, 16, stride=2),
        Backend().conv(8, 4),
        Backend().conv(8, 16, kernel=1),
        cpu_conv.deriving_conv(nn.Conv2d)(8, 16, 3, padding=1, padding_mode="circular"),
        cpu_conv.deriving_conv(nn.Conv2d)(8, 16, 3, padding=1, groups=2),
        cpu_conv.deriving_conv(nn.Conv2d)(8, 16, 3, padding=1, dilation=2),
    ):
        plain = nn.Conv2d._conv_forward(layer, x, layer.weight, layer.bias)
        assert torch.equal(layer(x), plain)
    Backend().conv(8, 16)(wide)
    Backend().conv(8, 16)(x.contiguous())
    Backend(dtype=torch.bfloat16).conv(8, 16)(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        Backend().conv(8, 16)(x)
    layer = Backend().conv(8, 16)
    layer(x.as_subclass(type("Quantised", (torch.Tensor,), {})))
    layer.weight = nn.Parameter(torch.randn(16, 16, 3, 3)[:, :8], requires_grad=False)
    layer(x)
    monkeypatch.setattr(cpu_conv, "PIXELS_A_THREAD", 4 * 12 + 1)
    Backend().conv(8, 16)(x)
    assert not rows


def test_gradients_and_torchs_compiler_keep_torchs_own_by_row(rows):
    layer, x = Backend().conv(8, 16), images(2, 8, 4, 12)
    layer(x).sum().backward()
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))
    assert layer.weight.grad is not None and len(rows) == 1


@torch.inference_mode()
def test_a_band_that_runs_by_row_is_not_turned_first(rows):
    side = 48 * torch.get_num_threads()
    layer, x = Backend().conv(256, 8), images(1, 256, 48, side)
    torch.testing.assert_close(convolved(layer, x), nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
    assert rows[0][0].is_contiguous(memory_format=torch.channels_last)
    few = images(1, 256, 8, 32)
    torch.testing.assert_close(convolved(layer, few), nn.functional.conv2d(few, layer.weight, layer.bias, padding=1))
    assert len(rows) == 1
