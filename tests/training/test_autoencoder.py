"""What happens to the autoencoder between its stages."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from svd_core.config import LATENT_SCALE
from training.autoencoder import (
    FrameSamples,
    ImageObjective,
    TemporalObjective,
    copy_spatial,
    image_config,
    latent_rms,
    moments,
    rescale_latents,
)
from training.data import open_folder
from training.initialise import new_vae


def make(config, seed: int = 0):
    return new_vae(config, torch.Generator().manual_seed(seed)).eval()


@pytest.fixture
def pixels():
    return torch.rand(6, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("encoder_quant", [False, True])
@pytest.mark.parametrize("decoder_quant", [False, True])
@torch.no_grad()
def test_rescaling_gives_latents_unit_variance_and_changes_no_picture(tiny_model, pixels, encoder_quant, decoder_quant):
    quants = {"encoder_quant": encoder_quant, "decoder_quant": decoder_quant}
    vae = make(dataclasses.replace(tiny_model.vae, temporal=False, **quants))
    latents, (_, log_variance) = vae.encode(pixels), moments(vae, pixels)
    decoded = vae.decode_whole(latents, num_frames=1)
    rms = latent_rms(vae, [pixels[:2], pixels[2:4], pixels[4:]])
    vae.load_state_dict(rescale_latents(vae.config, vae.state_dict(), rms))
    rescaled = vae.encode(pixels)
    in_sampler_units = (rescaled * LATENT_SCALE).square().mean(dim=(0, 2, 3)).sqrt()
    torch.testing.assert_close(in_sampler_units, torch.ones(4), rtol=1e-5, atol=0)
    torch.testing.assert_close(vae.decode_whole(rescaled, num_frames=1), decoded, rtol=1e-4, atol=1e-5)
    # Posteriors keep their shape: mean and deviation have grown by the same factor.
    grown = (moments(vae, pixels)[1] - log_variance).exp().sqrt()
    torch.testing.assert_close(grown, rescaled / latents, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_temporal_decoder_starts_as_the_image_decoder(tiny_model, pixels):
    image = make(image_config(tiny_model.vae))
    video = copy_spatial(image, make(tiny_model.vae, seed=1))
    latents = image.encode(pixels)
    assert torch.equal(video.encode(pixels), latents)
    expected = image.decode_whole(latents, num_frames=1)
    torch.testing.assert_close(video.decode_whole(latents, num_frames=3), expected, rtol=1e-5, atol=1e-5)


def test_samples_are_frames_of_one_clip(clips):
    source = open_folder(clips, frames=3)
    whole = source.clip(4).pixels
    some = FrameSamples(source, 2, 0, consecutive=False)[4]
    assert some["pixels"].shape == (2, 3, 32, 32) and some["noise"].shape == (2, 4, 4, 4)
    places = [[int(i) for i in range(3) if torch.equal(frame, whole[i])] for frame in some["pixels"]]
    assert places[0] != places[1] and all(places)
    starts = set()
    for number in range(20):
        run = FrameSamples(source, 2, 0, consecutive=True)[number]["pixels"]
        clip = source.clip(number).pixels
        (start,) = (i for i, pair in enumerate(pairwise(clip)) if torch.equal(torch.stack(pair), run))
        starts.add(start)
    assert starts == {0, 1}


@pytest.mark.parametrize("stage", ["autoencoder", "temporal"])
def test_gradients_reach_all_that_is_trained_and_nothing_else(tiny, pixels, stage):
    settings = getattr(tiny, stage)
    batch = {"pixels": pixels.unflatten(0, (2, 3)), "noise": torch.randn(2, 3, 4, 4, 6)}
    if stage == "autoencoder":
        objective = ImageObjective(make(image_config(tiny.model.vae)), settings)
        untrained = ()
    else:
        vae = make(tiny.model.vae)
        for parameter in vae.parameters():  # at zero, nothing would flow on the very first step
            torch.nn.init.normal_(parameter, std=0.1)
        objective = TemporalObjective(vae, settings)
        untrained = ("vae.encoder.", "vae.quant_conv.")
    objective(batch).backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith(untrained) if untrained else True), name
        moves = parameter.grad is not None and not name.endswith(".k.bias")  # softmax does not see a shift of all keys
        assert not moves or parameter.grad.abs().sum() > 0, name


def test_autocast_does_not_round_what_the_decoder_learns_from(tiny, pixels):
    objective = TemporalObjective(make(tiny.model.vae), tiny.temporal)
    heard = []
    objective.vae.decode_whole = lambda latents, num_frames: heard.append(latents) or pixels
    batch = {"pixels": pixels.unflatten(0, (2, 3))}
    objective(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective(batch)
    assert heard[1].dtype == torch.float32
    assert torch.equal(*heard)
