"""Clouds that drift with the wind, which bends the smoke of a chimney and spreads a flag."""

from __future__ import annotations

import numpy as np

from . import backdrop
from .dice import Dice
from .paint import Stage, box, capsule, convex, disc, fractal_noise, inside, mix, over, rgb, smoothstep
from .scene import STRIDE, Take, mean_step
from .view import look

PUFFS = 13
FLAGS = (("#e8483c", "#f8f4ec"), ("#2c64b8", "#fbd84c"), ("#2c9c78", "#f8f4ec"), ("#f0942c", "#583c7c"))
WALLS = ("#e8d8c0", "#d89c78", "#c86c58", "#a8b8c8", "#f0e8e0")
ROOFS = ("#8c3c34", "#4c4858", "#6c4c34", "#34586c")
HORIZON = 0.86


def draw(stage: Stage, dice: Dice) -> Take:
    """A house with a smoking chimney and, usually, a flag, under clouds. `direction` is that of the wind."""
    wind = dice.sign()
    gone = stage.times * (STRIDE * stage.unit)  # pixels
    weather = dice.pick(backdrop.WEATHERS)
    frames = _clouds(stage, dice, weather, wind * gone[:, 0, 0])
    _front(frames, stage, dice, weather)

    house = stage.width * (0.5 - wind * dice.uniform(0.12, 0.32))
    chimney, size = _house(frames, stage.still(), dice, house)
    veil = mix(rgb("#58586c" if not weather.dark else "#a8b0c4"), rgb(weather.cloud), 0.25)
    _smoke(frames, stage, chimney, size, wind, gone / size, veil)
    if dice.chance(0.75):
        place = stage.width * (0.5 + wind * dice.uniform(0.06, 0.24))
        _flag(frames, stage, dice, place, wind, gone)
    return Take(frames, mean_step(gone[:, 0, 0]), (float(wind), 0.0))


def _clouds(stage: Stage, dice: Dice, weather: backdrop.Weather, gone: np.ndarray) -> np.ndarray:
    """Sky with clouds that have moved by `gone` (T,) pixels -> (3, T, H, W)."""
    still = stage.still()
    sky = backdrop.sky(still, weather, HORIZON)
    if weather.dark:
        backdrop.stars(sky, still, dice, backdrop.MOST_STARS, HORIZON)
    if dice.chance(0.6):
        backdrop.sun(sky, still, dice, weather)
    alpha, light = _cumulus(stage, dice)
    left = (alpha.shape[1] - stage.width) / 2 - gone
    zeros = np.zeros_like(left)
    boxes = np.stack([left, zeros, left + stage.width, zeros + stage.height], axis=1)
    alpha, light = (look(texture, boxes, stage.width, stage.height) for texture in (alpha, light))
    frames = stage.film(sky)
    shade = mix(rgb(weather.cloud), rgb(weather.sky[0]), 0.3)
    colour = mix(shade, rgb(weather.cloud), np.clip(light, 0, 1))
    over(frames, colour, 0.94 * np.clip(alpha, 0, 1))
    return frames


def _cumulus(stage: Stage, dice: Dice) -> tuple[np.ndarray, np.ndarray]:
    """Opacity and brightness of clouds, each (H, 3 W) float32: heaps of discs with a flat bottom and noisy edges."""
    height, width = stage.height, 3 * stage.width
    x, y = np.arange(width, dtype=np.float32)[None] + 0.5, np.arange(height, dtype=np.float32)[:, None] + 0.5
    fluff = fractal_noise(dice, height, width, 0.2 * stage.unit, 3)
    alpha, light = np.zeros((height, width), np.float32), np.ones((height, width), np.float32)
    count = 2 * round(width / stage.unit)
    for place in range(count):
        middle = (place + dice.uniform(0.1, 0.9)) / count * width
        size, floor = stage.unit * dice.uniform(0.07, 0.16), height * dice.uniform(0.14, 0.56)
        columns = slice(max(0, int(middle - 4 * size)), int(middle + 4 * size))
        away = _heap(x[:, columns] - middle, y - floor, size, dice) + 0.16 * size * fluff[:, columns]
        here = inside(away, max(1.5, 0.16 * size))
        lit = np.clip(1.0 + 0.55 * (y - floor + 0.5 * size) / -size, 0.0, 1.0) + 0.12 * fluff[:, columns]
        light[:, columns] += here * (lit - light[:, columns])
        alpha[:, columns] = np.maximum(alpha[:, columns], here)
    return alpha, light


def _heap(x: np.ndarray, y: np.ndarray, size: float, dice: Dice) -> np.ndarray:
    """Signed distance to one cloud of half width about 2.2 sizes, its floor at y = 0."""
    away = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf, np.float32)
    for place in (-1.4, -0.75, 0.0, 0.7, 1.35):
        radius = size * (1.05 - 0.32 * abs(place)) * dice.uniform(0.75, 1.1)
        away = np.minimum(away, disc(x - place * size, y + 0.55 * radius, radius))
    return np.maximum(away, y)


def _front(frames: np.ndarray, stage: Stage, dice: Dice, weather: backdrop.Weather) -> None:
    """Draw hills and ground over the clouds."""
    still = stage.still()
    backdrop.hills(frames, still, dice, weather, HORIZON)
    backdrop.ground(frames, still, dice, weather, HORIZON * stage.height)


def _house(frames: np.ndarray, still: Stage, dice: Dice, place: float) -> tuple[tuple[float, float], float]:
    """Draw a house with a chimney. Returns the chimney's mouth (x, y) and the house's half width, in pixels."""
    size, floor = still.unit * dice.uniform(0.12, 0.15), 0.93 * still.height
    wall, roof = rgb(dice.pick(WALLS)), rgb(dice.pick(ROOFS))
    side = dice.sign()
    x, y = still.x - place, still.y - floor
    pipe = box(x - side * 0.55 * size, y + 1.75 * size, 0.16 * size, 0.75 * size)
    over(frames, roof * 0.8, inside(pipe))
    over(frames, wall, inside(box(x, y + 0.6 * size, size, 0.6 * size)))
    gable = ((0.0, -2.1 * size), (1.25 * size, -1.1 * size), (-1.25 * size, -1.1 * size))
    over(frames, roof, inside(convex(x, y, gable)))
    for window in (-0.45, 0.45):
        pane = box(x - window * size, y + 0.62 * size, 0.2 * size, 0.24 * size)
        over(frames, rgb("#ffe89c"), inside(pane))
    return (place + side * 0.55 * size, floor - 2.5 * size), size


def _smoke(
    frames: np.ndarray,
    stage: Stage,
    mouth: tuple[float, float],
    size: float,
    wind: int,
    age: np.ndarray,
    colour: np.ndarray,
) -> None:
    """Draw puffs that leave the chimney, rise ever slower and drift off ever faster. age (T, 1, 1) is the distance that
    the wind has travelled, in widths of the house."""
    clear = np.ones((len(age), stage.height, stage.width), np.float32)
    for puff in range(PUFFS):
        life = np.mod(puff / PUFFS + age / 4.2, 1.0)  # 0 at the mouth, 1 when dissolved
        x = mouth[0] + wind * size * 4.4 * life**1.5
        y = mouth[1] - size * (1.75 * life**0.55 - 0.1)
        radius = size * (0.16 + 0.5 * life)
        strength = 0.75 * (1 - life) ** 0.9 * smoothstep(0.0, 0.08, life)
        away = ((stage.x - x) ** 2 + (stage.y - y) ** 2) / (radius * radius)
        clear *= 1 - strength * np.clip(1 - 0.5 * away, 0, 1) ** 2
    over(frames, colour, 1 - clear)


def _flag(frames: np.ndarray, stage: Stage, dice: Dice, place: float, wind: int, gone: np.ndarray) -> None:
    """Draw a pole with a two-coloured flag that waves in the wind."""
    long, high = stage.unit * dice.uniform(0.26, 0.34), stage.unit * 0.085
    top, still = stage.height * dice.uniform(0.4, 0.5), stage.still()
    one, other = (rgb(code) for code in dice.pick(FLAGS))
    along = (stage.x - place) * wind
    share = np.clip(along / long, 0, 1)
    wave = 0.055 * stage.unit * share**0.7 * np.sin(2 * np.pi * (along - 0.9 * gone) / (0.75 * long) + 1.0)
    down = stage.y - top - high - wave - 0.04 * stage.unit * share
    cloth = np.maximum(np.abs(down) - high, np.maximum(along - long, -along))
    slope = np.cos(2 * np.pi * (along - 0.9 * gone) / (0.75 * long) + 1.0)
    light = 1 - 0.16 * share * slope
    over(frames, mix(one, other, inside(np.abs(down) - 0.36 * high)) * light, inside(cloth))
    pole = capsule(still.x, still.y, (place, top - 0.02 * stage.unit), (place, 0.95 * stage.height), 0.014 * stage.unit)
    over(frames, rgb("#f0ece4"), inside(pole))
