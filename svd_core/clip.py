"""What a render returns, and what it reports while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from .settings import Settings


@dataclass(frozen=True, slots=True)
class Progress:
    """`index` of `total` parts of a stage are done."""

    stage: Literal["condition", "sample", "decode"]
    index: int
    total: int


ProgressFn = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Clip:
    """A finished clip and everything that determined it.

    frames (T, H, W, 3) float32 in [0, 1]; latents (T, 4, h, w) float32 in sampler units; settings with every default
    filled in; sigmas as sampled; fit_report says in words how the picture was resized, reuse_report what was
    approximated ("" if nothing was).
    """

    frames: np.ndarray
    latents: Tensor
    settings: Settings
    sigmas: tuple[float, ...]
    fit_report: str
    reuse_report: str = ""


def silent(_: Progress) -> None:
    """The default callback: does nothing."""
