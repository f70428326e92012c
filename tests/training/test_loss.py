"""The loss of the video stage, the random numbers in it, and the averaged weights."""

import copy
import dataclasses
import math

import pytest
import torch

from svd_core.conditioning import Conditioning, MicroConditioning
from svd_core.config import LATENT_SCALE
from svd_core.sampling.denoise import Denoiser
from training import ema
from training.autoencoder import moments
from training.data import Clip
from training.initialise import freeze_unread, new_clip_vision, new_unet, new_vae
from training.loss import draw, v_loss, v_target
from training.randomness import generator_for, seed_for
from training.recipe import Noise
from training.reconstruction import difference_loss, divergence, reconstruction_loss
from training.video import CachedSamples, VideoObjective, drawn_for


def network(x, c_noise, context, vector, num_frames):
    """Something that depends on all of its inputs."""
    parts = x[:, :4] * 0.7 - x[:, 4:] * 0.2 + c_noise[:, None, None, None]
    return parts + context.mean(dim=(1, 2))[:, None, None, None] + vector.mean(1)[:, None, None, None]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2 * 3, 4, 4, 6, generator=generator) for _ in range(2))
    parts = (torch.randn(shape, generator=generator) for shape in ((2, 1, 8), (2, 4, 4, 6), (2, 12)))
    return latents, noise, Conditioning(*parts)


def test_the_v_loss_is_the_weighted_loss_of_the_denoised_latent(batch):
    latents, noise, conditioning = batch
    sigma = torch.tensor([0.3, 40.0])
    loss = v_loss(network, latents, noise, sigma, conditioning, 3)
    per_frame = sigma.repeat_interleave(3)[:, None, None, None]
    denoised = Denoiser(network, conditioning, 3)(latents + per_frame * noise, per_frame.flatten())
    weight = (1 + per_frame**2) / per_frame**2  # lambda of the paper
    torch.testing.assert_close(loss, (weight * (denoised - latents) ** 2).mean(), rtol=1e-4, atol=0)


def test_a_network_that_answers_the_target_has_no_loss(batch):
    latents, noise, conditioning = batch
    sigma = torch.tensor([0.01, 500.0])
    target = v_target(latents, noise, sigma.repeat_interleave(3)[:, None, None, None])
    assert v_loss(lambda *_, **__: target, latents, noise, sigma, conditioning, 3) == 0


def test_sigma_is_shared_by_the_frames_of_a_clip(batch):
    latents, noise, conditioning = batch
    heard = []

    def listen(x, c_noise, *rest, **more):
        heard.append(c_noise)
        return network(x, c_noise, *rest, **more)

    v_loss(listen, latents, noise, torch.tensor([2.0, 7.0]), conditioning, 3)
    assert torch.equal(heard[0], torch.tensor([2.0] * 3 + [7.0] * 3).log() / 4)


def test_drawn_numbers_have_the_stated_distributions():
    noise = Noise(p_mean=1.0, p_std=1.6, drop_context=0.2, drop_first=0.1)
    drawn = [draw(noise, 1, 8, 8, generator_for(0, "test", number)) for number in range(4000)]
    sigma = torch.stack([each.sigma for each in drawn]).log()
    augmentation = torch.stack([each.augmentation for each in drawn]).log()
    assert sigma.mean() == pytest.approx(1.0, abs=0.1)
    assert sigma.std() == pytest.approx(1.6, abs=0.1)
    assert augmentation.mean() == pytest.approx(-3.0, abs=0.05)
    assert augmentation.std() == pytest.approx(0.5, abs=0.05)
    kept = torch.stack([torch.stack([each.keep_context, each.keep_first]) for each in drawn])
    assert kept.mean(0).tolist() == pytest.approx([0.8, 0.9], abs=0.03)
    both_dropped = (kept.sum(1) == 0).float().mean()
    assert both_dropped == pytest.approx(0.02, abs=0.01), "the two are dropped independently"


def test_the_vector_says_fps_bucket_and_augmentation_as_at_inference():
    clip = Clip(torch.zeros(2, 3, 16, 16), fps=9, motion_bucket=40)
    drawn = drawn_for(clip, 2, Noise(), 48, seed=3, number=5)
    amount = float(draw(Noise(), 2, 16, 16, generator_for(3, "noise", 5)).augmentation)
    assert torch.equal(drawn["vector"], MicroConditioning(9, 40, amount).vector(48)[0])
    assert drawn["noisy_still"].std() == pytest.approx(amount, rel=0.1)


@pytest.fixture(scope="module")
def objective(tiny_model):
    make = torch.Generator().manual_seed(0)
    parts = (new_unet(tiny_model.unet, make), new_clip_vision(tiny_model.clip_vision, make))
    return VideoObjective(*parts, new_vae(tiny_model.vae, make))


def batch_of(keep_context: float, keep_first: float, noise: Noise = Noise()) -> dict[str, torch.Tensor]:  # noqa: B008
    clip = Clip(torch.rand(2, 3, 64, 64) * 2 - 1, 7, 127)
    drawn = drawn_for(clip, 2, noise, 48, seed=0, number=0) | {"pixels": clip.pixels}
    drawn |= {"keep_context": torch.tensor(keep_context), "keep_first": torch.tensor(keep_first)}
    return {name: tensor[None] for name, tensor in drawn.items()}


@pytest.mark.parametrize(("keep_context", "keep_first"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_dropping_zeroes_one_condition_and_leaves_the_other(objective, keep_context, keep_first):
    batch = batch_of(1.0, 1.0)
    whole = objective.condition(batch)
    batch |= {"keep_context": torch.tensor([keep_context]), "keep_first": torch.tensor([keep_first])}
    part = objective.condition(batch)
    assert torch.equal(part.context, whole.context * keep_context)
    assert torch.equal(part.first, whole.first * keep_first)
    assert torch.equal(part.vector, whole.vector)
    assert whole.context.abs().sum() > 0 and whole.first.abs().sum() > 0


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_a_network_in_bf16_learns_the_same_target_in_float32(objective, tiny_model, monkeypatch, posterior):
    heard = []

    def listen(found, target):
        heard.append((found.dtype, target))
        return torch.zeros(())

    monkeypatch.setattr(torch.nn.functional, "mse_loss", listen)
    batch = batch_of(1.0, 1.0, Noise(posterior=posterior))
    objective(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective(batch)
    half = [copy.deepcopy(network).bfloat16() for network in (objective.unet, objective.clip_vision)]
    VideoObjective(*half, objective.vae, torch.bfloat16)(batch)
    for dtype, target in heard:
        assert dtype == target.dtype == torch.float32
        assert torch.equal(target, heard[0][1])
    assert len(heard) == 3


def test_a_sample_of_the_posterior_is_as_far_from_its_mean_as_the_encoder_says(objective):
    batch = batch_of(1.0, 1.0, Noise(posterior="sample"))
    mean, log_variance = moments(objective.vae, batch["pixels"][0])
    expected = (mean + (log_variance / 2).exp() * batch["on_posterior"][0]) * LATENT_SCALE
    torch.testing.assert_close(objective.encode(batch)[0], expected)
    del batch["on_posterior"]
    torch.testing.assert_close(objective.encode(batch)[0], mean * LATENT_SCALE)
    shard = {"latents": torch.zeros(1, 2, 4, 8, 8), "log_variance": torch.full((1, 2, 4, 8, 8), 2 * math.log(3))}
    shard |= {"still": torch.zeros(1, 3, 64, 64), "fps": torch.ones(1), "motion_bucket": torch.ones(1)}
    samples = CachedSamples([shard], Noise(posterior="sample"), 48, seed=0)
    first, second = samples[0], samples[1]
    torch.testing.assert_close(first["latents"], 3 * first["on_posterior"])
    assert not torch.equal(first["latents"], second["latents"]), "drawn anew each time that a clip is seen"
    assert torch.equal(first["latents"], samples[0]["latents"])


def test_what_else_is_drawn_does_not_depend_on_the_posterior():
    mean, sample = (draw(Noise(posterior=each), 2, 16, 16, generator_for(0)) for each in ("mean", "sample"))
    assert mean.on_posterior is None and not torch.equal(sample.on_posterior, sample.on_latent)
    for name in ("sigma", "augmentation", "keep_context", "keep_first", "on_still", "on_latent"):
        assert torch.equal(getattr(mean, name), getattr(sample, name)), name


def test_gradients_reach_all_that_is_trained_and_nothing_else(objective):
    freeze_unread(objective.unet)
    torch.nn.init.normal_(objective.unet.out[-1].weight)  # at zero, nothing would flow on the very first step
    for module in objective.unet.modules():
        for layer in (getattr(module, "proj_out", None), getattr(module, "out_layers", [None])[-1]):
            if layer is not None:
                torch.nn.init.normal_(layer.weight)
    objective(batch_of(1.0, 1.0)).backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad == (not name.startswith("vae.") and not unread(name)), name


def unread(name: str) -> bool:
    return any(part in name for part in ("attn2.to_q", "attn2.to_k", "norm2."))


def test_a_new_unet_changes_nothing_and_a_seed_is_a_network(tiny_model):
    first, second = (new_unet(tiny_model.unet, torch.Generator().manual_seed(4)) for _ in range(2))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
        assert tensor.isfinite().all(), name
    x, context, vector = torch.randn(2, 8, 4, 4), torch.randn(2, 1, 32), torch.randn(2, 48)
    assert first(x, torch.zeros(2), context, vector, num_frames=2).abs().max() == 0
    before = torch.get_rng_state()
    new_vae(tiny_model.vae, torch.Generator().manual_seed(4))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not ours"


def test_seeds_are_the_same_on_every_machine_and_differ_by_path():
    assert seed_for(0, "noise", 1) == 8489297299924972283
    assert len({seed_for(seed, part, number) for seed in (0, 1) for part in "ab" for number in range(50)}) == 200


def test_the_average_forgets_its_beginning_and_then_moves_slowly():
    assert ema.decay_at(0, 0.999) == pytest.approx(0.1)
    assert ema.decay_at(90, 0.999) == pytest.approx(0.91)
    assert ema.decay_at(10**6, 0.999) == 0.999
    average, weights = {"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([3.0, 0.0])}
    ema.update(average, weights, 0.75)
    assert torch.allclose(average["w"], torch.tensor([1.5, 0.75]))


def test_reconstruction_counts_values_and_edges():
    pixels = torch.zeros(1, 3, 4, 4)
    shifted = pixels + 0.5
    assert reconstruction_loss(pixels, pixels, 1.0, 1.0) == 0
    assert reconstruction_loss(shifted, pixels, squared=0.0, edges=5.0) == pytest.approx(0.5), "no edge has moved"
    assert reconstruction_loss(shifted, pixels, squared=2.0, edges=0.0) == pytest.approx(1.0)
    step = pixels.clone()
    step[..., 2:] = 1
    assert reconstruction_loss(step, pixels, squared=0.0, edges=3.0) == pytest.approx(0.5 + 3 / 3)


def test_differences_see_flicker_and_not_an_offset():
    clip = torch.rand(1, 4, 3, 4, 4)
    flicker = torch.tensor([0.1, -0.1, 0.1, -0.1])[None, :, None, None, None]
    assert difference_loss(clip + 0.3, clip) == pytest.approx(0, abs=1e-6)
    assert difference_loss(clip + flicker, clip) == pytest.approx(0.2, rel=1e-4)
    assert difference_loss(clip[:, :1], clip[:, :1]) == 0


def test_divergence_is_zero_for_a_unit_normal():
    assert divergence(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)) == 0
    assert divergence(torch.ones(1), torch.full((1,), math.log(4.0))) == pytest.approx(0.5 * (1 + 4 - 1 - math.log(4)))


def test_noise_is_a_frozen_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Noise().p_mean = 1.0
