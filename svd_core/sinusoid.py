"""Sinusoidal embedding of noise levels, micro-conditioning and frame numbers (spec 1.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_PERIOD = 10000.0


def sinusoid(values: Tensor, width: int) -> Tensor:
    """Embed numbers of any sign as `[cos(v f) | sin(v f)]` with `f_i = exp(-ln(10000) i / (width // 2))`.

    values: (...,), any real numbers. Returns (..., width) in float32; an odd width ends in a zero.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[..., None] * torch.exp(-math.log(MAX_PERIOD) * index / half)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return torch.nn.functional.pad(embedding, (0, width % 2))
