"""The loss curve as a PNG, drawn with Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .checkpoint import write_whole

SIZE = (800, 400)
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 30, 20, 40
_INK, _GRID, _POINTS, _LINE = (40, 40, 40), (225, 225, 225), (190, 205, 230), (30, 80, 170)
_SMOOTH_SHARE = 0.02
"""Width of the running mean, as a share of the run."""


def plot_losses(losses: Sequence[float], path: Path, title: str) -> None:
    """Plot the loss over steps on a logarithmic scale: each step pale, the running mean dark. Writes atomically.

    losses: one per step, at least one; values not above 0 are drawn at the bottom.
    """
    values = np.log10(np.maximum(np.asarray(losses, dtype=np.float64), 1e-8))
    low, high = _limits(values)
    picture = Image.new("RGB", SIZE, "white")
    canvas = ImageDraw.Draw(picture)
    _draw_grid(canvas, len(values), low, high)
    canvas.line(_points(values, low, high), fill=_POINTS)
    canvas.line(_points(running_mean(values), low, high), fill=_LINE, width=2)
    canvas.text((_LEFT, 10), f"{title}: loss by step, {losses[-1]:.4g} at step {len(losses)}", fill=_INK)
    content = io.BytesIO()
    picture.save(content, format="PNG")
    write_whole(path, content.getvalue())


def running_mean(values: np.ndarray) -> np.ndarray:
    """Running mean (n,) -> (n,) over a window ending at each value, shorter at the start."""
    window = max(1, math.ceil(len(values) * _SMOOTH_SHARE))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = max(0.05, 0.05 * (high - low))
    return low - margin, high + margin


def _points(values: np.ndarray, low: float, high: float) -> list[tuple[float, float]]:
    """Points of the plotted values; a single value becomes a horizontal line."""
    values = np.repeat(values, 2) if len(values) == 1 else values
    across = np.linspace(_LEFT, SIZE[0] - _RIGHT, len(values))
    return [(x, _height(value, low, high)) for x, value in zip(across, values, strict=True)]


def _height(value: float, low: float, high: float) -> float:
    return _TOP + (high - value) / (high - low) * (SIZE[1] - _TOP - _BOTTOM)


def _draw_grid(canvas: ImageDraw.ImageDraw, steps: int, low: float, high: float) -> None:
    for value in np.linspace(low, high, 6)[1:-1]:
        y = _height(value, low, high)
        canvas.line([(_LEFT, y), (SIZE[0] - _RIGHT, y)], fill=_GRID)
        canvas.text((10, y - 6), f"{10**value:.4g}", fill=_INK)
    for part in np.linspace(0, 1, 5):
        x = _LEFT + part * (SIZE[0] - _LEFT - _RIGHT)
        canvas.text((x - 10, SIZE[1] - _BOTTOM + 12), str(round(part * steps)), fill=_INK)
    canvas.rectangle([_LEFT, _TOP, SIZE[0] - _RIGHT, SIZE[1] - _BOTTOM], outline=_INK)
