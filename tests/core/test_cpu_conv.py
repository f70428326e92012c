"""Convolutions of few pixels as products, and of doubled images by corner: the same numbers, only where they may be,
and through a host's own layers."""

import pytest
import torch
from torch import nn

from svd_core.decode.convolving import convolved
from svd_core.decode.frames import Doubling
from svd_core.decode.places import Placement
from svd_core.kernels.doubled import corner_weights, doubled, doubled_smooth, smoothed_by_corner
from svd_core.kernels.unfolded import unfolded
from svd_core.model import fused, unet, vae_blocks
from svd_core.model.backend import TORCH, Backend
from svd_core.model.cpu import conv as cpu_conv
from svd_core.model.cpu import probe


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
    for more in ({"padding_mode": "circular"}, {"dilation": 2}, {"groups": 2}):
        layer = cpu_conv.deriving_conv(nn.Conv2d)(8, 16, 3, padding=1, **more)
        x = images(2, 8, 4, 4)
        assert torch.equal(layer(x), nn.Conv2d._conv_forward(layer, x, layer.weight, layer.bias))
    monkeypatch.setattr(cpu_conv, "MANY_WEIGHTS", 16 * 8 * 9 + 1)
    Backend().conv(8, 16)(images(2, 8, 4, 4))
    assert not products


@torch.inference_mode()
def test_torchs_own_stays_where_the_probe_says_so(products, monkeypatch):
    monkeypatch.setattr(cpu_conv, "chosen", lambda dtype: False)
    Backend().conv(8, 16)(images(2, 8, 4, 4))
    assert not products


@pytest.fixture
def small_probe(monkeypatch):
    monkeypatch.setattr(cpu_conv, "PROBE_IMAGES", (2, 32, 3, 5))
    monkeypatch.setattr(cpu_conv, "PROBE_OUTPUTS", 8)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(24, 16, 3, 3), (24, 16, 3, 1)])
def test_weights_may_lie_channels_last(products, shape):
    weight = torch.randn(shape)
    turned = weight.contiguous(memory_format=torch.channels_last)
    assert not turned.is_contiguous()
    x = images(2, 16, 5, 4)
    torch.testing.assert_close(unfolded(x, turned, None), unfolded(x, weight, None))
    assert cpu_conv.is_product(x, turned)


def test_the_probe_takes_what_is_closer_to_the_true_numbers(small_probe, monkeypatch):
    """A convolution that sums all terms in one chain is further from them than the product."""
    convolution = cpu_conv._convolution
    off = {torch.float32: 1e-4, torch.float64: 0.0}
    monkeypatch.setattr(probe, "least_seconds", lambda *_: [0.5, 1.0])
    monkeypatch.setattr(cpu_conv, "_convolution", lambda x, *more: convolution(x, *more) + off[x.dtype])
    assert cpu_conv.chosen.ask(torch.float32)


@pytest.mark.parametrize(("slower", "taken"), [(1.0, True), (1.4, True), (2.0, False)])
def test_the_probe_refuses_what_is_slower(small_probe, monkeypatch, slower, taken):
    monkeypatch.setattr(probe, "least_seconds", lambda *_: [slower, 1.0])
    assert cpu_conv.chosen.ask(torch.float32) is taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_refuses_other_numbers(small_probe, monkeypatch, dtype):
    monkeypatch.setattr(probe, "least_seconds", lambda *_: [0.5, 1.0])
    assert cpu_conv.chosen.ask(dtype)
    monkeypatch.setattr(cpu_conv, "unfolded", lambda *args: 1.5 * unfolded(*args))
    assert not cpu_conv.chosen.ask(dtype)


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
    decoders = vae_blocks.Upsample(16, backend=TORCH)
    torch.testing.assert_close(decoders(x), doubled_smooth(x, decoders.conv.weight, decoders.conv.bias))
    assert len(corners) == 2


@torch.inference_mode()
def test_bands_of_a_decode_run_by_corner_and_show_no_seam(corners):
    upsample, frame = vae_blocks.Upsample(16, backend=TORCH), images(1, 16, 13, 5)
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


@torch.inference_mode()
def test_an_upsampler_that_is_made_to_tile_keeps_its_layer(corners):
    x = images(2, 16, 4, 4)
    for tiled in ("padding_mode", "_conv_forward"):
        upsample = unet.Upsample(16, backend=TORCH)
        conv, wrapped = upsample.conv, nn.functional.pad(doubled(x), (1, 1, 1, 1), mode="circular")
        if tiled == "padding_mode":
            conv.padding_mode, conv._reversed_padding_repeated_twice = "circular", [1, 1, 1, 1]
        else:
            conv._conv_forward = lambda _, weight, bias, wrapped=wrapped: nn.functional.conv2d(wrapped, weight, bias)
        torch.testing.assert_close(upsample(x, (8, 8)), nn.functional.conv2d(wrapped, conv.weight, conv.bias))
    assert not corners


def test_a_compiled_upsampler_has_no_graph_break(corners):
    upsample = unet.Upsample(16, backend=TORCH)
    compiled = torch.compile(upsample, backend="eager", fullgraph=True)
    with torch.inference_mode():
        x = images(2, 16, 4, 4)
        torch.testing.assert_close(compiled(x, (8, 8)), upsample(x, (8, 8)))
    assert len(corners) == 1


def test_a_probe_that_runs_out_of_memory_answers_nothing_and_is_asked_again():
    """Else a moment of little memory would settle a process's bits."""
    asked = []

    @probe.probed("layers", "another way")
    def faster() -> bool:
        asked.append(1)
        if len(asked) == 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return True

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        faster()
    assert faster() and faster()
    assert len(asked) == 2
