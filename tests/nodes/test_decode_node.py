"""Stable Video Decode: the core's frames, clip by clip, on our VAE and on ComfyUI's own."""

import pytest
import torch
from native_pair import native_trio
from weights import relative

FRAMES = 3
SCALE = 0.18215


@pytest.fixture(scope="module")
def native(pack, checkpoint):
    """ComfyUI's own classes around the same weights."""
    return native_trio(pack, checkpoint)


@pytest.fixture
def decode(call, loaded):
    def run(samples, vae=None, **carried) -> torch.Tensor:
        return call("StableVideoDecode", latent={"samples": samples, **carried}, vae=vae or loaded.vae)

    return run


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    """Two clips, unscaled."""
    return torch.randn(2 * FRAMES, 4, 8, 16, generator=torch.Generator().manual_seed(2)) / SCALE


def test_frames_are_the_cores(decode, reference, latents):
    clip = latents[:FRAMES]
    expected = torch.from_numpy(reference.decode_latents(clip * SCALE))
    assert relative(decode(clip), expected) < 1e-5


def test_clips_are_told_apart_by_what_the_latent_carries(decode, latents):
    images = decode(latents, num_video_frames=FRAMES)
    assert images.shape == (2 * FRAMES, 64, 128, 3)
    assert torch.equal(images, torch.cat([decode(clip) for clip in latents.split(FRAMES)]))
    assert not torch.allclose(images, decode(latents), atol=1e-3)


def test_a_native_vae_decodes_clip_by_clip_too(decode, latents, native):
    theirs = decode(latents, native.vae, num_video_frames=FRAMES)
    assert relative(decode(latents, num_video_frames=FRAMES), theirs) < 1e-4


def test_the_latent_is_left_as_it_was(decode, latents):
    before = latents.clone()
    decode(latents, num_video_frames=FRAMES)
    assert torch.equal(latents, before)


def test_what_cannot_be_decoded_is_refused(decode, latents, input_error):
    with pytest.raises(input_error, match="holds 4 frames, which is not a whole number of clips of 3: give 3"):
        decode(latents[:4], num_video_frames=FRAMES)
    with pytest.raises(input_error, match=r"needed \(frames, 4, height, width\): connect"):
        decode(torch.zeros(1, 16, 4, 8, 8))
    damaged = latents.clone()
    damaged[[1, 4], 2] = torch.inf
    with pytest.raises(input_error, match=r"the latent's frames \[1, 4\] hold NaN or infinity.* --fp32-unet"):
        decode(damaged, num_video_frames=FRAMES)


def test_the_vae_of_another_family_is_refused(decode, latents, input_error):
    class Flux:
        latent_channels, latent_dim = 16, 2

    with pytest.raises(input_error, match="latents of 16 channels, Stable Video needs 4: connect the VAE"):
        decode(latents, Flux())


def test_an_autoencoder_that_overflows_is_named(decode, latents, input_error):
    class Overflowing:
        latent_channels, latent_dim = 4, 2

        def decode(self, clip):
            images = torch.zeros(len(clip), 64, 128, 3)
            images[1] = torch.nan
            return images

    with pytest.raises(input_error, match=r"decoded frames \[1, 4\] hold NaN.* start ComfyUI with --fp32-vae"):
        decode(latents, Overflowing(), num_video_frames=FRAMES)
