"""Clips of a square that moves, as arrays and on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FRAMES = 3


def square(offset: int, frames: int = FRAMES, width: int = 64, height: int = 64) -> np.ndarray:
    """(T, H, W, 3) uint8: a bright square that goes right over a shaded ground."""
    rows, columns = np.mgrid[0:height, 0:width]
    ground = np.stack([rows * 2, columns * 2, (rows + columns)], axis=-1).astype(np.uint8)
    clip = np.repeat(ground[None], frames, axis=0)
    for index in range(frames):
        left = (offset + 6 * index) % (width - 12)
        clip[index, 8:24, left : left + 12] = (250, 220, 40)
    return clip


def write_pngs(folder: Path, clip: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for index, frame in enumerate(clip):
        Image.fromarray(frame).save(folder / f"{index:03d}.png")
    return folder
