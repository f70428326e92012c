"""A pinwheel that turns as its swept blades indicate, and a cart that rolls down a slope."""

from __future__ import annotations

import numpy as np

from . import backdrop
from .dice import Dice
from .paint import Stage, box, capsule, disc, inside, mix, over, rgb, smoothstep
from .scene import STRIDE, Take, mean_step

BLADES = ("#e84c4c", "#f89c34", "#fbd84c", "#5cb860", "#38a8b8", "#4878d8", "#9c58c0", "#f07cac", "#f8f4ec")
CARTS = (
    ("#d8503c", "#3c3440"),
    ("#2c8cb0", "#2c3444"),
    ("#e8b03c", "#4c3428"),
    ("#6c9c4c", "#34302c"),
    ("#8c5cb0", "#302840"),
)
CRATES = ("#c89058", "#e8d0a0", "#a0b8c8", "#d87c68")


def pinwheel(stage: Stage, dice: Dice) -> Take:
    """A pinwheel on a stick. Its tips trail: blades swept back anticlockwise turn clockwise."""
    sense, size = dice.sign(), stage.unit * dice.uniform(0.27, 0.36)
    centre = (stage.width * dice.uniform(0.32, 0.68), stage.height * dice.uniform(0.42, 0.5))
    turned = stage.times * (STRIDE * stage.unit / size)  # radians

    still = stage.still()
    weather = dice.pick(backdrop.WEATHERS)
    picture = backdrop.landscape(still, dice, weather, 0.85, dice.uniform(0.82, 0.92) * stage.height)
    foot = (centre[0], stage.height * 1.1)
    stick = capsule(still.x, still.y, centre, foot, stage.unit * 0.022)
    over(picture, rgb(dice.pick(("#8c6040", "#e8e4dc", "#5c4c48"))), inside(stick))
    frames = stage.film(picture)
    part, cut = stage.window(*(c - size - 2 for c in centre), *(c + size + 2 for c in centre))
    _blades(frames[cut], part, dice, centre, size, turned, sense)
    return Take(frames, mean_step(turned[:, 0, 0]) * size, None, sense)


def _blades(
    frames: np.ndarray,
    part: Stage,
    dice: Dice,
    centre: tuple[float, float],
    size: float,
    turned: np.ndarray,
    sense: int,
) -> None:
    count, sweep = 5 + dice.index(2), dice.uniform(0.75, 1.05)
    colours = dice.shuffled(BLADES)
    x, y = part.x - centre[0], part.y - centre[1]
    radius = np.sqrt(x * x + y * y) + 1e-3
    bent = np.arctan2(y, x) * sense + sweep * radius / size + dice.uniform(0, 2 * np.pi)
    pitch = 2 * np.pi / count
    for blade in range(count):
        angle = np.mod(bent - turned - blade * pitch + np.pi, 2 * np.pi) - np.pi  # 0 along the leading edge
        middle = angle + 0.33 * pitch
        edge = (np.abs(middle) - 0.33 * pitch) * radius
        rim = radius - size * (1 - 0.22 * np.clip(-angle / pitch, 0, 1))
        light = 1.08 + 0.42 * np.clip(angle / pitch, -1, 0)
        over(frames, np.clip(rgb(colours[blade]) * light, 0, 1), inside(np.maximum(edge, rim)))
    over(frames, rgb("#f8f4ec"), inside(radius - 0.11 * size))
    over(frames, rgb("#504848"), inside(radius - 0.05 * size))


def cart(stage: Stage, dice: Dice) -> Take:
    """A cart that rolls down a slope, which gives its `direction`."""
    sense, steep = dice.sign(), dice.uniform(0.16, 0.4)
    heading = (sense * float(np.cos(steep)), float(np.sin(steep)))
    middle = (stage.width * 0.5, stage.height * dice.uniform(0.66, 0.74))
    line = middle[1] + (stage.x - middle[0]) * (heading[1] / heading[0])
    weather = dice.pick(backdrop.WEATHERS)
    frames = stage.film(backdrop.landscape(stage.still(), dice, weather, 0.72, line))

    size = stage.unit * dice.uniform(0.15, 0.19)
    gone = stage.times * (STRIDE * stage.unit)  # pixels along the slope
    start = -dice.uniform(0.16, 0.26) * stage.width
    x = (stage.x - middle[0]) * heading[0] + (stage.y - middle[1]) * heading[1] - start - gone
    y = ((stage.y - middle[1]) * heading[0] - (stage.x - middle[0]) * heading[1]) * sense
    _cart(frames, x, y, size, gone, dice)
    return Take(frames, mean_step(gone[:, 0, 0]), heading)


def _cart(frames: np.ndarray, x: np.ndarray, y: np.ndarray, size: float, gone: np.ndarray, dice: Dice) -> None:
    """Draw the cart. x runs down the slope from its middle, y down from the ground, both in pixels; it drives to +x."""
    body, tyre = (rgb(code) for code in dice.pick(CARTS))
    wheel, axle = 0.42 * size, 0.66 * size
    over(frames, rgb("#101424"), 0.35 * inside(box(x, y, 1.2 * size, 0.1 * size), 0.3 * size))
    load = box(x + 0.2 * size, y + 1.42 * size, 0.42 * size, 0.34 * size, 0.06 * size)
    over(frames, rgb(dice.pick(CRATES)), inside(load))
    hull = box(x, y + 0.82 * size, 1.12 * size, 0.36 * size, 0.14 * size)
    light = np.clip(1.05 - 0.3 * (y / size + 1.2), 0.6, 1.1)
    over(frames, np.clip(body * light, 0, 1), inside(hull))
    over(frames, rgb("#fff4c0"), inside(disc(x - 0.98 * size, y + 0.86 * size, 0.1 * size)))
    for place in (-axle, axle):
        _wheel(frames, x - place, y + wheel, wheel, gone / wheel, tyre, mix(body, rgb("#ffffff"), 0.75))


def _wheel(
    frames: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    radius: float,
    turned: np.ndarray,
    tyre: np.ndarray,
    spokes: np.ndarray,
) -> None:
    away = np.sqrt(x * x + y * y)
    over(frames, tyre, inside(away - radius))
    cos, sin = np.cos(turned), np.sin(turned)
    u, v = x * cos + y * sin, y * cos - x * sin
    cross = np.minimum(np.abs(u), np.abs(v)) - 0.13 * radius
    over(frames, spokes, inside(np.maximum(cross, away - 0.74 * radius)))
    over(frames, spokes, inside(away - 0.24 * radius) * smoothstep(0.0, 1.0, away + 1))
