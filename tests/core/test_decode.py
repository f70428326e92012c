"""Streamed decoding: the plain decoder's result, the same bits for every chunk and budget, in little memory."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from weights import randomise, relative

from svd_core.config import VAEConfig
from svd_core.decode.plan import chunk_for_budget, streamed_bytes
from svd_core.decode.stream import Affine, Moments
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
    assert all(torch.equal(cast.decode(z, 5, budget=budget), first) for budget in (1, 10**12))


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
    """Spec 14.8: what other decoders do to save memory, and why this one does not."""
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
    """Values far from zero, in parts of unequal size: where sums of squares would cancel."""
    norm = randomise(torch.nn.GroupNorm(32, 64, eps=1e-5))
    tokens = torch.randn(1, 50, 64) * torch.linspace(0.01, 2, 50)[None, :, None] + 300
    affine = Affine.of(norm, [Moments.of(part) for part in tokens.split([7, 20, 20, 3], dim=1)])
    expected = torch.nn.functional.silu(norm.double()(tokens.double().mT).mT)
    assert relative(affine.silu(tokens), expected) <= 1e-4
    assert relative(affine.silu(tokens), expected) <= 2 * relative(
        torch.nn.functional.silu(norm.float()(tokens.mT).mT), expected
    )


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors alive at once; on the meta device that is a peak without the memory."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in self.known:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.known[key] = weakref.finalize(storage, self._remove, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _remove(self, key, size):
        self.now -= size
        del self.known[key]


def full_size(temporal: bool = True, dtype: torch.dtype = torch.float16) -> VideoVAE:
    config = VAEConfig(temporal=temporal, decoder_quant=not temporal)
    return VideoVAE(config, backend=Backend(device="meta", dtype=dtype))


def peak(vae: VideoVAE, z: torch.Tensor, **settings: int) -> int:
    with torch.no_grad(), LiveBytes() as live:
        vae.decode(z, len(z), **settings)
    return live.peak


def peak_whole(vae: VideoVAE, z: torch.Tensor) -> int:
    with torch.no_grad(), LiveBytes() as live:
        vae.decode_whole(z, len(z))
    return live.peak


@pytest.mark.parametrize(
    ("frames", "chunk", "dtype"),
    [(1, 1, torch.float16), (14, 1, torch.float16), (14, 14, torch.float16), (25, 25, torch.float32)],
)
def test_the_estimate_covers_the_peak_and_is_not_far_above(frames, chunk, dtype):
    vae = full_size(dtype=dtype)
    z = torch.empty(frames, 4, 72, 128, device="meta", dtype=dtype)
    measured, estimate = peak(vae, z, chunk=chunk), streamed_bytes(vae.config, z, frames, chunk)
    assert measured <= estimate <= 2 * measured


def test_the_image_decoders_estimate_covers_its_peak():
    vae = full_size(temporal=False)
    z = torch.empty(14, 4, 72, 128, device="meta", dtype=torch.float16)
    measured, estimate = peak(vae, z, chunk=1), streamed_bytes(vae.config, z, 14, 1)
    assert measured <= estimate <= 2 * measured


def test_a_full_size_clip_fits_in_four_gibibytes():
    """14 frames of 576x1024 in 16 bits; the plain decoder needs three times as much."""
    vae = full_size()
    z = torch.empty(14, 4, 72, 128, device="meta", dtype=torch.float16)
    assert peak(vae, z, chunk=1) <= 4 * 2**30
    assert peak_whole(vae, z) >= 3 * peak(vae, z, chunk=1)


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


def test_a_larger_budget_never_picks_a_smaller_chunk():
    z = torch.empty(14, 4, 72, 128, device="meta", dtype=torch.float16)
    chunks = [chunk_for_budget(VAEConfig(), z, 14, budget) for budget in range(2**29, 6 * 2**30, 2**27)]
    assert chunks == sorted(chunks)
    assert chunks[0] == 1
    assert chunks[-1] == 14


def test_the_chosen_chunk_fits_its_budget():
    z = torch.empty(14, 4, 72, 128, device="meta", dtype=torch.float16)
    budget = int(4.5 * 2**30)
    chunk = chunk_for_budget(VAEConfig(), z, 14, budget)
    assert 1 < chunk < 14
    assert peak(full_size(), z, chunk=chunk) <= budget
