"""Loop: a clip that ends where it begins.

`Between` with the same picture at both ends, the repeated last frame dropped, and a decoder that wraps around in time
(`VideoVAE.decode(circular=True)`), which then also treats the last frame as a neighbour of the first.
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError

LEAST_FRAMES = 4
"""Fewest sampled frames of a loop: two moving frames between two copies of the picture."""


def require_loop(frames: int) -> None:
    """Raise InputError for a clip too short to leave its picture and come back."""
    if frames < LEAST_FRAMES:
        raise InputError(
            f"a loop of {frames} frames cannot leave the picture and come back: ask for at least {LEAST_FRAMES}"
        )


def seam_score(frames: np.ndarray) -> float:
    """The step from the last frame to the first over the median step within the clip; 1 is a seamless loop.

    frames (T, H, W, 3); a step is the mean absolute difference of two frames. If the median step is 0, the score is 1
    for a closing step of 0 and infinite otherwise. Raises InputError for fewer than three frames.
    """
    if len(frames) < 3:
        raise InputError(f"a loop of {len(frames)} frames has no seam to measure: give at least 3")
    steps = frame_steps(np.concatenate([frames, frames[:1]]))
    seam, median = float(steps[-1]), float(np.median(steps[:-1]))
    return seam / median if median > 0 else 1.0 if seam == 0 else float("inf")


def frame_steps(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each frame and the next: (T, H, W, 3) -> (T - 1,)."""
    return np.abs(np.diff(frames.astype(np.float64), axis=0)).mean(axis=(1, 2, 3))
