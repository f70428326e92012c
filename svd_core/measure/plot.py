"""A plot of the motion meter's results: four panels of curves over the clip, with the readings above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .lettering import Colour, text_width, write
from .meter import Measured

SIZE = (1024, 640)
HEAD = 96
"""Height in pixels of the readings above the panels."""

LEFT, RIGHT, TOP, BOTTOM = 58, 22, 48, 34
"""Margins in pixels around a panel's curves: for the scale, the last frame's number, title and legend, and the frame
numbers."""

PAPER, INK, PALE, GRID = (252, 252, 250), (30, 32, 38), (110, 114, 122), (222, 222, 218)
BLUE, ORANGE, GREEN = (38, 96, 190), (222, 120, 20), (40, 140, 80)
TICKS = 4
LETTERS = 14


@dataclass(frozen=True, slots=True, eq=False)
class _Curve:
    """A curve's name, values over frames, and colour."""

    name: str
    values: np.ndarray
    ink: Colour


@dataclass(frozen=True, slots=True, eq=False)
class _Panel:
    """Curves on a common scale from 0. `first` is the frame (from 1) of the first value; `least` the smallest top of
    the scale, so that noise does not fill the panel."""

    title: str
    curves: tuple[_Curve, ...]
    first: int
    least: float

    @property
    def high(self) -> float:
        """The value at the top of the scale."""
        return max(self.least, 1.08 * max(float(curve.values.max()) for curve in self.curves))


def plot_measured(measured: Measured) -> np.ndarray:
    """Plot motion with its camera and subject parts, flicker, drift and sharpness -> (H, W, 3) float32 in [0, 1]."""
    picture = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(picture)
    _write_head(pen, measured)
    for place, panel in enumerate(_panels(measured)):
        row, column = divmod(place, 2)
        width, height = SIZE[0] // 2, (SIZE[1] - HEAD) // 2
        _draw_panel(pen, panel, (column * width, HEAD + row * height, width, height))
    return np.asarray(picture).astype(np.float32) / 255


def _panels(measured: Measured) -> tuple[_Panel, ...]:
    moving = (
        _Curve("all", measured.motion, BLUE),
        _Curve("camera", measured.camera, ORANGE),
        _Curve("subject", measured.subject, GREEN),
    )
    return (
        _Panel("Motion, pixels a frame", moving, 2, 0.1),
        _Panel("Flicker, % of white", (_Curve("", measured.flicker, BLUE),), 2, 0.5),
        _Panel("Colour drift from the first frame, % of white", (_Curve("", measured.drift, BLUE),), 1, 1.0),
        _Panel("Sharpness, first frame = 1", (_Curve("", measured.sharpness, BLUE),), 1, 1.1),
    )


def _write_head(pen: ImageDraw.ImageDraw, measured: Measured) -> None:
    """Write the readings in three lines."""
    texts = [f"{each.name} {each.figure} {each.unit}" for each in measured.readings]
    for number, part in enumerate((texts[:3], texts[3:7], texts[7:])):
        ink = INK if number == 0 else PALE
        head = f"Motion Meter, {len(measured.drift)} frames:   " if number == 0 else ""
        write(pen, (16, 20 + 26 * number), head + "      ".join(part), SIZE[0] - 32, LETTERS + 2, ink)


def _draw_panel(pen: ImageDraw.ImageDraw, panel: _Panel, box: tuple[int, int, int, int]) -> None:
    """Draw one panel in box (left, top, width, height), in pixels."""
    left, top, width, height = box
    inner = (left + LEFT, top + TOP, left + width - RIGHT, top + height - BOTTOM)
    _draw_legend(pen, panel, (left + 16, top + 16), width - 32)
    for tick in range(TICKS + 1):
        share = tick / TICKS
        y = round(inner[3] - share * (inner[3] - inner[1]))
        pen.line([(inner[0], y), (inner[2], y)], fill=GRID)
        write(pen, (inner[0] - 8, y), f"{share * panel.high:.2f}", LEFT - 12, LETTERS - 2, PALE, anchor="rm")
    for curve in panel.curves:
        pen.line(_points(curve.values, panel.high, inner), fill=curve.ink, width=2)
    _write_frames(pen, panel, inner)


def _draw_legend(pen: ImageDraw.ImageDraw, panel: _Panel, place: tuple[int, int], width: int) -> None:
    """Write the title and, after it, the names of the curves."""
    x, y = place
    write(pen, place, panel.title, width, LETTERS + 1, INK)
    x += text_width(pen, panel.title, LETTERS + 1) + 24
    for curve in panel.curves:
        if curve.name:
            pen.line([(x, y), (x + 20, y)], fill=curve.ink, width=3)
            write(pen, (x + 26, y), curve.name, width, LETTERS - 1, INK)
            x += 26 + text_width(pen, curve.name, LETTERS - 1) + 18


def _write_frames(pen: ImageDraw.ImageDraw, panel: _Panel, inner: tuple[int, int, int, int]) -> None:
    """Write the numbers of the first, middle and last frame below the curves."""
    count = len(panel.curves[0].values)
    for place in sorted({0, (count - 1) // 2, count - 1}):
        x = _across(place, count, inner)
        words = "frame " if place == 0 else ""
        anchor = "lm" if place == 0 else "mm"
        write(pen, (x, inner[3] + 16), f"{words}{panel.first + place}", 80, LETTERS - 2, PALE, anchor=anchor)


def _points(values: np.ndarray, high: float, inner: tuple[int, int, int, int]) -> Sequence[tuple[int, int]]:
    """The pixel (x, y) of each value; a single value becomes a horizontal line."""
    if len(values) == 1:
        values = np.repeat(values, 2)
    down = inner[3] - np.clip(values / high, 0, 1) * (inner[3] - inner[1])
    return [(_across(place, len(values), inner), round(float(y))) for place, y in enumerate(down)]


def _across(place: int, count: int, inner: tuple[int, int, int, int]) -> int:
    return round(inner[0] + place / max(count - 1, 1) * (inner[2] - inner[0]))
