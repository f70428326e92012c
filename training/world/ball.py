"""A ball that falls and bounces, its shadow below it."""

from __future__ import annotations

import numpy as np

from . import backdrop
from .dice import Dice
from .paint import Stage, disc, ellipse, inside, mix, over, rgb, smoothstep
from .scene import Take, mean_step

BALLS = (
    ("#e8483c", "#f8f4ec"),
    ("#2c7cd0", "#fbd84c"),
    ("#f0942c", "#a04418"),
    ("#48b06c", "#f4f8e8"),
    ("#c04c9c", "#fbd0dc"),
    ("#f4f4f4", "#303848"),
    ("#fbd03c", "#e85c3c"),
)
FALL = 9.0
"""World time in which a ball falls half the picture's shorter side."""
REBOUND = 0.8
"""Share of its speed that a ball keeps at a bounce."""
BOUNCES = 24


def draw(stage: Stage, dice: Dice) -> Take:
    """A ball above open ground. `direction` is that of the fall."""
    radius = stage.unit * dice.uniform(0.1, 0.15)
    floor = stage.height * dice.uniform(0.84, 0.92)
    drop = floor - 2 * radius - stage.height * dice.uniform(0.04, 0.22)
    across = stage.width * dice.uniform(0.25, 0.75)
    height = drop * _heights(stage.times, FALL * float(np.sqrt(drop / (0.5 * stage.unit))))  # (T, 1, 1)

    weather = dice.pick(backdrop.WEATHERS)
    frames = stage.film(backdrop.landscape(stage.still(), dice, weather, 0.7, dice.uniform(0.66, 0.74) * stage.height))
    _shadow(frames, stage, across, floor, radius, height / stage.height)
    _ball(frames, stage, dice, across, floor - radius - height, radius)
    return Take(frames, mean_step(height[:, 0, 0]), (0.0, 1.0))


def _heights(times: np.ndarray, fall: float) -> np.ndarray:
    """Height above the floor as a multiple of the drop, 1 at time 0; `fall` is the duration of the first fall."""
    since, half, peak = times + fall, fall, 1.0  # per hop: time since take-off, half its duration, its peak
    height = np.zeros_like(times)
    for _ in range(BOUNCES):
        height = np.maximum(height, peak * (1 - ((since - half) / half) ** 2))
        since, half, peak = since - 2 * half, half * REBOUND, peak * REBOUND**2
    return height


def _shadow(frames: np.ndarray, stage: Stage, across: float, floor: float, radius: float, height: np.ndarray) -> None:
    """Draw the shadow, wider and paler the higher the ball is."""
    spread = 1 + 0.5 * height
    away = ellipse(stage.x - across, stage.y - floor, 0.95 * radius * spread, 0.24 * radius * spread)
    over(frames, rgb("#101424"), (0.55 - 0.3 * height) * inside(away, 0.35 * radius))


def _ball(frames: np.ndarray, stage: Stage, dice: Dice, across: float, centre: np.ndarray, radius: float) -> None:
    """Draw a sphere lit from the upper left, with a coloured belt and cap."""
    one, other = (rgb(code) for code in dice.pick(BALLS))
    tilt, belt = dice.uniform(0, np.pi), dice.uniform(0.25, 0.4)
    part, cut = stage.window(across - radius - 2, 0, across + radius + 2, stage.height)
    x, y = (part.x - across) / radius, (part.y - centre) / radius
    level = (x * np.sin(tilt) + y * np.cos(tilt)) + 0.28 * (x * np.cos(tilt) - y * np.sin(tilt)) ** 2
    colour = mix(one, other, inside((np.abs(level - 0.1) - belt) * radius))
    lit = np.clip(1.05 - 0.42 * ((x + 0.35) ** 2 + (y + 0.4) ** 2) ** 0.8, 0.3, 1.0)
    shine = 0.55 * smoothstep(0.4, 0.05, np.sqrt((x + 0.36) ** 2 + (y + 0.42) ** 2))
    over(frames[cut], mix(colour * lit, rgb("#ffffff"), shine), inside(disc(x, y, 1.0) * radius))
