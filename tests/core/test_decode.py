"""Streamed decoding: the plain decoder's result, the same bits for every chunk and budget, in little memory."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from weights import randomise, relative

import svd_core.decode.convolving
import svd_core.decode.run
import svd_core.model.vae
from benchmarks.device_bytes import device_bytes
from svd_core.config import VAEConfig
from svd_core.decode.norms import Affine, Moments
from svd_core.decode.places import MODES, band_bytes
from svd_core.decode.plan import DecodePlan
from svd_core.decode.stream import stream
from svd_core.errors import InputError
from svd_core.model.backend import Backend
from svd_core.model.vae import VideoVAE

SMALL = VAEConfig(channels=32, res_blocks=1)
SHAPES = [(4, 2, 4), (5, 3, 5), (7, 1, 3), (4, 1, 1), (1, 5, 3)]  # frames, h, w


@pytest.fixture(scope="module")
def vae():
    return randomise(VideoVAE(SMALL))


@pytest.fixture(scope="module")
def image_vae():
    return randomise(VideoVAE(replace(SMALL, temporal=False, decoder_quant=True)))


def ramped(frames: int, height: int, width: int) -> torch.Tensor:
    """Latents whose amplitude grows along the clip, so that statistics of a part differ from those of the whole."""
    return torch.randn(frames, 4, height, width) * torch.linspace(0.3, 3, frames)[:, None, None, None]


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_streamed_equals_plain_for_every_chunk(vae, shape):
    z = ramped(*shape)
    plain = vae.decode_whole(z, len(z))
    for chunk in {1, 2, len(z), len(z) + 1}:
        assert relative(vae.decode(z, len(z), chunk=chunk), plain) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_no_bit_depends_on_chunk_or_budget(vae, dtype):
    cast = VideoVAE(SMALL).to(dtype)
    cast.load_state_dict(vae.state_dict())
    z = ramped(5, 1, 3).to(dtype)
    first = cast.decode(z, 5, chunk=1)
    assert first.dtype == dtype
    assert all(torch.equal(cast.decode(z, 5, chunk=chunk), first) for chunk in (2, 3, 4, 25, None))
    assert all(torch.equal(cast.decode(z, 5, budget=budget), first) for budget in (2**28, 10**12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_streaming_rounds_no_worse_than_the_plain_decoder(vae, dtype):
    """Class rounding: against float64, at most twice the error of the plain expression in the same dtype."""
    cast, precise = VideoVAE(SMALL).to(dtype), VideoVAE(SMALL).double()
    cast.load_state_dict(vae.state_dict())
    precise.load_state_dict(cast.state_dict())
    z = ramped(3, 3, 5).to(dtype)
    exact = precise.decode_whole(z.double(), 3)
    assert relative(cast.decode(z, 3, chunk=2), exact) <= 2 * relative(cast.decode_whole(z, 3), exact)


@torch.inference_mode()
def test_cutting_a_clip_changes_it(vae):
    """Spec 14, test 8: what other decoders do to save memory, and why this one does not."""
    z = ramped(5, 3, 5)
    cut = torch.cat([vae.decode(z[:3], 3), vae.decode(z[3:], 2)])
    assert relative(cut, vae.decode(z, 5)) > 0.01


@torch.inference_mode()
def test_one_frame_equals_that_frame_alone(vae):
    z = ramped(3, 3, 5)
    joint = vae.decode_whole(z, num_frames=1)
    streamed = vae.decode(z, num_frames=1, chunk=1)
    for index in range(3):
        alone = vae.decode_whole(z[index : index + 1], num_frames=1)
        assert relative(joint[index : index + 1], alone) <= 1e-5
        assert torch.equal(streamed[index : index + 1], vae.decode(z[index : index + 1], num_frames=1, chunk=1))


@torch.inference_mode()
def test_clips_do_not_leak_into_each_other(vae):
    z = torch.cat([ramped(3, 3, 5), 5 * ramped(3, 3, 5)])
    apart = torch.cat([vae.decode(clip, 3, chunk=2) for clip in z.split(3)])
    assert torch.equal(vae.decode(z, 3, chunk=2), apart)


@torch.inference_mode()
def test_the_image_decoder_streams_too(image_vae):
    z = ramped(5, 3, 5)
    plain, streamed = image_vae.decode_whole(z, 5), image_vae.decode(z, 5, chunk=1)
    assert relative(streamed, plain) <= 1e-5
    assert torch.equal(image_vae.decode(z, 5, budget=10**12), streamed)


def test_streaming_records_no_gradients(vae):
    z = ramped(3, 3, 5).requires_grad_()
    assert not vae.decode(z, 3, chunk=1).requires_grad


@torch.inference_mode()
def test_statistics_from_parts_equal_those_of_the_whole():
    """Values far from zero, the last part shorter than the others: where sums of squares would cancel."""
    norm = randomise(torch.nn.GroupNorm(32, 64, eps=1e-5))
    tokens = torch.randn(1, 50, 64) * torch.linspace(0.01, 2, 50)[None, :, None] + 300
    affine = Affine.of(norm, [Moments.of(part) for part in tokens.split(14, dim=1)])
    expected = torch.nn.functional.silu(norm.double()(tokens.double().mT).mT)
    assert relative(affine.silu(tokens), expected) <= 1e-4
    assert relative(affine.silu(tokens), expected) <= 2 * relative(
        torch.nn.functional.silu(norm.float()(tokens.mT).mT), expected
    )


def full_size(temporal: bool = True, dtype: torch.dtype = torch.float16) -> VideoVAE:
    config = VAEConfig(temporal=temporal, decoder_quant=not temporal)
    return VideoVAE(config, backend=Backend(device="meta", dtype=dtype, attention=fused))


def fused(q, k, v):
    """What a fused kernel holds; on the meta device torch would count the matrix of scores."""
    return torch.empty_like(q)


def peak(vae: VideoVAE, z: torch.Tensor, **settings: object) -> int:
    """Bytes on the device beside the weights and the latents."""
    with device_bytes(vae) as live:
        vae.decode(z, len(z), **settings)
    return live.peak


def peak_whole(vae: VideoVAE, z: torch.Tensor) -> int:
    with device_bytes(vae) as live:
        vae.decode_whole(z, len(z))
    return live.peak


def latents(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    frames, height, width = shape
    return torch.empty(frames, 4, height, width, device="meta", dtype=dtype)


SIZES = [(1, 16, 16), (5, 13, 21), (3, 40, 64), (2, 72, 128)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_the_prediction_is_within_a_tenth_of_the_peak(mode, dtype, size):
    vae, z = full_size(dtype=dtype), latents(*size, dtype=dtype)
    predicted = vae.decode_plan(z.shape, len(z), z.device, chunk=2, mode=mode).device_bytes
    assert predicted == pytest.approx(peak(vae, z, chunk=2, mode=mode), rel=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_the_prediction_holds_for_the_image_decoder(mode):
    vae, z = full_size(temporal=False), latents(3, 40, 64)
    predicted = vae.decode_plan(z.shape, len(z), z.device, mode=mode).device_bytes
    assert predicted == pytest.approx(peak(vae, z, mode=mode), rel=0.1)


def test_what_the_device_holds_does_not_grow_with_the_clip_when_streaming():
    vae = full_size()
    for mode in ("host", "bands"):
        short, long = (vae.decode_plan((t, 4, 72, 128), t, torch.device("meta"), mode=mode) for t in (25, 1000))
        assert long.device_bytes <= 1.01 * short.device_bytes
        few, many = (peak(vae, latents(t, 12, 20), mode=mode) for t in (8, 32))
        assert many <= 1.1 * few


def test_a_full_size_clip_fits_where_the_issue_says():
    """25 frames of 576x1024 in 16 bits, by the prediction that the tests above hold to the count."""
    vae, shape = full_size(), (25, 4, 72, 128)
    plans = {mode: vae.decode_plan(shape, 25, torch.device("meta"), chunk=1, mode=mode) for mode in MODES}
    assert plans["device"].device_bytes <= 6.5 * 2**30
    assert plans["host"].device_bytes <= 0.75 * 2**30
    assert plans["bands"].device_bytes <= 2**28


def test_streaming_takes_a_quarter_of_the_plain_decode():
    """Fewer frames than a clip, so that counting is quick; the share only falls with more."""
    vae, z = full_size(), latents(4, 72, 128)
    assert peak(vae, z, mode="device", chunk=1) < peak_whole(vae, z) / 2
    assert peak(vae, z, mode="bands") < peak_whole(vae, z) / 8


def work(vae: VideoVAE, z: torch.Tensor, **settings: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae.decode(z, len(z), **settings)
    return counter.get_total_flops()


def test_keeping_everything_costs_no_extra_work_and_keeping_little_a_twelfth():
    vae = full_size()
    z = torch.empty(6, 4, 36, 64, device="meta", dtype=torch.float16)
    plain = work(vae, z)
    assert work(vae, z, chunk=6) == plain
    assert plain < work(vae, z, chunk=3) < work(vae, z, chunk=1) < plain * 13 / 12


GPU = torch.device("meta")


def planned(budget: int, device: torch.device = GPU, frames: int = 14, **settings: object) -> DecodePlan:
    return full_size().decode_plan((frames, 4, 72, 128), frames, device, budget=budget, **settings)


def test_a_larger_budget_never_picks_a_slower_way():
    plans = [planned(budget) for budget in range(2**28, 6 * 2**30, 2**27)]
    speeds = [(-MODES.index(plan.mode), plan.keep) for plan in plans]
    assert speeds == sorted(speeds)
    assert {plan.mode for plan in plans} == set(MODES)
    assert (plans[-1].mode, plans[-1].keep) == ("device", 14)
    assert all(plan.device_bytes <= budget for plan, budget in zip(plans, range(2**28, 6 * 2**30, 2**27), strict=True))


def test_a_smaller_chunk_and_a_mode_bind_the_choice():
    assert planned(2**40, chunk=3).keep == 3
    assert planned(2**40, mode="bands").mode == "bands"


@pytest.mark.parametrize("device", [GPU, torch.device("cpu")])
def test_a_budget_that_holds_nothing_is_refused_with_the_least_that_works(device):
    with pytest.raises(InputError, match=r"budget of 1 MiB .* 14 frames of 1024x576: give at least \d+ MiB") as error:
        planned(2**20, device)
    least = int(re.search(r"least (\d+) MiB", str(error.value))[1]) * 2**20
    assert planned(least, device).device_bytes <= least
    with pytest.raises(InputError, match="give at least"):
        planned(least - 2**20, device)
    named = least // 2**20
    with pytest.raises(InputError, match=f"a budget of {named - 1} MiB .*: give at least {named} MiB"):
        planned(least - 2**20 + 1, device)


def test_the_hosts_memory_is_the_devices_on_a_cpu():
    assert planned(4 * 2**30, torch.device("cpu")).mode == "device"
    with pytest.raises(InputError, match="give at least"):
        planned(2**30, torch.device("cpu"))


@pytest.mark.parametrize(("gibibytes", "size"), [(8, 2**25), (24, 2**25), (80, 2**26)])
def test_bands_go_by_the_device_and_not_by_what_is_free(monkeypatch, gibibytes, size):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    given = SimpleNamespace(total_memory=gibibytes * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: given)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: pytest.fail("what is free was asked for"))
    assert band_bytes(torch.device("cuda")) == size
    assert band_bytes(torch.device("cpu")) < 2**25  # C's allocator
    assert band_bytes(torch.device("meta")) == band_bytes(torch.device("mps")) == 2**25


def test_an_unknown_mode_is_refused(vae):
    with pytest.raises(InputError, match="decode mode 'disk' is not known: choose one of device, host, bands"):
        vae.decode(ramped(1, 1, 1), 1, mode="disk")


@pytest.fixture
def narrow(monkeypatch):
    """Bands and strips so small that a small clip has many."""
    monkeypatch.setattr(svd_core.model.vae, "band_bytes", lambda device: 120000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 6, 5), (1, 5, 3), (3, 1, 1)])
@torch.inference_mode()
def test_no_bit_depends_on_where_activations_stay(vae, narrow, dtype, shape):
    cast = VideoVAE(SMALL).to(dtype)
    cast.load_state_dict(vae.state_dict())
    z = ramped(*shape).to(dtype)
    first = cast.decode(z, len(z))
    for mode in MODES:
        assert all(torch.equal(cast.decode(z, len(z), chunk=chunk, mode=mode), first) for chunk in (1, 3))


@torch.inference_mode()
def test_bands_leave_no_seams(vae, image_vae, narrow):
    """The plain decoder's result where every layer is cut into bands and every clip into strips."""
    z = ramped(4, 9, 7)
    assert relative(vae.decode(z, 4), vae.decode_whole(z, 4)) <= 1e-5
    assert relative(image_vae.decode(z, 4), image_vae.decode_whole(z, 4)) <= 1e-5


@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_batches_of_clips_decode_clip_by_clip_in_every_mode(vae, mode):
    z = torch.cat([ramped(2, 3, 5), 5 * ramped(2, 3, 5)])
    assert torch.equal(vae.decode(z, 2, mode=mode), torch.cat([vae.decode(clip, 2) for clip in z.split(2)]))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [25, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_long_clip_is_the_same_bits_for_every_chunk_and_budget(vae, frames, dtype):
    cast = VideoVAE(SMALL).to(dtype)
    cast.load_state_dict(vae.state_dict())
    z = ramped(frames, 8, 16).to(dtype)
    first = cast.decode(z, frames)
    for settings in [{"chunk": chunk} for chunk in (1, 2, 3, 5, 8, 14, 25)] + [{"budget": 2**28}, {"budget": 2**40}]:
        assert torch.equal(cast.decode(z, frames, **settings), first)
    if dtype == torch.float32:
        assert relative(first, cast.decode_whole(z, frames)) <= 1e-5


@torch.inference_mode()
def test_a_decode_goes_on_leaner_when_memory_is_taken(vae, monkeypatch):
    """As if another program had taken the device's memory after the plan was made."""
    z, tried = ramped(3, 3, 5), []

    def short_of_memory(stages, latents, mode, keep):
        tried.append((mode, keep))
        if len(tried) < 4:
            raise torch.OutOfMemoryError
        return stream(stages, latents, mode, keep)

    expected = vae.decode(z, 3)
    monkeypatch.setattr(svd_core.decode.run, "stream", short_of_memory)
    monkeypatch.setattr(svd_core.decode.run, "has_own_memory", lambda _: True)
    assert torch.equal(vae.decode(z, 3), expected)
    assert tried == [("device", 3), ("device", 1), ("host", 1), ("bands", 1)]


@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
@torch.inference_mode()
def test_long_sums_are_as_exact_with_channels_first_and_lie_as_the_others_do(size):
    conv = randomise(torch.nn.Conv2d(svd_core.decode.convolving.LONG_SUM, 32, 3, padding=1))
    images = torch.randn(1, *size, conv.in_channels).movedim(-1, 1)
    turned, plain = svd_core.decode.convolving.convolved(conv, images), conv(images)
    exact = conv.double()(images.double())
    assert relative(turned, exact) <= 2 * relative(plain, exact) <= 1e-5
    assert turned.movedim(1, -1).is_contiguous()
