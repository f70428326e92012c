"""Motion Brush: a painted mask says how much each region may move.

The change map of Differential Diffusion (Levin and Fried, arXiv 2306.00950) applied to the first frame: a pixel of grey
g is held to it while the remaining noise is above g, and free below. Holding replaces the denoised latent, which moves
a sampler exactly along the noised still.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..conditioning import Conditioning
from ..config import PIXELS_PER_LATENT
from ..errors import InputError
from .denoiser import ClipDenoiser
from .windows import Part

MAX_FEATHER = 256
"""Widest feather in pixels: each takes one more pass over the mask."""


@dataclass(frozen=True, slots=True, eq=False)
class Brush:
    """How much each pixel may move: mask (H, W) or (T, H, W), from 0 (still) to 1 (free).

    Raises InputError for another shape or values outside 0 to 1.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        if self.mask.ndim not in (2, 3) or 0 in self.mask.shape:
            raise InputError(
                f"a mask of shape {tuple(self.mask.shape)}: give (height, width) or (frames, height, width)"
            )
        if not bool(((self.mask >= 0) & (self.mask <= 1)).all()):
            raise InputError("the mask holds values outside 0 to 1: 0 is still, 1 moves freely")

    def check(self, frames: int, height: int, width: int) -> None:
        """Raise InputError unless the mask fits a clip of this size, in pixels."""
        mask = self._by_frame
        if mask.shape[1:] != (height, width):
            given = f"{mask.shape[2]}x{mask.shape[1]}"
            raise InputError(
                f"the mask is {given} and the clip {width}x{height}: paint it on the fitted picture, or scale it"
            )
        _check_count(len(mask), frames)

    @property
    def _by_frame(self) -> Tensor:
        """The mask as (T or 1, H, W) float32."""
        return self.mask.float() if self.mask.ndim == 3 else self.mask.float()[None]

    def cells(self) -> Tensor:
        """The mask in latent cells, (T or 1, 1, h, w): a cell may move as much as its freest pixel."""
        return max_pool2d(self._by_frame[:, None], PIXELS_PER_LATENT)

    def opacity(self, feather: int) -> Tensor:
        """The clip's opacity over the still picture, (T or 1, H, W). Exactly 0 where the mask is 0; inside it rises
        over `feather` pixels from the nearest still one, evenly, and is above 0 in the thinnest stroke."""
        free = (self._by_frame > 0).float()[:, None]
        depth = free.clone()  # in pixels, from 1 beside a still one
        for _ in range(feather):
            free = -max_pool2d(-free, 3, stride=1, padding=1)
            depth += free
        return ((2 * depth - 1) / (2 * feather + 1)).clamp(0, 1)[:, 0]


@dataclass(frozen=True, slots=True, eq=False)
class Brushed:
    """A denoiser that holds cells to `still` (B, 4, h, w), sampler units, while their `freedom` (T or 1, 1, h, w) is
    below the remaining noise, which is logarithmic in sigma: 1 at `highest`, 0 at `lowest`.

    Costs no model call. Raises InputError if freedom and still do not fit the frames or their size.
    """

    denoise: ClipDenoiser
    freedom: Tensor
    still: Tensor
    lowest: float
    highest: float

    @property
    def num_frames(self) -> int:
        return self.denoise.num_frames

    def with_conditioning(self, change: Callable[[Conditioning], Conditioning]) -> Brushed:
        return replace(self, denoise=self.denoise.with_conditioning(change))

    def part(self, part: Part) -> Brushed:
        """The denoiser of one window; for a wrapped denoiser that has `part`, such as `LongTake`."""
        _check_count(len(self.freedom), part.total)
        freedom = self.freedom if len(self.freedom) == 1 else self.freedom[part.frames]
        return replace(self, denoise=self.denoise.part(part), freedom=freedom)

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self._hold(self.denoise, x, sigma)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The forward prediction; for a wrapped denoiser with both directions, such as `Between`."""
        return self._hold(self.denoise.forward, x, sigma)

    def backward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self._hold(self.denoise.backward, x, sigma)

    def _hold(self, denoise: Callable[..., Tensor], x: Tensor, sigma: Tensor | float) -> Tensor:
        self._check(x)
        denoised = denoise(x, sigma)
        held = (self.freedom < self.remaining(sigma)).to(x.device)
        clips = rearrange(denoised, "(b t) c h w -> b t c h w", b=self.still.shape[0])
        return torch.where(held, self.still.to(denoised)[:, None], clips).flatten(0, 1)

    def remaining(self, sigma: Tensor | float) -> float:
        """The remaining share of the noise, at most 1 and always above 0, so that freedom 0 is always held."""
        level = float(torch.as_tensor(sigma, device="cpu").max())
        span = math.log(self.highest / self.lowest)
        part = math.log(max(level, self.lowest) / self.lowest) / span if span > 0 else 0.0
        return min(max(part, torch.finfo(torch.float32).tiny), 1.0)

    def _check(self, x: Tensor) -> None:
        clips, frames = self.still.shape[0], len(self.freedom)
        if x.shape[0] % clips:
            raise InputError(f"{x.shape[0]} frames are no whole number of {clips} clips: give whole clips")
        _check_count(frames, x.shape[0] // clips)
        if x.shape[-2:] != self.freedom.shape[-2:] or x.shape[-2:] != self.still.shape[-2:]:
            sizes = [tuple(PIXELS_PER_LATENT * side for side in each.shape[-2:]) for each in (self.freedom, x)]
            raise InputError(f"the mask is {sizes[0]} and the clip {sizes[1]} (height, width): paint it at that size")


def _check_count(masks: int, frames: int) -> None:
    if masks not in (1, frames):
        raise InputError(f"{masks} masks for {frames} frames: give one mask, or one for each frame")


def composite(frames: np.ndarray, picture: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Blend frames (T, H, W, 3) over a picture (H, W, 3) with opacity (T or 1, H, W); 0 and 1 copy bit for bit."""
    alpha = opacity[..., None]
    blended = picture + alpha * (frames - picture)
    return np.where(alpha == 0, picture, np.where(alpha == 1, frames, blended)).astype(np.float32)
