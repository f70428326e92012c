"""Long Take: clips of any length with the device memory of one window; the clip's latents may stay on the host.

Fused: at every evaluation, overlapping windows of the clip go through the network one by one and are blended where they
overlap (MultiDiffusion, Bar-Tal et al., arXiv 2302.08113, along time). Their starts differ between noise levels, so
that no frame is always at a border. Each window after the first uses as its picture what the window before has just
predicted for that frame. In turns (`turns.py`): each window is completed before the next one begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..config import LATENT_SCALE
from ..errors import InputError
from ..sampling.guidance import FLOAT32
from ..sampling.schedule import SIGMA_MIN
from .denoiser import Around, ClipDenoiser

SHIFTS = 11.326
"""Cycles of the windows' start per unit of log sigma: seven golden ratios, which avoids repeating patterns."""

LEAST_DEVIATION = 1 / 255
MOST_GAIN = 2.0
"""Largest contrast gain of `hold_colours`, and the inverse of its smallest; more would amplify noise."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of `length` frames, with neighbours sharing `overlap`. Raises InputError unless 1 <= overlap < length."""

    length: int
    overlap: int

    def __post_init__(self) -> None:
        if not 1 <= self.overlap < self.length:
            raise InputError(
                f"windows of {self.length} frames that overlap by {self.overlap}: the overlap must be at least 1 and "
                "shorter than the window; half of it is usual"
            )

    @classmethod
    def of(cls, length: int, fused: bool, overlap: int = 0) -> Windows:
        """Windows of `length` frames. Sequential ones share the one frame that the next continues from; fused ones
        share `overlap` frames (0: half the length). Raises InputError for an overlap above 1 without `fused`."""
        if fused:
            return cls(length, overlap or max(1, length // 2))
        if overlap > 1:
            raise InputError(
                f"an overlap of {overlap} for windows in turns, which share one frame: leave it at 0, or choose fusion"
            )
        return cls(length, 1)

    @property
    def hop(self) -> int:
        """Frames from the start of a window to that of the next."""
        return self.length - self.overlap

    def starts(self, total: int, shift: int = 0) -> list[int]:
        """First frames of the windows of a clip. The second window starts at `shift` (1 to `hop`; 0 means `hop`), and
        the last one ends with the clip. Raises InputError for a clip shorter than a window."""
        if self.length > total:
            raise InputError(
                f"windows of {self.length} frames are longer than the clip of {total}: ask for at least {self.length} "
                "frames, or for shorter windows"
            )
        last = total - self.length
        return [0, *range(shift or self.hop, last, self.hop), *([last] if last else [])]

    def shift(self, sigma: float) -> int:
        """The start of the second window at a noise level: pseudorandom, but a function of the level alone."""
        return int(self.hop * (SHIFTS * math.log(max(sigma, SIGMA_MIN)) % 1))

    def shares(self, starts: Sequence[int]) -> list[Tensor]:
        """Blending weights (length,) of each window: they rise as sin^2 over the frames shared with the window before
        and fall likewise over those shared with the next."""
        shares = [torch.ones(self.length, **FLOAT32) for _ in starts]
        for (before, after), (one, other) in zip(pairwise(shares), pairwise(starts), strict=True):
            shared = one + self.length - other
            rise = torch.arange(1, shared + 1, **FLOAT32) / (shared + 1)
            after[:shared] = torch.minimum(after[:shared], rise)
            before[-shared:] = torch.minimum(before[-shared:], rise.flip(0))
        return [torch.sin(share * math.pi / 2) ** 2 for share in shares]


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """The sorted values of each channel of a latent, (4, h * w): its distribution, regardless of position."""

    values: Tensor

    @classmethod
    def of(cls, latent: Tensor) -> Statistics:
        """The statistics of one frame (1, 4, h, w)."""
        return cls(latent[0].flatten(1).sort().values)

    def impose(self, latents: Tensor, amount: float) -> Tensor:
        """Move each channel of each frame of latents (n, 4, h, w) towards these values by `amount`, from 0 to 1: the
        lowest cell to the lowest value and so on, which preserves the layout. The size must be the same."""
        places = latents.flatten(2).argsort()
        values = self.values.to(latents).expand(len(latents), -1, -1)
        held = torch.empty_like(values).scatter_(2, places, values).view_as(latents)
        return torch.lerp(latents, held, amount)


def hold_colours(frames: np.ndarray, amount: float) -> np.ndarray:
    """Move each decoded frame's channel means and deviations to the first frame's (Reinhard et al. 2001, in RGB) by
    `amount`, from 0 to 1; frames (T, H, W, 3) in [0, 1]. Imposing the statistics of latents alone leaves a drift,
    because several latents decode to the same colour."""
    if amount == 0:
        return frames
    mean, deviation = frames[0].mean(axis=(0, 1)), frames[0].std(axis=(0, 1))
    held = np.empty_like(frames)
    for frame, into in zip(frames, held, strict=True):
        gain = deviation / np.maximum(frame.std(axis=(0, 1)), LEAST_DEVIATION)
        moved = (frame - frame.mean(axis=(0, 1))) * gain.clip(1 / MOST_GAIN, MOST_GAIN) + mean
        into[:] = np.clip(frame + amount * (moved - frame), 0, 1)
    return held


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One window of a clip of `total` frames: its frames, and the clean latent (4, h, w), sampler units, that it uses
    as its picture; None uses the conditioning's."""

    frames: slice
    total: int
    anchor: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LongTake:
    """A denoiser of clips of any length, from one that sees `windows.length` frames. One model call per window; the
    number of windows can differ by one between noise levels. `part` gives the denoiser of a single window.

    device: where windows are processed; x may be elsewhere. colour: statistics imposed on all frames; None leaves
    colours free. colour_hold: how firmly, from 0 to 1. continued: latents (K, 4, h, w), sampler units, of existing
    frames that begin the clip. around: entered for each window with the numbers of its frames. Raises InputError for a
    clip shorter than a window, and for several clips.
    """

    denoise: ClipDenoiser
    windows: Windows
    device: torch.device | str
    colour: Statistics | None = None
    colour_hold: float = 1.0
    continued: Tensor | None = None
    only: Part | None = None
    around: Around = nullcontext

    def __post_init__(self) -> None:
        if self.continued is not None and len(self.continued) >= self.windows.length:
            raise InputError(
                f"{len(self.continued)} given frames fill a window of {self.windows.length}: continue from fewer"
            )

    @property
    def num_frames(self) -> int:
        return self.windows.length

    def with_conditioning(self, change: Callable[[Conditioning], Conditioning]) -> LongTake:
        return replace(self, denoise=self.denoise.with_conditioning(change))

    def part(self, part: Part) -> LongTake:
        """The denoiser of this window's frames alone."""
        return replace(self, only=part)

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self._fused(x, sigma) if self.only is None else self._window(x, sigma, self.only).to(x)

    def _fused(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        total = x.shape[0]
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(total)
        blended, weight = torch.zeros_like(x), torch.zeros(total, 1, 1, 1, **FLOAT32)
        anchor: Tensor | None = None
        starts = self.windows.starts(total, self.windows.shift(float(sigma.max())))
        for start, following, share in zip(starts, [*starts[1:], total], self.windows.shares(starts), strict=True):
            frames = slice(start, start + self.windows.length)
            denoised = self._window(x[frames], sigma[frames], Part(frames, total, anchor))
            share = share[:, None, None, None]
            blended[frames] += (share.to(denoised) * denoised).to(x)
            weight[frames] += share
            anchor = None if following == total else denoised[following - start]
        return blended / weight.to(x)

    def _window(self, x: Tensor, sigma: Tensor | float, part: Part) -> Tensor:
        def change(cond: Conditioning) -> Conditioning:
            first = cond.first if part.anchor is None else (part.anchor[None] / LATENT_SCALE).to(cond.first)
            return Conditioning(cond.context, first, _vector_in(cond.vector, part.frames, part.total))

        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=self.device)
        with self.around(range(part.frames.start, part.frames.stop)):
            denoised = self.denoise.with_conditioning(change)(x.to(self.device), sigma)
        if self.colour is not None:
            denoised = self.colour.impose(denoised, self.colour_hold)
        if self.continued is not None and part.frames.start < len(self.continued):
            given = self.continued[part.frames.start :].to(denoised)
            denoised = torch.cat([given, denoised[len(given) :]])
        return denoised


def _vector_in(vector: Tensor, frames: slice, total: int) -> Tensor:
    """The window's part of a vector that varies over the whole clip; any other vector is returned unchanged."""
    return vector[:, frames] if vector.ndim == 3 and vector.shape[1] == total else vector
