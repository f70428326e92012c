"""A synthetic world of short clips in which the still says what will move. Every scene is drawn from its seed.

Kinds: a rocket flies where it points; clouds drift with the wind that bends the smoke of a chimney; a ball falls; a
wheel turns as its swept blades indicate; a cart rolls down its slope; a camera pans or zooms as its viewfinder shows.

Training and held-out scenes have disjoint seeds, and the photographs of held-out scenes appear in no training scene.
The same seed gives the same scene everywhere, up to float32 rounding. The still depends on kind and size, but not on
motion_bucket, fps and frames.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np

from svd_core.errors import InputError

from . import ball, camera, clouds, rocket, wheel
from .dice import Dice
from .paint import Stage
from .photographs import HELD_OUT_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS
from .scene import DEFAULT_FPS, DEFAULT_FRAMES, DEFAULT_MOTION_BUCKET, STRIDE, Scene, Take, world_step

__all__ = [
    "DEFAULT_FPS",
    "DEFAULT_FRAMES",
    "DEFAULT_MOTION_BUCKET",
    "HELD_OUT_SEEDS",
    "KINDS",
    "STRIDE",
    "TRAIN_SEEDS",
    "Scene",
    "draw_scene",
    "world_step",
]

TRAIN_SEEDS = range(0, 2**31)
HELD_OUT_SEEDS = range(2**31, 2**31 + 2**20)
"""Seeds for evaluation only. Only scenes of these seeds use the held-out photographs."""

LEAST_SIDE = 16

DEFAULT_WIDTH, DEFAULT_HEIGHT = 128, 64

Draw = Callable[[Stage, Dice, tuple[str, ...]], Take]


def _without_photographs(draw: Callable[[Stage, Dice], Take]) -> Draw:
    return lambda stage, dice, photographs: draw(stage, dice)


_DRAW: MappingProxyType[str, Draw] = MappingProxyType(
    {
        "rocket": _without_photographs(rocket.draw),
        "clouds": _without_photographs(clouds.draw),
        "ball": _without_photographs(ball.draw),
        "wheel": _without_photographs(wheel.pinwheel),
        "cart": _without_photographs(wheel.cart),
        "pan": camera.pan,
        "zoom": camera.zoom,
    }
)
KINDS: tuple[str, ...] = tuple(_DRAW)
_ODDS = (0.28, 0.14, 0.12, 0.12, 0.1, 0.12, 0.12)
"""Probability of each kind; rockets are the most likely because the demo features them."""


def draw_scene(
    seed: int,
    *,
    frames: int = DEFAULT_FRAMES,
    width: int = DEFAULT_WIDTH,
    height: int = DEFAULT_HEIGHT,
    fps: float = DEFAULT_FPS,
    motion_bucket: float = DEFAULT_MOTION_BUCKET,
    kind: str | None = None,
) -> Scene:
    """Draw the scene of a seed.

    seed: an integer in TRAIN_SEEDS or HELD_OUT_SEEDS. frames: at least 1. width, height: pixels, at least 16.
    fps: above 0; halving it moves everything twice as far per frame. motion_bucket: at least 0; displacement per frame
    is proportional to it, 0 stands still (see `world_step`). kind: one of KINDS; None lets the seed choose.

    Raises InputError for other settings, or if a photograph is needed and scikit-image is missing.
    """
    _check(seed, frames, width, height, fps, motion_bucket, kind)
    chosen = kind or KINDS[int(np.searchsorted(np.cumsum(_ODDS), Dice(seed).uniform() * sum(_ODDS)))]
    times = np.arange(frames) * world_step(motion_bucket, fps)
    photographs = HELD_OUT_PHOTOGRAPHS if seed in HELD_OUT_SEEDS else TRAIN_PHOTOGRAPHS
    take = _DRAW[chosen](Stage.of(width, height, times), Dice(seed, KINDS.index(chosen) + 1), photographs)
    film = np.ascontiguousarray(np.moveaxis(np.clip(take.frames, 0.0, 1.0), 0, -1))
    return Scene(chosen, seed, take.direction, take.sense, take.speed, film)


def _check(seed: int, frames: int, width: int, height: int, fps: float, motion_bucket: float, kind: str | None) -> None:
    if seed not in TRAIN_SEEDS and seed not in HELD_OUT_SEEDS:
        raise InputError(f"seed {seed} is no scene: use 0 to {HELD_OUT_SEEDS.stop - 1}, held out from {2**31}")
    if frames < 1 or min(width, height) < LEAST_SIDE:
        raise InputError(f"{frames} frames of {width} x {height}: need at least 1 frame of 16 x 16 pixels")
    if not 0 < fps < np.inf or not 0 <= motion_bucket < np.inf:
        raise InputError(f"fps {fps} and motion_bucket {motion_bucket}: need fps above 0 and a bucket of at least 0")
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind {kind!r} is unknown: use one of {', '.join(KINDS)}")
