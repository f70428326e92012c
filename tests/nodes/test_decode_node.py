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


@torch.inference_mode()
def test_tiles_may_be_given_by_position_and_are_not_needed(loaded, latents):
    clip = latents[:FRAMES]
    assert torch.equal(loaded.vae.decode_tiled(clip, 8, 8, 2), loaded.vae.decode(clip))


@torch.inference_mode()
def test_the_hosted_network_takes_a_batch_for_one_clip(loaded, latents):
    network = loaded.vae.first_stage_model
    assert torch.equal(network.decode(latents), network.decode(latents, num_frames=2 * FRAMES))


@pytest.fixture
def corners(part, monkeypatch):
    """Counts an upsampler's convolutions that run by corner, from four pixels on."""
    calls, fused, few = [], part("svd_core.model.fused"), {torch.float32: 4}
    by_corner = fused.smoothed_by_corner
    monkeypatch.setattr(part("svd_core.model.cpu.conv"), "DOUBLED_PIXELS", few)
    monkeypatch.setattr(fused, "smoothed_by_corner", lambda *args: calls.append(args) or by_corner(*args))
    return calls, few


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
def test_upsamplers_run_by_corner_with_the_weights_that_their_layers_compute_with(
    decode, latents, loaded, corners, patched, monkeypatch
):
    calls, few = corners
    upsamplers = [level.upsample for level in loaded.vae.first_stage_model.decoder.up if hasattr(level, "upsample")]
    plain = decode(latents[:FRAMES])
    for upsampler in upsamplers if patched else ():
        monkeypatch.setattr(upsampler.conv, "weight_function", [lambda weight: weight * 1.5], raising=False)
        monkeypatch.setattr(upsampler.conv, "bias_function", [lambda bias: bias + 0.1], raising=False)
    calls.clear()
    images = decode(latents[:FRAMES])
    assert len(calls) >= len(upsamplers) > 0
    assert torch.allclose(images, plain, atol=1e-3) is not patched
    calls.clear()
    few.clear()
    assert relative(images, decode(latents[:FRAMES])) < 1e-5
    assert not calls


def test_what_cannot_be_decoded_is_refused(decode, latents, input_error):
    with pytest.raises(
        input_error, match="holds 4 frames, which is not a whole number of clips of 3: connect the whole"
    ):
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
