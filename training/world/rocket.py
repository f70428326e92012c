"""A rocket that flies where it points, with a flame and a trail behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import backdrop
from .dice import Dice
from .paint import Stage, convex, disc, inside, mix, over, rgb, smoothstep
from .scene import STRIDE, Take, mean_step

LIVERIES = (
    ("#f2f0f4", "#e04458", "#54b0d8"),
    ("#f6efe0", "#2f6fc0", "#f8c84c"),
    ("#e8ecf4", "#f08830", "#3c5c8c"),
    ("#fbe8b0", "#b83c64", "#5cc0b8"),
    ("#d8e8f0", "#5c48b0", "#f09c9c"),
    ("#f8f8f0", "#2c9c78", "#304c6c"),
    ("#f0c0a8", "#7c2c48", "#f8ecd0"),
)
"""Colours of hull, nose and fins, and window."""

FLAMES = (("#ff7a2c", "#ffc850", "#fffbe0"), ("#3c7cff", "#78d0ff", "#f4fcff"), ("#f03c5c", "#ff9c5c", "#fff4d0"))
UPWARD = -0.25
"""Rockets that climb at least this steeply (y of the direction) may start over land; others fly through space."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Coordinates along the rocket's axes: `along` and `across` (T, H, W) in half lengths of the rocket, and `pixel`,
    the size of a pixel in that unit."""

    along: np.ndarray
    across: np.ndarray
    pixel: float
    times: np.ndarray


def draw(stage: Stage, dice: Dice) -> Take:
    """A rocket in front of a landscape or in space."""
    angle = dice.uniform(0, 2 * np.pi)
    heading = (float(np.cos(angle)), float(np.sin(angle)))
    half = stage.unit * dice.uniform(0.15, 0.2)
    path = _path(stage, dice, heading)  # (T, 2)
    overland = dice.chance(0.6) and heading[1] < UPWARD
    frames = stage.film(_land(stage.still(), dice) if overland else backdrop.space(stage.still(), dice))
    reach = 5 * half
    (left, top), (right, bottom) = path.min(axis=0) - reach, path.max(axis=0) + reach
    part, cut = stage.window(left, top, right, bottom)
    if part.x.size and part.y.size:
        _rocket(frames[cut], _axes(part, path, heading, half), dice)
    return Take(frames, mean_step(path), heading)


def _path(stage: Stage, dice: Dice, heading: tuple[float, float]) -> np.ndarray:
    """Centre of the rocket (T, 2), in pixels. It starts behind the middle of the picture, entirely in view."""
    size = np.array([stage.width, stage.height])
    spread = np.array([dice.uniform(-0.08, 0.08), dice.uniform(-0.08, 0.08)])
    start = size * (0.5 + spread) - (0.16 * stage.unit + 0.3 * (size - stage.unit)) * heading
    return start + stage.times[:, :, 0] * STRIDE * stage.unit * np.array(heading)


def _land(stage: Stage, dice: Dice) -> np.ndarray:
    weather = dice.pick(backdrop.WEATHERS)
    return backdrop.landscape(stage, dice, weather, 0.93, dice.uniform(0.94, 1.05) * stage.height)


def _axes(part: Stage, path: np.ndarray, heading: tuple[float, float], half: float) -> Axes:
    x = (part.x - path[:, 0, None, None].astype(np.float32)) / half
    y = (part.y - path[:, 1, None, None].astype(np.float32)) / half
    return Axes(x * heading[0] + y * heading[1], y * heading[0] - x * heading[1], 1 / half, part.times)


def _rocket(frames: np.ndarray, axes: Axes, dice: Dice) -> None:
    hull, paint, glass = (rgb(code) for code in dice.pick(LIVERIES))
    flame = [rgb(code) for code in dice.pick(FLAMES)]
    along, across, pixel = axes.along, axes.across, axes.pixel
    _trail(frames, axes, flame)
    _flame(frames, axes, flame, dice.uniform(0.8, 1.2))

    side = np.abs(across)
    over(frames, paint * 0.86, inside(convex(side, along, FIN) / pixel))
    over(frames, paint * 0.6, inside(np.maximum(np.abs(along + 0.76) - 0.1, side - 0.2) / pixel))
    fat = dice.uniform(0.3, 0.37)
    edge = np.maximum(_lens(along + 0.1, side, 1.12, fat), -along - 0.74) / pixel
    lit = np.clip(0.98 - 0.5 * (across + 0.12) ** 2 / fat**2 - 0.16 * across / fat, 0.5, 1.0)
    nose = inside((0.48 - along) / pixel)
    over(frames, mix(hull, paint, nose) * lit, inside(edge))
    pane = disc(along - 0.12, across, 0.16)
    over(frames, paint * 0.7, inside(pane / pixel))
    over(frames, glass, inside((pane + 0.055) / pixel))


FIN = ((0.12, -0.68), (0.54, -1.08), (0.6, -0.8), (0.2, -0.04))
"""One fin, (across, along) in half lengths; the other is its mirror image."""


def _lens(along: np.ndarray, side: np.ndarray, length: float, width: float) -> np.ndarray:
    """Signed distance to a lens, the overlap of two circles, with these half axes. side is at least 0."""
    radius = (length * length + width * width) / (2 * width)
    return disc(along, side + radius - width, radius)


def _flame(frames: np.ndarray, axes: Axes, colours: list[np.ndarray], size: float) -> None:
    """Draw three teardrops that pulse together, and their glow."""
    pulse = 1 + 0.09 * np.sin(1.3 * axes.times)
    behind = -(axes.along + 0.84)
    apart = (behind - 0.45 * size) ** 2 / (1.1 * size) ** 2 + axes.across**2 / 0.62
    over(frames, colours[0], 0.5 * np.exp(-2.6 * apart))
    for colour, wide, long in zip(colours, (0.23, 0.155, 0.085), (1.15, 0.85, 0.5), strict=True):
        place = np.clip(behind / (long * size * pulse), 0.0, 1.0)
        edge = np.abs(axes.across) - wide * (1 - place) * (0.75 + 1.1 * place)
        over(frames, colour, inside(np.maximum(edge, -behind) / axes.pixel) * smoothstep(1.0, 0.92, place))


def _trail(frames: np.ndarray, axes: Axes, colours: list[np.ndarray]) -> None:
    """Draw thin smoke that widens and fades behind the flame."""
    behind = np.clip((-axes.along - 0.9) / 3.4, 0.0, 1.0)
    wide = 0.1 + 0.34 * behind
    veil = np.exp(-((axes.across / wide) ** 2)) * smoothstep(0.0, 0.12, behind) * (1 - behind) ** 1.5
    over(frames, mix(colours[-1], rgb("#d8d4e0"), 0.6), 0.55 * veil)
