"""Scenes of the synthetic world, and their speed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DEFAULT_FRAMES = 14
DEFAULT_FPS = 7
DEFAULT_MOTION_BUCKET = 127

STRIDE = 0.026
"""Distance travelled per unit of world time, as a share of the shorter side: 1.7 pixels of 64, 2.5 of 96."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A clip of the synthetic world with its ground truth.

    `direction` is the unit vector (x right, y down) along which things move, None for a wheel and a zoom. `sense` is +1
    for a wheel that turns clockwise and for a zoom in, -1 for their opposites, 0 otherwise. `speed` is the mean
    distance in pixels per frame: of the moving object, of a wheel's rim, and in a zoom of a point half a shorter side
    from the centre (to first order). `frames` (T, H, W, 3) is float32 in [0, 1].
    """

    kind: str
    seed: int
    direction: tuple[float, float] | None
    sense: int
    speed: float
    frames: np.ndarray

    @property
    def still(self) -> np.ndarray:
        """The first frame (H, W, 3), the only input for a model."""
        return self.frames[0]


@dataclass(frozen=True, slots=True)
class Take:
    """Result of drawing one kind of scene: a `Scene` without kind and seed, its frames (3, T, H, W) as in `paint`."""

    frames: np.ndarray
    speed: float
    direction: tuple[float, float] | None = None
    sense: int = 0


def world_step(motion_bucket: float, fps: float) -> float:
    """World time between two frames: `motion_bucket / 127 * 7 / fps`, so 1 at the defaults and 0 at bucket 0.

    The released model learned its bucket from measured optical flow through an unpublished table; this world uses a
    linear map instead. Bucket and fps only change time, not the still.
    """
    return motion_bucket / DEFAULT_MOTION_BUCKET * DEFAULT_FPS / fps


def mean_step(places: np.ndarray) -> float:
    """Mean distance between successive places (T,) or (T, 2); 0 for a single one."""
    if len(places) < 2:
        return 0.0
    steps = np.diff(places.reshape(len(places), -1), axis=0)
    return float(np.sqrt((steps**2).sum(axis=1)).mean())
