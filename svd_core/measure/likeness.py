"""Similarity of pictures."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ..errors import InputError
from .flow import as_tensor, flow_between, luma_of, warped

MOST_DB = 60.0
"""Upper bound of the likeness, which would be infinite for equal frames; 8-bit pictures resolve no more."""


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two arrays of one shape in [0, 1]; infinite when they are equal."""
    if image.shape != reference.shape:
        raise InputError(f"cannot compare {image.shape} with {reference.shape}: give two arrays of one shape")
    error = float(np.mean((np.asarray(image, np.float64) - np.asarray(reference, np.float64)) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def likeness(frames: np.ndarray, still: np.ndarray) -> np.ndarray:
    """How much of a still each frame shows, wherever it has moved to -> (T,) float64, dB up to MOST_DB.

    frames (T, H, W, 3), still (H, W, 3), in [0, 1]. Each frame is warped back onto the still along the flow between
    them and compared where the flow stays inside the picture. So an object that moves keeps its likeness, and one that
    melts or changes colour loses it. A frame that shows nothing of the still has likeness 0.
    Raises InputError if the sizes differ.
    """
    if frames.shape[1:] != still.shape:
        given = f"the still has shape {still.shape} and the frames {frames.shape[1:]}"
        raise InputError(f"{given}: give the still at the size of the clip")
    return np.array([_likeness(frame[None], still[None]) for frame in frames])


def _likeness(frame: np.ndarray, still: np.ndarray) -> float:
    """The likeness of one frame and a still, (1, H, W, 3) each."""
    flow = flow_between(luma_of(still), luma_of(frame))
    back, seen = warped(_planes(frame), flow)
    pixels = float(seen.sum())
    if not pixels:
        return 0.0
    error = float(((back - _planes(still)).square().mean(dim=1, keepdim=True) * seen).sum()) / pixels
    return MOST_DB if error <= 0 else min(MOST_DB, -10 * math.log10(error))


def _planes(frames: np.ndarray) -> Tensor:
    """Channels first: (n, H, W, 3) -> (n, 3, H, W) float32."""
    return as_tensor(frames).movedim(-1, 1)
