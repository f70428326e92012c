"""Un-stick: one strength against clips that stand still.

At high noise the model copies its picture and forgets to move ("Identifying and Solving Conditional Image Leakage in
Image-to-Video Diffusion Model", Zhao et al., arXiv 2406.15735). Their remedy at inference: start at a lower noise
level, from the Gaussian nearest to what a clip noised to that level would be (Analytic-Init). Motion bucket and
augmentation rise along with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditioning import TRAINED_MOTION_BUCKET, draw_noise
from ..errors import InputError
from ..sampling.schedule import RHO, SIGMA_MAX

LOWEST_START = 50.0
"""Where sampling starts at strength 1: a fourteenth of the released models' highest level, in its logarithm a fifth of
the way down."""

MOST_AUGMENTATION = 0.2
"""Of the noise on the picture at strength 1, on the [-1, 1] scale."""


@dataclass(frozen=True, slots=True)
class Unstuck:
    """What a strength comes to: where sampling starts, and two settings of the conditioning."""

    sigma_start: float
    motion_bucket: int
    augmentation: float


def unstuck(strength: float, motion_bucket: int = 127, augmentation: float = 0.02) -> Unstuck:
    """strength 0 leaves everything as it is; 1 is the most. A bucket or augmentation that is higher already stays.

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
    """A schedule (n + 1,) ending in 0, bent to start at `start`: as many steps, the last level above 0 kept.

    Levels move in proportion in sigma ** (1 / rho), so the released models' schedule becomes the one of that start
    (arXiv 2206.00364, equation 5). A schedule that starts lower already, and one with a single level, are returned as
    they are or cut to the start. Raises InputError for the first part of a schedule, which does not end in 0: parts
    bent one by one would not meet.
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
        return torch.tensor([start, 0.0]).to(sigmas)
    part = (levels - levels[-1]) / (levels[0] - levels[-1])
    bent = (levels[-1] + part * (start ** (1 / rho) - levels[-1])) ** rho
    return torch.cat([bent, bent.new_zeros(1)]).to(sigmas)


def analytic_start(first: Tensor, num_frames: int, seed: int) -> Tensor:
    """Latents (B * T, 4, h, w), sampler units, to be noised to the first level of a lowered schedule.

    first (B, 4, h, w), sampler units, is the picture's latent. Analytic-Init takes mean and variance of all clips
    (section 4.1 of the paper); here they are those of the picture's cells, in each channel. The picture itself as mean
    would leak it into every frame, which is what is to be cured.
    """
    deviation, mean = torch.std_mean(first, dim=(2, 3), keepdim=True)
    noise = draw_noise((first.shape[0] * num_frames, *first.shape[1:]), (seed + 2) % 2**64).to(first)
    mean, deviation = (each.repeat_interleave(num_frames, dim=0) for each in (mean, deviation))
    return mean + deviation * noise
