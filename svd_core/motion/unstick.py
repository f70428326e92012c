"""Un-stick: one strength parameter that counters clips without motion.

At high noise the model copies its picture and does not move ("Identifying and Solving Conditional Image Leakage in
Image-to-Video Diffusion Model", Zhao et al., arXiv 2406.15735). Their remedy at inference: start at a lower noise
level, from the Gaussian closest to clips noised to that level (Analytic-Init). Motion bucket and augmentation rise with
the strength too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditioning import TRAINED_MOTION_BUCKET, draw_noise
from ..errors import InputError
from ..sampling.schedule import RHO, SIGMA_MAX

LOWEST_START = 50.0
"""Sigma at which sampling starts at strength 1: a fourteenth of the released models' highest level, a fifth of the way
down on a log scale."""

MOST_AUGMENTATION = 0.2
"""Standard deviation of the noise on the picture at strength 1, on the [-1, 1] scale."""


@dataclass(frozen=True, slots=True)
class Unstuck:
    """The settings for an un-stick strength: the sigma to start at, and two conditioning values."""

    sigma_start: float
    motion_bucket: int
    augmentation: float


def unstuck(strength: float, motion_bucket: int = 127, augmentation: float = 0.02) -> Unstuck:
    """The settings for a strength from 0 (no change) to 1. A bucket or augmentation that is already higher is kept.

    Raises InputError for a strength outside 0 to 1.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"un-stick strength {strength} is outside 0 to 1: 0.5 is usual")
    sigma = SIGMA_MAX * (LOWEST_START / SIGMA_MAX) ** strength
    bucket = motion_bucket + strength * max(0, TRAINED_MOTION_BUCKET - motion_bucket)
    return Unstuck(
        sigma,
        round(bucket) if strength else motion_bucket,
        augmentation + strength * max(0.0, MOST_AUGMENTATION - augmentation),
    )


def lowered_sigmas(sigmas: Tensor, start: float, rho: float = RHO) -> Tensor:
    """Rescale a schedule (n + 1,) ending in 0 to begin at `start`, keeping the number of steps and the last level
    above 0.

    Levels are rescaled linearly in sigma ** (1 / rho), so the released models' schedule becomes the one that starts
    there (arXiv 2206.00364, equation 5). A schedule that already starts lower is returned unchanged; a single level
    becomes `start`. Raises InputError for a schedule that starts higher and does not end in 0: rescaled separately, the
    parts of a schedule would not meet. Raises it for several levels that all lie at or above `start`, too.
    """
    if sigmas[0] <= start:
        return sigmas
    if sigmas[-1] > 0:
        raise InputError(
            f"un-stick starts a whole run lower, and this one is a part that ends at sigma {float(sigmas[-1]):.3g}: "
            "sample in one part, or set un-stick to 0"
        )
    levels = sigmas[:-1].double() ** (1 / rho)
    if len(levels) == 1:
        return sigmas.new_tensor([start, 0.0])
    if sigmas[-2] >= start:
        raise InputError(
            f"un-stick starts at sigma {start:.3g}, and the last level of this schedule is {float(sigmas[-2]):.3g}: "
            "give a schedule that goes lower, or set un-stick to 0"
        )
    part = (levels - levels[-1]) / (levels[0] - levels[-1])
    bent = (levels[-1] + part * (start ** (1 / rho) - levels[-1])) ** rho
    return torch.cat([bent, bent.new_zeros(1)]).to(sigmas)


def analytic_start(first: Tensor, num_frames: int, seed: int) -> Tensor:
    """Latents (B * T, 4, h, w), sampler units, to be noised to the first level of a lowered schedule.

    first (B, 4, h, w), sampler units, is the picture's latent. Analytic-Init uses the mean and variance of all clips
    (section 4.1 of the paper); here they are those of the picture's cells, per channel. Using the picture itself as the
    mean would leak it into every frame, the very problem to solve.
    """
    deviation, mean = torch.std_mean(first, dim=(2, 3), keepdim=True)
    noise = draw_noise((first.shape[0] * num_frames, *first.shape[1:]), (seed + 2) % 2**64).to(first)
    mean, deviation = (each.repeat_interleave(num_frames, dim=0) for each in (mean, deviation))
    return mean + deviation * noise
