"""A rocket's direction, measured from pixels, and rank correlation. The flow itself is in `svd_core.measure`.

These functions check a trained model on scenes with a known truth, so none of them depends on how scenes are drawn.
Frames are (T, H, W, 3) in [0, 1]; directions are x right and y down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from svd_core.errors import InputError
from svd_core.measure import optical_flow


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation in [-1, 1], ties sharing their mean rank; NaN when either is constant."""
    if len(one) != len(other) or len(one) < 2:
        raise InputError(f"cannot correlate {len(one)} with {len(other)} values: give at least two pairs")
    x, y = _ranks(one), _ranks(other)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else math.nan


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, place, count = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return ((last - count + 1 + last) / 2)[place]


def motion_direction(frames: np.ndarray) -> tuple[float, float] | None:
    """Unit vector (x right, y down) along which the single moving object of a clip travels; None when nothing moves.

    For a rocket in front of a static background. The flow is summed over pixels and frames, each weighted by the
    square of its length, so that the object outweighs a background that only shimmers.
    """
    flow = optical_flow(frames).astype(np.float64)
    x, y = (flow * (flow**2).sum(axis=-1, keepdims=True)).sum(axis=(0, 1, 2))
    length = math.hypot(x, y)
    return (x / length, y / length) if length else None


def angle_between(one: Sequence[float], other: Sequence[float]) -> float:
    """Degrees from 0 to 180 between two directions (x, y)."""
    cross, dot = one[0] * other[1] - one[1] * other[0], one[0] * other[0] + one[1] * other[1]
    return math.degrees(abs(math.atan2(cross, dot)))
