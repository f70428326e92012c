"""Loop: a decoder that wraps around in time, and a score for the seam."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from weights import randomise, relative

from benchmarks.device_bytes import device_bytes
from svd_core.config import VAEConfig
from svd_core.errors import InputError
from svd_core.model.vae import VideoVAE
from svd_core.motion import require_loop, seam_score

SMALL = VAEConfig(channels=32, res_blocks=1)


@pytest.fixture(scope="module")
def vae():
    return randomise(VideoVAE(SMALL))


@torch.inference_mode()
def test_a_loop_decodes_the_same_wherever_it_begins(vae):
    z = torch.randn(5, 4, 2, 3)
    looped = vae.decode(z, 5, circular=True)
    for shift in range(1, 5):
        turned = vae.decode(z.roll(shift, 0), 5, circular=True)
        assert relative(turned, looped.roll(shift, 0)) < 1e-5
    assert relative(vae.decode(z.roll(1, 0), 5), vae.decode(z, 5).roll(1, 0)) > 1e-3


@pytest.mark.parametrize("frames", [1, 2, 5])
@torch.inference_mode()
def test_a_streamed_loop_is_the_plain_one_for_every_chunk_and_mode(vae, frames):
    z = torch.randn(frames, 4, 2, 3)
    plain = vae.decode_whole(z, frames, circular=True)
    first = vae.decode(z, frames, circular=True)
    assert relative(first, plain) <= 1e-5
    for choice in ({"chunk": 1}, {"chunk": 2}, {"mode": "host"}, {"mode": "bands"}, {"budget": 10**9}):
        assert torch.equal(vae.decode(z, frames, circular=True, **choice), first)


@torch.inference_mode()
def test_it_is_off_by_default_and_nothing_to_a_frame_wise_decoder(vae):
    z = torch.randn(4, 4, 2, 2)
    assert torch.equal(vae.decode(z, 4), vae.decode(z, 4, circular=False))
    assert not torch.equal(vae.decode(z, 4), vae.decode(z, 4, circular=True))
    frame_wise = randomise(VideoVAE(replace(SMALL, temporal=False, decoder_quant=True)))
    assert torch.equal(frame_wise.decode(z, 4), frame_wise.decode(z, 4, circular=True))


@pytest.mark.parametrize("mode", ["device", "host", "bands"])
def test_what_wrapping_around_takes_is_planned(mode):
    with torch.device("meta"):
        network = VideoVAE(VAEConfig()).half().eval()
        z = torch.empty(14, 4, 24, 32, dtype=torch.float16)
    plan = network.decode_plan(z.shape, 14, z.device, chunk=1, mode=mode, circular=True)
    with device_bytes(network) as live:
        network.decode(z, 14, chunk=1, mode=mode, circular=True)
    assert live.peak <= 1.1 * plan.device_bytes
    assert plan.device_bytes <= 1.25 * live.peak


def test_the_seam_is_measured_against_the_median_step():
    even = np.zeros((4, 2, 2, 3))
    even += np.array([0.0, 0.1, 0.2, 0.1])[:, None, None, None]
    assert seam_score(even) == pytest.approx(1.0)
    cut = np.arange(5)[:, None, None, None] * np.full((1, 2, 2, 3), 0.1)
    assert seam_score(cut) == pytest.approx(4.0)
    still = np.zeros((4, 2, 2, 3))
    assert seam_score(still) == 1.0
    still[2] = 1.0
    still[3] = 1.0
    assert seam_score(np.concatenate([np.zeros((4, 2, 2, 3)), np.ones((1, 2, 2, 3))])) == float("inf")


def test_a_loop_of_two_frames_is_refused():
    with pytest.raises(InputError, match="a loop of 2 frames cannot leave the picture and come back: ask for at least"):
        require_loop(2)
    require_loop(4)
    with pytest.raises(InputError, match="has no seam to measure"):
        seam_score(np.zeros((2, 4, 4, 3)))
