"""Loss of the video stage: the v-loss of EDM on noisy latents, and the random draws for one clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svd_core.conditioning import Conditioning
from svd_core.config import LATENT_CHANNELS, PIXELS_PER_LATENT
from svd_core.sampling.denoise import Network, v_scaling

from .recipe import Noise


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """The random part of one clip. sigma and augmentation are standard deviations, > 0; keep_context and keep_first are
    1 or 0; on_still (3, H, W), on_latent (T, 4, h, w) and on_posterior, of the same shape, are unit normal; the last is
    None for the posterior's mean. All float32 on the CPU."""

    sigma: Tensor
    augmentation: Tensor
    keep_context: Tensor
    keep_first: Tensor
    on_still: Tensor
    on_latent: Tensor
    on_posterior: Tensor | None


def draw(noise: Noise, frames: int, height: int, width: int, generator: torch.Generator) -> Draws:
    """Draws for a clip of `frames` pictures of height x width pixels. One sigma for all frames (spec 8.2)."""
    latent = (frames, LATENT_CHANNELS, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    return Draws(
        sigma=_log_normal(noise.p_mean, noise.p_std, generator),
        augmentation=_log_normal(noise.augmentation_mean, noise.augmentation_std, generator),
        keep_context=_keep(noise.drop_context, generator),
        keep_first=_keep(noise.drop_first, generator),
        on_still=torch.randn(3, height, width, generator=generator),
        on_latent=torch.randn(latent, generator=generator),
        on_posterior=torch.randn(latent, generator=generator) if noise.posterior == "sample" else None,
    )


def _log_normal(mean: float, deviation: float, generator: torch.Generator) -> Tensor:
    return (mean + deviation * torch.randn((), generator=generator)).exp()


def _keep(drop: float, generator: torch.Generator) -> Tensor:
    return (torch.rand((), generator=generator) >= drop).float()


def v_target(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Target output of the network for x = latents + sigma * noise; all shapes broadcast (spec 5.1)."""
    return (noise - sigma * latents) / (1 + sigma**2).sqrt()


def v_loss(
    network: Network, latents: Tensor, noise: Tensor, sigma: Tensor, conditioning: Conditioning, num_frames: int
) -> Tensor:
    """Mean squared error of v, which is lambda(sigma) times that of the denoised latent (spec 8.2).

    latents and noise (N, 4, h, w), N = B * num_frames, latents in sampler units; sigma (B,), one for each clip;
    conditioning has B rows. Only the network's inputs take the dtype of `conditioning.first`: target and loss are
    float32. Returns a scalar.
    """
    sigma = sigma.float().repeat_interleave(num_frames)[:, None, None, None]
    scaling = v_scaling(sigma)
    frames = conditioning.repeat_frames(num_frames)
    noisy = (latents + sigma * noise) * scaling.input
    inputs = torch.cat([noisy.to(frames.first), frames.first], dim=1)
    v = network(inputs, scaling.noise.flatten(), frames.context, frames.vector, num_frames=num_frames)
    return torch.nn.functional.mse_loss(v.float(), v_target(latents, noise, sigma))
