"""Textured grounds seen from above, for a camera to move over. While painted, a ground is (3, 1, SIDE, SIDE)."""

from __future__ import annotations

import numpy as np

from .dice import Dice
from .paint import fractal_noise, gradient, mix, over, rgb, smoothstep

SIDE = 320

SEAS = (
    ("#14407c", "#2c7cb4", "#58b8c8", "#f0e0a8", "#7cb458", "#3c803c", "#7c7468", "#f4f4f4"),
    ("#0c5060", "#1c8c90", "#74d0b8", "#f8e8c0", "#b8c060", "#648c38", "#84583c", "#e8d0b0"),
    ("#2c2c6c", "#5058a8", "#8c98d0", "#e8c8c0", "#b88ca8", "#785888", "#503c64", "#f0dce8"),
    ("#7c2c1c", "#b4502c", "#d88448", "#f0c078", "#d8a868", "#a87048", "#745040", "#f8ecd8"),
)
"""Palettes from the deep sea to the mountain tops."""

FIELDS = (
    ("#8cb450", "#d8c858", "#b49048", "#5c9448", "#e8dc90", "#789c3c", "#a86c3c"),
    ("#e07c5c", "#f0b070", "#c05870", "#f8dca0", "#8c5078", "#e89c8c"),
    ("#70b0c8", "#a8d8d0", "#4888a8", "#e8f0d8", "#3c6c90", "#88c0a8"),
)

MEADOWS = (
    ("#4c8c3c", "#84b84c", ("#f8f4e8", "#fbd84c", "#e86c7c")),
    ("#386c58", "#6ca87c", ("#f8e8f0", "#c878d0", "#78b8f0")),
    ("#b08c54", "#d8bc84", ("#6c4834", "#f4ecd8", "#8c6c4c")),
    ("#34406c", "#5c70a4", ("#f8d878", "#f4f4fc", "#f08c78")),
)


def draw(dice: Dice) -> np.ndarray:
    """Islands, fields or a meadow -> (SIDE, SIDE, 3) uint8."""
    picture = dice.pick((islands, fields, meadow))(dice)[:, 0]  # (3, SIDE, SIDE)
    return np.ascontiguousarray(np.moveaxis(np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8), 0, -1))


def islands(dice: Dice) -> np.ndarray:
    """A map of sea, beach, forest and mountains, lit from the upper left."""
    height = fractal_noise(dice, SIDE, SIDE, 56, 5)[None]
    colour = gradient([rgb(code) for code in dice.pick(SEAS)], np.clip(0.45 + 0.42 * height, 0, 1))
    rise = np.zeros_like(height)
    rise[:, 2:, 2:] = height[:, 2:, 2:] - height[:, :-2, :-2]
    return colour * (1 + np.clip(0.8 * rise, -0.22, 0.22) * smoothstep(-0.2, 0.2, height))


def fields(dice: Dice) -> np.ndarray:
    """Crooked fields with furrows."""
    cell, wide = dice.uniform(26, 44), dice.uniform(1.0, 1.7)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    warp = fractal_noise(dice, 2 * SIDE, SIDE, 60, 2)
    row = (y + 6 * warp[:SIDE]) / cell
    column = (x + 6 * warp[SIDE:]) / (cell * wide) + 0.5 * np.mod(np.floor(row), 2)
    table = dice.many(64, 64, 2)
    chance = table[np.floor(row).astype(int) % 64, np.floor(column).astype(int) % 64]
    palette = np.stack([rgb(code)[:, :, 0, 0] for code in dice.pick(FIELDS)], axis=-1)  # (3, 1, colours)
    colour = palette[..., (chance[..., 0] * palette.shape[-1]).astype(int)]
    turn = chance[..., 1] * np.pi
    furrows = np.sin((x * np.cos(turn) + y * np.sin(turn)) * 0.85)
    edge = np.minimum(np.abs(row - np.round(row)), np.abs(column - np.round(column)) * wide) * cell
    hedge = 0.55 * smoothstep(2.6, 1.2, edge)
    return mix(colour * (1 + 0.07 * furrows), rgb("#3c4c34"), hedge)


def meadow(dice: Dice) -> np.ndarray:
    """Mottled grass with flowers or stones."""
    low, high, dots = dice.pick(MEADOWS)
    noise = fractal_noise(dice, SIDE, SIDE, 40, 5)[None]
    picture = mix(rgb(low), rgb(high), smoothstep(-0.8, 0.8, noise))
    for x, y, size, tint in dice.many(150, 4):
        _dot(picture, x * SIDE, y * SIDE, 2.0 + 3.2 * size, rgb(dots[int(tint * len(dots))]))
    return picture


def _dot(picture: np.ndarray, x: float, y: float, radius: float, colour: np.ndarray) -> None:
    """A soft disc with a shadow below it, in place."""
    top, left = max(0, int(y - radius - 3)), max(0, int(x - radius - 3))
    part = picture[..., top : int(y + radius + 4), left : int(x + radius + 4)]
    rows, columns = np.ogrid[: part.shape[-2], : part.shape[-1]]
    for shift, paint, strength in ((1.5, rgb("#182018"), 0.4), (0.0, colour, 1.0)):
        away = np.hypot(columns + left - x - shift, rows + top - y - shift) - radius
        over(part, paint, (strength * np.clip(0.5 - away, 0, 1)).astype(np.float32)[None])
