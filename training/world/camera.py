"""A camera that pans or zooms over a textured ground or a photograph, with marks in its viewfinder.

Nothing in a photograph shows where a camera will go, so the still carries a mark, as a camera's screen does: an arrow
at the edge that a pan moves towards; a frame around the middle for a zoom in; arrows in the corners, pointing out, for
a zoom out. A still without marks zooms in. These marks are this world's own convention.
"""

from __future__ import annotations

import numpy as np

from . import grounds
from .dice import Dice
from .paint import Stage, capsule, inside, over, rgb
from .photographs import photograph
from .scene import STRIDE, Take, mean_step
from .view import look

UNMARKED = 0.5
"""Share of zooms in without a mark."""


def pan(stage: Stage, dice: Dice, photographs: tuple[str, ...]) -> Take:
    """The camera moves in any direction; `direction` is the opposite, in which the picture's content moves."""
    texture, scale = _texture(stage, dice, photographs, 1.25)
    angle = dice.uniform(0, 2 * np.pi)
    heading = np.array([np.cos(angle), np.sin(angle)])
    gone = stage.times[:, 0] * STRIDE * stage.unit * heading  # (T, 2), pixels
    corner = _corner(stage, dice, texture, scale, heading) + gone * scale
    size = np.array([stage.width, stage.height]) * scale
    frames = look(texture, np.concatenate([corner, corner + size], axis=1), stage.width, stage.height)
    _arrow(frames, stage.still(), _edge(stage, heading), heading, 0.12 * stage.unit)
    return Take(_legal(frames), mean_step(gone), (float(-heading[0]), float(-heading[1])))


def zoom(stage: Stage, dice: Dice, photographs: tuple[str, ...]) -> Take:
    """The camera zooms in on the middle, or out from it."""
    sense = dice.sign()
    texture, scale = _texture(stage, dice, photographs, 1.5 if sense > 0 else 0.85)
    nearer = 2 * STRIDE * stage.times[:, 0]  # (T, 1), logarithm of the enlargement
    size = np.array([stage.width, stage.height]) * scale
    middle = _corner(stage, dice, texture, scale, np.zeros(2)) + size / 2
    reach = size / 2 * np.exp(-sense * nearer)
    frames = look(texture, np.concatenate([middle - reach, middle + reach], axis=1), stage.width, stage.height)
    if sense < 0:
        _corners(frames, stage.still())
    elif not dice.chance(UNMARKED):
        _frame(frames, stage.still())
    return Take(_legal(frames), mean_step(nearer) * stage.unit / 2, None, sense)


def _texture(stage: Stage, dice: Dice, photographs: tuple[str, ...], closeness: float) -> tuple[np.ndarray, float]:
    """A picture for the camera, and how many of its pixels make one pixel of the frame."""
    if dice.chance(0.5):
        texture = grounds.draw(dice)
        share = dice.uniform(0.48, 0.7)
    else:
        texture = _tinted(photograph(dice.pick(photographs)), dice)
        share = dice.uniform(0.5, 0.85)
    if dice.chance(0.5):
        texture = texture[:, ::-1]
    fit = min(texture.shape[0] / stage.height, texture.shape[1] / stage.width)
    return texture, fit * min(share * closeness / 1.25, 0.96)


def _tinted(picture: np.ndarray, dice: Dice) -> np.ndarray:
    """Give grey photographs a colour cast, so that the world is not half grey; coloured ones are unchanged."""
    cast = np.array([dice.uniform(0.72, 1.0) for _ in range(3)])
    if not np.array_equal(picture[::16, ::16, 0], picture[::16, ::16, 1]):
        return picture
    table = np.arange(256)[:, None] / 255
    toned = (255 * table ** (1 / cast - 0.12) + 0.5).clip(0, 255).astype(np.uint8)  # (256, 3)
    return toned[picture[..., 0]]


def _corner(stage: Stage, dice: Dice, texture: np.ndarray, scale: float, heading: np.ndarray) -> np.ndarray:
    """Upper left corner (2,), in texture pixels, of a window that is inside the texture. It leaves more room ahead in
    the heading, so that a long pan shows less of the mirrored edge."""
    room = np.array([texture.shape[1] - stage.width * scale, texture.shape[0] - stage.height * scale])
    return room * (0.5 - 0.35 * heading + np.array([dice.uniform(-0.15, 0.15), dice.uniform(-0.15, 0.15)]))


def _legal(frames: np.ndarray) -> np.ndarray:
    return np.clip(frames, 0.0, 1.0)


INK, PAPER, LINE, OUTLINE = "#ffffff", "#10141c", 0.02, 0.018
"""Colours of a mark and its outline, and their half widths as shares of the shorter side."""


def _strokes(frames: np.ndarray, still: Stage, strokes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw white lines with a dark outline in every frame; each is a pair of end points (2,) in pixels."""
    away = np.min([capsule(still.x, still.y, *ends, LINE * still.unit) for ends in strokes], axis=0)
    over(frames, rgb(PAPER), 0.75 * inside(away - OUTLINE * still.unit))
    over(frames, rgb(INK), inside(away))


def _arrow(frames: np.ndarray, still: Stage, tip: np.ndarray, heading: np.ndarray, size: float) -> None:
    across = np.array([-heading[1], heading[0]])
    barbs = [(tip, tip - size * (0.8 * heading + side * 0.75 * across)) for side in (-1, 1)]
    _strokes(frames, still, [(tip, tip - 1.9 * size * heading), *barbs])


def _edge(stage: Stage, heading: np.ndarray) -> np.ndarray:
    """Point (2,) where a ray from the middle meets a rectangle slightly inside the picture's edge."""
    half = np.array([stage.width, stage.height]) / 2 - 0.08 * stage.unit
    return np.array([stage.width, stage.height]) / 2 + heading * (half / np.maximum(np.abs(heading), 1e-6)).min()


def _corners(frames: np.ndarray, still: Stage) -> None:
    """Draw four arrows that point out of the picture's corners."""
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        away = np.array([2 * x - 1, 2 * y - 1])
        corner = np.array([x * still.width, y * still.height]) - away * 0.07 * still.unit
        _arrow(frames, still, corner, away / np.sqrt(2), 0.08 * still.unit)


def _frame(frames: np.ndarray, still: Stage) -> None:
    """Draw the corners of a frame around the middle half of the picture."""
    strokes = []
    for x, y in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        corner = np.array([still.width * (0.5 + 0.26 * x), still.height * (0.5 + 0.26 * y)])
        for arm in ((-x, 0), (0, -y)):
            strokes.append((corner, corner + 0.13 * still.unit * np.array(arm)))
    _strokes(frames, still, strokes)
