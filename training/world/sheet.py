"""Contact sheets: clips as rows of frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

GAP = 2
PAPER = 245


def contact_sheet(clips: Sequence[np.ndarray], columns: int = 5) -> Image.Image:
    """Contact sheet of clips, each (T, H, W, 3) in [0, 1], all of one size: `columns` evenly spaced frames per row."""
    height, width = clips[0].shape[1:3]
    size = (len(clips) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
    sheet = np.full(size, PAPER, np.uint8)
    for row, clip in enumerate(clips):
        for column, frame in enumerate(np.linspace(0, len(clip) - 1, columns).round().astype(int)):
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            sheet[top : top + height, left : left + width] = np.clip(clip[frame] * 255 + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(sheet)
