"""Encoding in bands: the plain encoder's result, the same bits for every mode and budget, in little memory."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from weights import randomise, relative

import svd_core.decode.pictures
import svd_core.model.vae
from benchmarks.device_bytes import device_bytes
from svd_core.config import VAEConfig
from svd_core.decode.pictures import EncodePlan, encode_picture
from svd_core.decode.places import MODES, OnDevice
from svd_core.errors import InputError
from svd_core.live_bytes import LiveBytes
from svd_core.model.backend import Backend
from svd_core.model.vae import VideoVAE
from svd_core.model.vae_blocks import Downsample, ResnetBlock

SMALL = VAEConfig(channels=32, res_blocks=1)
SIZES = [(64, 64), (40, 72), (8, 24), (136, 88), (8, 8)]  # the second, third and fourth have odd latents
META = torch.device("meta")


@pytest.fixture(scope="module")
def vae():
    return randomise(VideoVAE(SMALL))


@pytest.fixture
def banded(monkeypatch):
    """Small pictures, too, go in bands."""
    monkeypatch.setattr(svd_core.decode.pictures, "PLAIN_PIXELS", 0)


NARROW = 120000
"""Bytes of a band."""


@pytest.fixture
def narrow(monkeypatch, banded):
    """Bands so small that a small picture has many."""
    monkeypatch.setattr(svd_core.model.vae, "band_bytes", lambda device: NARROW)


def pixels(height: int, width: int, pictures: int = 1) -> torch.Tensor:
    """In [-1, 1], with a contrast that grows downwards, so that statistics of a part differ from those of the whole."""
    return (torch.rand(pictures, 3, height, width) * 2 - 1) * torch.linspace(0.1, 1, height)[:, None]


def plain(vae: VideoVAE, pictures: torch.Tensor) -> torch.Tensor:
    return vae.quant_conv(vae.encoder(pictures))[:, :4]


def cast(vae: VideoVAE, dtype: torch.dtype) -> VideoVAE:
    other = VideoVAE(SMALL).to(dtype)
    other.load_state_dict(vae.state_dict())
    return other


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_in_bands_equals_plain(vae, narrow, size):
    """Every layer is cut into bands, and there are no seams."""
    pictures = pixels(*size)
    latents = vae.encode(pictures)
    assert latents.shape == (1, 4, size[0] // 8, size[1] // 8)
    assert relative(latents, plain(vae, pictures)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_no_bit_depends_on_where_activations_stay(vae, narrow, dtype, size):
    vae, pictures = cast(vae, dtype), pixels(*size).to(dtype)
    first = vae.encode(pictures)
    assert first.dtype == dtype
    assert all(torch.equal(vae.encode(pictures, mode=mode), first) for mode in MODES)
    assert all(torch.equal(vae.encode(pictures, budget=budget), first) for budget in (2**28, 10**12))


@torch.inference_mode()
def test_whole_frames_in_one_band_are_the_same_bits_in_every_mode(vae, banded):
    pictures = pixels(72, 40)
    first = vae.encode(pictures)
    assert all(torch.equal(vae.encode(pictures, mode=mode), first) for mode in MODES)
    assert relative(first, plain(vae, pictures)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_bands_round_no_worse_than_the_plain_encoder(vae, narrow, dtype):
    """Class rounding: against float64, at most twice the error of the plain expression in the same dtype."""
    vae, pictures = cast(vae, dtype), pixels(72, 88).to(dtype)
    exact = plain(cast(vae, torch.float64), pictures.double())
    assert relative(vae.encode(pictures), exact) <= 2 * relative(plain(vae, pictures), exact)


@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_pictures_of_a_batch_are_encoded_one_by_one(vae, narrow, mode):
    pictures = torch.cat([pixels(40, 72), pixels(40, 72) / 5, pixels(40, 72)])
    apart = torch.cat([vae.encode(picture) for picture in pictures.split(1)])
    assert torch.equal(vae.encode(pictures, mode=mode), apart)


@torch.inference_mode()
def test_layout_and_dtype_of_the_pixels_change_no_bit(vae, narrow):
    pictures = pixels(40, 72).bfloat16()
    first = vae.encode(pictures.float())
    assert torch.equal(vae.encode(pictures.float().to(memory_format=torch.channels_last), mode="bands"), first)
    assert torch.equal(vae.encode(pictures), first)


@torch.inference_mode()
def test_nothing_is_written_to_the_pixels(vae, narrow):
    pictures = pixels(40, 72)
    before = pictures.clone()
    for mode in MODES:
        vae.encode(pictures, mode=mode)
    assert torch.equal(pictures, before)


@pytest.mark.parametrize("size", [(8, 8), (12, 6), (9, 7), (7, 12), (3, 3), (2, 5)])
@pytest.mark.parametrize("values", [1, 10**9])
@torch.inference_mode()
def test_halving_equals_downsampling(size, values):
    """Also of odd heights and widths, where a last row or column is not read."""
    layer = randomise(Downsample(32, backend=Backend()))
    images = torch.randn(1, 32, *size).contiguous(memory_format=torch.channels_last)
    halved = layer.in_bands(4 * values)(images, OnDevice(images.device))
    assert halved.shape == layer(images).shape
    assert relative(halved, layer(images)) <= 1e-6


@pytest.mark.parametrize("outputs", [32, 64])
@torch.inference_mode()
def test_what_is_worked_out_twice_is_the_same_bits_also_in_place(outputs):
    block = randomise(ResnetBlock(32, outputs, backend=Backend()))
    images = torch.randn(1, 32, 37, 90).contiguous(memory_format=torch.channels_last)
    place, kept = OnDevice(images.device), block.in_bands(NARROW)
    expected = kept(images, place)
    lean = replace(kept, keep=False)
    assert torch.equal(lean(images, place), expected)
    if outputs == 32:
        assert torch.equal(lean(images, place, images), expected)
        assert torch.equal(images, expected)


# Small pictures


@torch.inference_mode()
def test_small_pictures_go_plain_in_every_mode(vae):
    pictures = pixels(40, 72, pictures=3)
    expected = plain(vae, pictures)
    for settings in [{}, {"budget": 10**9}, *({"mode": mode} for mode in MODES)]:
        assert torch.equal(vae.encode(pictures, **settings), expected)


@torch.inference_mode()
def test_how_many_go_at_once_depends_on_their_size_alone(vae):
    assert [vae.encode_plan((50, 3, *size), META).together for size in ((64, 128), (256, 256), (256, 264))] == [8, 1, 0]
    pictures = pixels(64, 128, pictures=11)
    assert relative(vae.encode(pictures), plain(vae, pictures)) <= 1e-5


def test_gradients_are_recorded_where_nothing_binds_the_memory(vae, banded):
    pictures = pixels(16, 24).requires_grad_()
    vae.encode(pictures).square().sum().backward()
    assert pictures.grad is not None
    assert not vae.encode(pictures, mode="bands").requires_grad
    with torch.no_grad():
        assert not vae.encode(pictures).requires_grad


# Memory


def full_size(dtype: torch.dtype = torch.float32) -> VideoVAE:
    return VideoVAE(VAEConfig(), backend=Backend(device="meta", dtype=dtype, attention=fused))


def fused(q, k, v):
    """What a fused kernel holds; on the meta device torch would count the matrix of scores."""
    return torch.empty_like(q)


def counted(vae: VideoVAE, shape: tuple[int, ...], mode: str) -> EncodePlan:
    """What the device and the host hold beside the weights and the pixels."""
    dtype = vae.encoder.conv_in.weight.dtype
    pictures = torch.empty(shape, device=META, dtype=dtype)
    with device_bytes(vae) as live:
        vae.encode(pictures, mode=mode)
    hosted = HostBytes()
    with torch.no_grad(), hosted:
        vae.encode(pictures, mode=mode)
    return EncodePlan(mode, 0, live.peak - pictures.nbytes, hosted.peak)


class HostBytes(LiveBytes):
    """Counts what the host's memory holds and nothing else, the other way round than `device_bytes`."""

    def __enter__(self):
        places, self.allocate = svd_core.decode.places, svd_core.decode.places.host_memory
        self.counting = False

        def counting(*args):
            self.counting = True
            try:
                return self.allocate(*args)
            finally:
                self.counting = False

        places.host_memory = counting
        return super().__enter__()

    def __exit__(self, *error):
        svd_core.decode.places.host_memory = self.allocate
        return super().__exit__(*error)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    "shape", [(1, 3, 64, 64), (20, 3, 64, 128), (1, 3, 320, 512), (3, 3, 312, 520), (1, 3, 576, 1024)]
)
def test_the_prediction_is_within_a_tenth_of_the_peak(mode, dtype, shape):
    vae = full_size(dtype)
    plan, peak = vae.encode_plan(shape, META, mode=mode), counted(vae, shape, mode)
    assert plan.device_bytes == pytest.approx(peak.device_bytes, rel=0.1)
    assert plan.host_bytes == pytest.approx(peak.host_bytes, rel=0.1)


@pytest.mark.parametrize(
    ("mode", "device", "host"), [("device", 31.8, 0), ("host", 19.9, 0), ("bands", 2.2, 19.8)], ids=MODES
)
def test_an_8k_still_fits_where_it_should(mode, device, host):
    """7680x4320 in float32, in GiB. One frame of the widest activations is 15.8, keys and values 2."""
    vae, shape = full_size(), (1, 3, 4320, 7680)
    plan, peak = vae.encode_plan(shape, META, mode=mode), counted(vae, shape, mode)
    for each in (plan, peak):
        assert each.device_bytes <= device * 2**30
        assert each.host_bytes <= host * 2**30
    assert plan.device_bytes == pytest.approx(peak.device_bytes, rel=0.1)
    assert plan.host_bytes == pytest.approx(peak.host_bytes, rel=0.1)


def test_a_batch_holds_little_more_than_one_picture():
    vae = full_size(torch.float16)
    for mode in MODES:
        one, many = (counted(vae, (n, 3, 320, 512), mode).device_bytes for n in (1, 6))
        assert many <= 1.02 * one


def planned(budget: int | None, device: torch.device = META, **settings: object) -> EncodePlan:
    return full_size().encode_plan((1, 3, 576, 1024), device, budget=budget, **settings)


def test_a_larger_budget_never_picks_a_slower_way():
    budgets = range(2**28, 2**30, 2**25)
    plans = [planned(budget) for budget in budgets]
    speeds = [-MODES.index(plan.mode) for plan in plans]
    assert speeds == sorted(speeds)
    assert {plan.mode for plan in plans} == set(MODES)
    assert all(plan.device_bytes <= budget for plan, budget in zip(plans, budgets, strict=True))
    assert planned(None).mode == "device"
    assert planned(2**40, mode="host").mode == "host"


@pytest.mark.parametrize("device", [META, torch.device("cpu")])
def test_a_budget_that_holds_nothing_is_refused_with_the_least_that_works(device):
    with pytest.raises(InputError, match=r"budget of 1 MiB .* 1024x576: give at least \d+ MiB") as error:
        planned(2**20, device)
    least = int(re.search(r"least (\d+) MiB", str(error.value))[1]) * 2**20
    plan = planned(least, device)
    assert plan.device_bytes <= least
    assert plan == full_size().least_encode_plan((1, 3, 576, 1024), device)
    with pytest.raises(InputError, match="give at least"):
        planned(least - 2**20, device)


@pytest.mark.parametrize("size", [(264, 264), (576, 1024), (64, 64)])
@pytest.mark.parametrize("device", [META, torch.device("cpu")])
def test_the_least_plan_is_that_also_where_a_picture_is_one_band(device, size):
    """Working things out twice holds a band more, which is all there is of a small picture."""
    vae, shape = full_size(), (1, 3, *size)
    modes = MODES if device == META else ("device", "host")
    least = min(vae.encode_plan(shape, device, mode=mode).device_bytes for mode in modes)
    assert vae.least_encode_plan(shape, device).device_bytes == least


def test_the_hosts_memory_is_the_devices_on_a_cpu():
    assert planned(2**30, torch.device("cpu")).mode == "device"
    assert planned(2**29, torch.device("cpu")).mode == "host"
    with pytest.raises(InputError, match="give at least"):
        planned(2**28, torch.device("cpu"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "disk"}, "encode mode 'disk' is not known: choose one of device, host, bands"),
        ({"budget": 0}, "budget is 0"),
        ({"budget": 1000}, "a budget of 1000 bytes cannot hold the encoding of 24x16: give at least"),
    ],
)
def test_bad_settings_are_refused(vae, settings, said):
    with pytest.raises(InputError, match=said):
        vae.encode(pixels(16, 24), **settings)


def test_a_budget_that_is_not_enough_is_never_rounded_up():
    vae, shape = full_size(), (1, 3, 576, 1024)
    least = vae.least_encode_plan(shape, META).device_bytes
    with pytest.raises(
        InputError, match=f"budget of {(least - 1) // 2**20} MiB .*: give at least {-(-least // 2**20)} "
    ):
        vae.encode_plan(shape, META, budget=least - 1)


def test_the_plan_refuses_what_encoding_refuses(vae):
    with pytest.raises(InputError, match="65x64"):
        vae.encode_plan((1, 3, 65, 64), META)


def work(run: Callable[..., torch.Tensor], *given: torch.Tensor, **settings: str) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(*given, **settings)
    return counter.get_total_flops()


def test_halos_and_working_out_twice_cost_what_they_may():
    """At the released size: rows that two bands see are worked out by both, and the lean ways repeat half of the
    convolutions in residual blocks."""
    vae, pictures = full_size(), torch.empty(1, 3, 576, 1024, device=META)
    whole = work(vae.encoder, pictures)
    quick, *lean = (work(vae.encode, pictures, mode=mode) for mode in MODES)
    assert whole < quick <= 1.03 * whole
    assert all(1.3 * whole <= each <= 1.5 * whole for each in lean)


# Memory that runs out


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, lambda: RuntimeError("MPS backend out of memory")])
@torch.inference_mode()
def test_an_encode_goes_on_leaner_when_memory_is_taken(vae, narrow, monkeypatch, error):
    """As if another program had taken the device's memory after the plan was made."""
    pictures, tried = pixels(40, 72), []

    def short_of_memory(layers, picture, dtype, mode):
        tried.append(mode)
        if len(tried) < 3:
            raise error()
        return encode_picture(layers, picture, dtype, mode)

    expected = vae.encode(pictures)
    monkeypatch.setattr(svd_core.decode.pictures, "encode_picture", short_of_memory)
    monkeypatch.setattr(svd_core.decode.pictures, "has_own_memory", lambda _: True)
    assert torch.equal(vae.encode(pictures), expected)
    assert tried == ["device", "host", "bands"]


@torch.inference_mode()
def test_other_errors_are_not_tried_again(vae, narrow, monkeypatch):
    tried = []

    def broken(layers, picture, dtype, mode):
        tried.append(mode)
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(svd_core.decode.pictures, "encode_picture", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        vae.encode(pixels(40, 72))
    assert tried == ["device"]
