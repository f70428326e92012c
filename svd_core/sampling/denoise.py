"""From the network's v-prediction to a clean latent: EDM preconditioning with sigma_data = 1 (spec 5.1).

A noisy latent is x = x0 + sigma * noise. The network sees x scaled to unit variance and answers with
v = (noise - sigma * x0) / sqrt(sigma**2 + 1); skip and out turn that back into an estimate of x0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from ..conditioning import Conditioning

Network = Callable[..., Tensor]
"""unet(x (N, 8, h, w), c_noise (N,), context (N, L, D), vector (N, V), num_frames=T) -> v (N, 4, h, w), N = B * T."""


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """The four factors of Karras et al. (arXiv 2206.00364, equation 7), each shaped like sigma."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


def v_scaling(sigma: Tensor) -> Scaling:
    """The factors for sigma > 0 of any shape (spec 5.1); sigma is not rounded to any table."""
    variance = sigma**2 + 1
    return Scaling(skip=1 / variance, out=-sigma / variance.sqrt(), input=1 / variance.sqrt(), noise=sigma.log() / 4)


@dataclass(frozen=True, slots=True, eq=False)
class Denoiser:
    """A network and its conditioning as `model(x, sigma) -> denoised`, without guidance.

    conditioning has one row for each clip of num_frames frames. The network computes in dtype; outside it the latent
    stays in float32, because near sigma 700 half precision is coarser than the picture (spec 10).
    """

    unet: Network
    conditioning: Conditioning
    num_frames: int
    dtype: torch.dtype = torch.float32

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """x (N, 4, h, w) with N = clips * num_frames, sigma (N,) or one number above 0 -> (N, 4, h, w) in float32.

        Raises InputError if N does not fit the conditioning.
        """
        check_frames(x, self.conditioning, self.num_frames)
        x = x.float()
        per_frame = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        scaling = v_scaling(per_frame[:, None, None, None])
        frames = self.conditioning.to(x.device, self.dtype).repeat_frames(self.num_frames)
        # The still's latent comes second and is scaled neither by c_in nor by 0.18215 (spec 4).
        inputs = torch.cat([(x * scaling.input).to(self.dtype), frames.first], dim=1)
        c_noise = scaling.noise.flatten()
        v = self.unet(inputs, c_noise, frames.context, frames.vector, num_frames=self.num_frames)
        return scaling.skip * x + scaling.out * v.float()


def check_size(x: Tensor, conditioning: Conditioning) -> None:
    """Raise InputError unless x is (N, 4, h, w) with the size of the conditioning's still."""
    given, still = tuple(x.shape), tuple(conditioning.first.shape)
    if x.ndim != 4 or given[1:] != still[-3:]:
        needed = "(N, {}, {}, {})".format(*still[-3:])
        raise InputError(f"noise or latents of shape {given} for a still whose latent is {still}: give {needed}")


def check_frames(x: Tensor, conditioning: Conditioning, num_frames: int) -> None:
    """Raise InputError unless x (N, ...) has num_frames frames for each row of the conditioning."""
    needed = conditioning.rows * num_frames
    if x.shape[0] != needed:
        clips = f"{conditioning.rows} conditioned clips of {num_frames} frames"
        raise InputError(f"a batch of {x.shape[0]} frames for {clips}: give {needed}")
