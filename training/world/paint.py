"""Anti-aliased drawing with arrays: shapes are signed distances in pixels, edges are one pixel soft.

A moving shape is computed for all frames at once, with sub-pixel positions. Frames are (3, T, H, W) in [0, 1]: T frames
of H x W pixels, colours first, because arithmetic on whole planes is three times as fast. x runs right and y down, and
pixel (i, j) has its centre at (j + 0.5, i + 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .dice import Dice


@dataclass(frozen=True, slots=True)
class Stage:
    """Coordinates in space and time. `x` (1, 1, W) and `y` (1, H, 1) are pixel centres, `times` (T, 1, 1) is world
    time, which counts frames at the default settings; `unit` is the picture's shorter side in pixels."""

    width: int
    height: int
    unit: float
    x: np.ndarray
    y: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, width: int, height: int, times: np.ndarray) -> Stage:
        """A stage of the given size in pixels; times (T,) is the world time of each frame."""
        x = np.arange(width, dtype=np.float32)[None, None] + 0.5
        y = np.arange(height, dtype=np.float32)[None, :, None] + 0.5
        return cls(width, height, float(min(width, height)), x, y, times.astype(np.float32)[:, None, None])

    def window(self, left: float, top: float, right: float, bottom: float) -> tuple[Stage, tuple[slice, ...]]:
        """The part of the stage inside a box in pixels, and the slices of the same part of the frames."""
        columns = slice(max(0, int(left)), max(0, int(np.ceil(right))))
        rows = slice(max(0, int(top)), max(0, int(np.ceil(bottom))))
        part = Stage(self.width, self.height, self.unit, self.x[..., columns], self.y[:, rows], self.times)
        return part, (slice(None), slice(None), rows, columns)

    def still(self) -> Stage:
        """The same stage at time 0 only, for drawing static parts once."""
        return Stage(self.width, self.height, self.unit, self.x, self.y, np.zeros((1, 1, 1), np.float32))

    def film(self, picture: np.ndarray) -> np.ndarray:
        """picture (3, 1, H, W), repeated in every frame -> (3, T, H, W), a copy."""
        return np.repeat(picture, len(self.times), axis=1)


@lru_cache(maxsize=256)
def rgb(code: str) -> np.ndarray:
    """A colour such as "#4c8c3c" -> (3, 1, 1, 1) float32 in [0, 1]. Do not write into it: the array is cached."""
    colour = np.array([int(code[place : place + 2], 16) for place in (1, 3, 5)], np.float32) / 255
    colour.flags.writeable = False
    return colour[:, None, None, None]


def mix(one: np.ndarray, other: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """Blend of two colours: `share` of `other`, 1 - `share` of `one`."""
    return one + (other - one) * share


def over(frames: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> None:
    """Blend a colour (3, 1, 1, 1), or one per pixel, over frames (3, T, H, W) in place, with opacity alpha (T, H, W) in
    [0, 1]. Colour and alpha may be any shapes that broadcast to these."""
    for plane, paint in zip(frames, colour, strict=True):
        plane += alpha * (paint - plane)


def inside(distance: np.ndarray, softness: float = 1.0) -> np.ndarray:
    """Share of each pixel inside a shape, from the signed distance (pixels, negative inside) to its edge."""
    return np.clip(0.5 - distance / softness, 0.0, 1.0)


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """Smooth step: 0 below low, 1 above high."""
    share = np.clip((value - low) / (high - low), 0.0, 1.0)
    return share * share * (3 - 2 * share)


def disc(x: np.ndarray, y: np.ndarray, radius: float | np.ndarray) -> np.ndarray:
    """Signed distance to a circle around the origin."""
    return np.sqrt(x * x + y * y) - radius


def ellipse(x: np.ndarray, y: np.ndarray, wide: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """Signed distance, to first order, to an ellipse around the origin with these half axes."""
    u, v = x / wide, y / high
    length = np.sqrt(u * u + v * v) + 1e-6
    return length * (length - 1) / (np.sqrt((u / wide) ** 2 + (v / high) ** 2) + 1e-6)


def box(x: np.ndarray, y: np.ndarray, wide: float, high: float, rounding: float = 0.0) -> np.ndarray:
    """Signed distance to a rectangle around the origin with these half sides."""
    u, v = np.abs(x) - wide + rounding, np.abs(y) - high + rounding
    outside = np.sqrt(np.maximum(u, 0) ** 2 + np.maximum(v, 0) ** 2)
    return outside + np.minimum(np.maximum(u, v), 0) - rounding


def capsule(x: np.ndarray, y: np.ndarray, start: Sequence[float], end: Sequence[float], radius: float) -> np.ndarray:
    """Signed distance to a thick line with round ends."""
    along, across = end[0] - start[0], end[1] - start[1]
    u, v = x - start[0], y - start[1]
    place = np.clip((u * along + v * across) / max(along * along + across * across, 1e-6), 0.0, 1.0)
    return disc(u - place * along, v - place * across, radius)


def convex(x: np.ndarray, y: np.ndarray, corners: Sequence[tuple[float, float]]) -> np.ndarray:
    """Signed distance, exact along the edges, to a convex polygon given clockwise as seen on the screen."""
    distance = None
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        length = float(np.hypot(x1 - x0, y1 - y0))
        edge = ((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length
        distance = edge if distance is None else np.maximum(distance, edge)
    return distance


def gradient(stops: Sequence[np.ndarray], share: np.ndarray) -> np.ndarray:
    """Gradient through colours evenly spaced from share 0 to share 1 -> (3,) + share's shape, float32."""
    places = np.linspace(0, 1, len(stops))
    planes = [np.interp(share, places, [stop[plane].item() for stop in stops]) for plane in range(3)]
    return np.stack(planes).astype(np.float32)


def fractal_noise(dice: Dice, height: int, width: int, cell: float, octaves: int = 4) -> np.ndarray:
    """Smooth random hills (height, width), float32 with mean near 0 and most values in [-1, 1]. `cell` is the size in
    pixels of the largest feature; each octave is twice as fine and half as high."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        step = max(cell / 2**octave, 1.0)
        grid = dice.many(int(height / step) + 4, int(width / step) + 4) * 2 - 1
        corner = (1.5, 1.5, 1.5 + width / step, 1.5 + height / step)
        total += enlarge(grid, corner, width, height) * 0.5**octave
    return total


def enlarge(grid: np.ndarray, corner: tuple[float, float, float, float], width: int, height: int) -> np.ndarray:
    """The box (left, top, right, bottom) of a float32 grid, smoothly scaled to (height, width)."""
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC, box=corner))
