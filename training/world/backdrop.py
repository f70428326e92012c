"""Static backgrounds: skies, stars, suns, hills and ground. Each function draws on one picture (3, 1, H, W)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .dice import Dice
from .paint import Stage, disc, fractal_noise, gradient, inside, mix, over, rgb, smoothstep

MOST_STARS = 46


@dataclass(frozen=True, slots=True)
class Weather:
    """A matching set of colours: the sky from the top down, hills from far to near, grass, sun or moon."""

    sky: tuple[str, ...]
    hills: tuple[str, str]
    ground: str
    light: str
    cloud: str
    dark: bool = False


DAYS = (
    Weather(("#3f8fd8", "#86c2ee", "#d8eef8"), ("#8fb8c8", "#4f8f6a"), "#6fae4e", "#fff6d0", "#ffffff"),
    Weather(("#2b74c4", "#5ba6e0", "#bfe3f2"), ("#7fa6b8", "#3f7f5a"), "#8cb84a", "#fff2b8", "#ffffff"),
    Weather(("#58b4c8", "#a4dcd4", "#f0f4d8"), ("#8cc0a8", "#4e9878"), "#c8b45c", "#fffbe0", "#fffdf2"),
    Weather(("#7a9cc8", "#b8cce0", "#f4e4d4"), ("#a4b0c0", "#6c8c84"), "#94a468", "#fff4e4", "#fbf6f0"),
    Weather(("#5a7fd0", "#a0aee4", "#f6d4dc"), ("#a694c4", "#6a7cac"), "#7ca878", "#fff0f0", "#fff4f6"),
)
DUSKS = (
    Weather(("#2a2f6e", "#8a4c8c", "#f08a6c", "#ffd08c"), ("#94587c", "#4c3464"), "#5c4a5e", "#ffe8b4", "#ffc8b0"),
    Weather(("#3c4a92", "#c0708c", "#f8b07c"), ("#9c6484", "#54406c"), "#6e5c4c", "#fff0c4", "#ffd8c0"),
    Weather(("#1f4a6c", "#4a9494", "#f0c47c"), ("#4c8484", "#28505c"), "#5c7448", "#fff2c4", "#f8e0b8"),
    Weather(("#5c2c5c", "#c44c60", "#f89c54", "#fce09c"), ("#8c3c5c", "#50284c"), "#74483c", "#fff0bc", "#ffc49c"),
)
NIGHTS = (
    Weather(("#0a1030", "#1c2c60", "#44608c"), ("#2c4068", "#182848"), "#28483c", "#f4f2dc", "#6c80a8", dark=True),
    Weather(("#140c34", "#3c2464", "#7c4880"), ("#4a3068", "#281c48"), "#3c3450", "#fbeed4", "#8c6c9c", dark=True),
    Weather(("#041c2c", "#0c4450", "#2c847c"), ("#185058", "#0c3440"), "#1c4c40", "#e4fbf0", "#5c9c98", dark=True),
)
WEATHERS = (*DAYS, *DAYS, *DUSKS, *NIGHTS)

SPACES = (
    ("#05060f", "#0f1436", "#4a2c7c", "#1c5c94"),
    ("#0a0512", "#2a0f34", "#a03c68", "#503090"),
    ("#02080f", "#062434", "#1c746c", "#2c4ca0"),
    ("#100808", "#341418", "#b05c34", "#5c2c6c"),
)
"""Palettes for space: two colours of the background, two of nebulae."""

PLANETS = ("#d88c5c", "#5ca0d8", "#8cc48c", "#d8b470", "#b480d0", "#d06c78", "#70c8c0")


def sky(stage: Stage, weather: Weather, horizon: float = 1.0) -> np.ndarray:
    """A sky (3, 1, H, W) from its first colour at the top to its last at `horizon`, a share of the height."""
    column = gradient([rgb(code) for code in weather.sky], stage.y / stage.height / horizon)  # (3, 1, H, 1)
    return np.repeat(column, stage.width, axis=-1)


def stars(picture: np.ndarray, stage: Stage, dice: Dice, count: int, floor: float = 1.0) -> None:
    """Draw soft points of light above `floor`, a share of the height."""
    light = np.zeros((1, stage.height, stage.width), np.float32)
    for x, y, size, tint in dice.many(count, 4):
        spread = (0.4 + 0.5 * size * size) * (stage.unit / 64) ** 0.5
        apart = (stage.x - x * stage.width) ** 2 + (stage.y - y * stage.height * floor) ** 2
        light = np.maximum(light, (0.35 + 0.65 * tint) * np.exp(-apart / (2 * spread * spread)))
    over(picture, rgb("#fffaf0"), light)


def sun(picture: np.ndarray, stage: Stage, dice: Dice, weather: Weather) -> None:
    """Draw a sun or moon with its glow in the upper half."""
    x, y = stage.x - dice.uniform(0.1, 0.9) * stage.width, stage.y - dice.uniform(0.12, 0.45) * stage.height
    radius = stage.unit * dice.uniform(0.05, 0.09)
    away = disc(x, y, radius)
    glow = np.exp(-np.maximum(away, 0) / (radius * (1.2 if weather.dark else 2.2)))
    over(picture, rgb(weather.light), (0.28 if weather.dark else 0.42) * glow)
    over(picture, rgb(weather.light), inside(away))
    if weather.dark and dice.chance(0.6):
        bite = inside(disc(x - radius * 0.55, y + radius * 0.2, radius * 0.9)) * inside(away)
        over(picture, mix(rgb(weather.sky[0]), rgb(weather.sky[1]), 0.6), bite)


def ridge(stage: Stage, dice: Dice, mean: float, height: float, waves: float) -> np.ndarray:
    """Outline of a hill as a sum of sines: y in pixels per column, (1, 1, W). mean and height are shares of the
    picture's height."""
    place = stage.x / stage.width * 2 * np.pi * waves
    line = sum(np.sin(place * 1.9**k + dice.uniform(0, 2 * np.pi)) / 2.2**k for k in range(3))
    return ((mean + height * line) * stage.height).astype(np.float32)


def hills(picture: np.ndarray, stage: Stage, dice: Dice, weather: Weather, horizon: float) -> None:
    """Draw two ranges of hills, the far one hazier, around `horizon`, a share of the height."""
    haze = rgb(weather.sky[-1])
    for lift, height, share, code in ((0.13, 0.045, 0.35, weather.hills[0]), (0.05, 0.035, 0.0, weather.hills[1])):
        line = ridge(stage, dice, horizon - lift, height, dice.uniform(0.7, 2.2))
        light = 1.12 - 0.25 * np.clip((stage.y - line) / (0.3 * stage.height), 0, 1)
        over(picture, np.clip(mix(rgb(code), haze, share) * light, 0, 1), inside(line - stage.y))


def ground(picture: np.ndarray, stage: Stage, dice: Dice, weather: Weather, line: np.ndarray | float) -> None:
    """Draw grass or sand below `line`, in pixels: lighter near the line, mottled by noise."""
    depth = stage.y - line
    light = 1.15 - 0.35 * np.clip(depth / (0.35 * stage.height), 0, 1)
    grain = fractal_noise(dice, stage.height, stage.width, stage.unit * 0.16, 3)[None]
    colour = rgb(weather.ground) * (light + 0.09 * grain)
    over(picture, np.clip(colour, 0, 1), inside(-depth))


def landscape(stage: Stage, dice: Dice, weather: Weather, horizon: float, line: np.ndarray | float) -> np.ndarray:
    """A landscape (3, 1, H, W): sky, stars at night, a sun, hills and ground below `line`."""
    picture = sky(stage, weather, horizon)
    if weather.dark:
        stars(picture, stage, dice, MOST_STARS, horizon)
    if dice.chance(0.7):
        sun(picture, stage, dice, weather)
    hills(picture, stage, dice, weather, horizon)
    ground(picture, stage, dice, weather, line)
    return picture


def space(stage: Stage, dice: Dice) -> np.ndarray:
    """A picture of space (3, 1, H, W) with nebulae, stars and, usually, a planet."""
    codes = dice.pick(SPACES)
    across = stage.x / stage.width
    slant = 0.5 * (stage.y / stage.height + (across if dice.chance(0.5) else 1 - across))
    picture = mix(rgb(codes[0]), rgb(codes[1]), slant)
    for code in codes[2:]:
        cloud = fractal_noise(dice, stage.height, stage.width, stage.unit * 0.7)[None]
        over(picture, rgb(code), 0.7 * smoothstep(-0.2, 1.0, cloud))
    stars(picture, stage, dice, MOST_STARS)
    if dice.chance(0.65):
        _planet(picture, stage, dice)
    return picture


def _planet(picture: np.ndarray, stage: Stage, dice: Dice) -> None:
    """Draw a banded sphere lit from one side, near an edge of the picture."""
    radius = stage.unit * dice.uniform(0.12, 0.26)
    x = stage.x - stage.width * (0.5 + dice.sign() * dice.uniform(0.28, 0.46))
    y = stage.y - stage.height * dice.uniform(0.1, 0.9)
    angle, lit = dice.uniform(0, np.pi), dice.uniform(0, 2 * np.pi)
    bands = 0.5 + 0.5 * np.sin((x * np.sin(angle) + y * np.cos(angle)) / radius * dice.uniform(4, 9))
    colour = mix(rgb(dice.pick(PLANETS)), rgb(dice.pick(PLANETS)), 0.45 * bands)
    shade = np.clip(0.62 + 0.6 * (x * np.cos(lit) + y * np.sin(lit)) / radius, 0.12, 1.0)
    over(picture, colour * shade, inside(disc(x, y, radius)))
