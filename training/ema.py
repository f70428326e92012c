"""Exponential moving average of the weights; the average is the result of training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def decay_at(step: int, decay: float) -> float:
    """The decay after `step` updates (from 0): low at first, to forget the initial weights quickly (spec 8.3)."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * weights, in place, name by name."""
    for name, mean in average.items():
        mean.lerp_(weights[name].to(mean), 1 - decay)
