"""View of a larger picture through a moving, scaling window."""

from __future__ import annotations

import numpy as np
from PIL import Image

MARGIN = 4
"""Source pixels kept around the windows, so that the resampling filter sees no artificial edge."""


def look(texture: np.ndarray, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resample windows of a texture, which is mirrored beyond its edges.

    texture: (h, w, 3) uint8, or (h, w) float32. boxes: (T, 4), left, top, right, bottom in fractional texture pixels.
    Returns (3, T, height, width) float32 in [0, 1], or (T, height, width) float32 in the texture's units, filtered so
    that windows of any size do not alias.
    """
    left, top = (np.floor(boxes[:, :2].min(axis=0)) - MARGIN).astype(int)
    right, bottom = (np.ceil(boxes[:, 2:].max(axis=0)) + MARGIN).astype(int)
    rows, columns = _mirrored(top, bottom, texture.shape[0]), _mirrored(left, right, texture.shape[1])
    seen = Image.fromarray(np.ascontiguousarray(texture[np.ix_(rows, columns)]))
    corner = np.array([left, top, left, top])
    views = [seen.resize((width, height), Image.Resampling.BICUBIC, box=tuple(one - corner)) for one in boxes]
    frames = np.stack([np.asarray(view) for view in views])
    return frames if texture.ndim == 2 else np.moveaxis(frames, -1, 0).astype(np.float32, order="C") / 255


def _mirrored(start: int, stop: int, size: int) -> np.ndarray:
    """Indices into `size` pixels for positions from start to stop, reflected at both ends."""
    place = np.mod(np.arange(start, stop), 2 * size)
    return np.minimum(place, 2 * size - 1 - place)
