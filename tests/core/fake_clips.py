"""A denoiser whose answers are known: what it was told, and what it was shown."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from svd_core.conditioning import Conditioning
from svd_core.config import LATENT_SCALE


@dataclass(frozen=True, slots=True, eq=False)
class Drifting:
    """Frame t of a clip is its still plus t times `drift`; what it is shown changes a part `pull` of that. `asked`
    counts, for each call, frames and where x lay."""

    conditioning: Conditioning
    num_frames: int
    drift: float = 0.1
    pull: float = 0.0
    asked: list = field(default_factory=list)

    def with_conditioning(self, change):
        return replace(self, conditioning=change(self.conditioning))

    def __call__(self, x: Tensor, sigma) -> Tensor:
        self.asked.append((x.shape[0], self.conditioning))
        clips = x.shape[0] // self.num_frames
        frames = torch.arange(self.num_frames, dtype=x.dtype).repeat(clips)[:, None, None, None]
        first = self.conditioning.first.repeat_interleave(self.num_frames, dim=0) * LATENT_SCALE
        return torch.lerp(first + self.drift * frames, x, self.pull)


def conditioning(value: float = 0.0, clips: int = 1, height: int = 2, width: int = 4) -> Conditioning:
    """Of a still whose latent is `value` everywhere, in sampler units."""
    first = torch.full((clips, 4, height, width), value) / LATENT_SCALE
    return Conditioning(torch.full((clips, 1, 8), value), first, torch.zeros(clips, 12))
