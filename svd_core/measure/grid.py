"""A grid of clips that play together as one, with a title, row and column labels, and text below each tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..errors import InputError
from .lettering import text_width, write

TILE_AREA = 288 * 162
"""Approximate pixels of one tile, whatever its shape; smaller clips are enlarged to leave room for text."""

LEAST_WIDTH = 208
"""Smallest tile width in pixels, so that a twenty-digit seed fits below a tile."""

GAP, LINE, TITLE = 10, 18, 34
"""Pixels between tiles, per line of text below them, and for the title at the top."""

PAPER, INK, PALE, MARK = (24, 24, 28), (238, 238, 240), (168, 170, 178), (255, 190, 60)
FRAME = 3
"""Width in pixels of the frame around a marked tile."""


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """A tile (T, h, w, 3) uint8 from `tile_of`, the lines of text below it, and whether it is highlighted."""

    tile: np.ndarray
    lines: tuple[str, ...]
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Labels:
    """The title and labels of a grid; empty rows or columns take no room."""

    title: str
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def tile_of(frames: np.ndarray) -> np.ndarray:
    """Resize a clip (T, H, W, 3) in [0, 1] to a tile: (T, h, w, 3) uint8, h and w even."""
    size = _tile_size(frames.shape[2], frames.shape[1])
    pictures = (Image.fromarray(np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)) for frame in frames)
    return np.stack([np.asarray(picture.resize(size, Image.Resampling.LANCZOS)) for picture in pictures])


def draw_grid(rows: Sequence[Sequence[Cell]], labels: Labels) -> np.ndarray:
    """Draw rows of cells (the last may be shorter) as a clip (T, H, W, 3) float32 in [0, 1], both sides even, as movies
    require. Raises InputError if tiles differ in shape or there are none."""
    shapes = {cell.tile.shape for row in rows for cell in row}
    if len(shapes) != 1:
        raise InputError(f"tiles of shapes {sorted(shapes)}: a grid needs at least one, and all of one size and length")
    places = _Places.of(rows, labels, shapes.pop())
    paper = Image.new("RGB", places.size, PAPER)
    pen = ImageDraw.Draw(paper)
    _write_labels(pen, places, labels)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            _write_cell(pen, places, (x, y), cell)
    return _played(np.asarray(paper), places, rows)


@dataclass(frozen=True, slots=True)
class _Places:
    """The layout of a grid, in pixels."""

    frames: int
    tile: tuple[int, int]
    """(width, height)."""
    lines: int
    left: int
    top: int
    columns: int
    rows: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[Cell]], labels: Labels, shape: tuple[int, ...]) -> _Places:
        pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        beside = max((text_width(pen, text, LINE - 3) for text in labels.rows), default=0)
        frames, height, width, _ = shape
        return cls(
            frames=frames,
            tile=(width, height),
            lines=max(len(cell.lines) for row in rows for cell in row),
            left=GAP + (beside + GAP if beside else 0),
            top=TITLE + (LINE + GAP // 2 if labels.columns else 0),
            columns=max(len(row) for row in rows),
            rows=len(rows),
        )

    @property
    def step(self) -> tuple[int, int]:
        return self.tile[0] + GAP, self.tile[1] + self.lines * LINE + GAP

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the whole grid, rounded up to even numbers."""
        width, height = self.left + self.columns * self.step[0], self.top + self.rows * self.step[1]
        return width + width % 2, height + height % 2

    def corner(self, x: int, y: int) -> tuple[int, int]:
        """(left, top) of a tile."""
        return self.left + x * self.step[0], self.top + y * self.step[1]


def _write_labels(pen: ImageDraw.ImageDraw, places: _Places, labels: Labels) -> None:
    write(pen, (GAP, TITLE // 2), labels.title, places.size[0] - 2 * GAP, LINE, INK)
    for x, text in enumerate(labels.columns):
        middle = places.corner(x, 0)[0] + places.tile[0] // 2
        write(pen, (middle, places.top - LINE // 2 - 2), text, places.tile[0], LINE - 3, INK, anchor="mm")
    for y, text in enumerate(labels.rows):
        middle = places.corner(0, y)[1] + places.tile[1] // 2
        write(pen, (GAP, middle), text, places.left - 2 * GAP, LINE - 3, INK)


def _write_cell(pen: ImageDraw.ImageDraw, places: _Places, place: tuple[int, int], cell: Cell) -> None:
    left, top = places.corner(*place)
    width, height = places.tile
    if cell.marked:
        box = (left - FRAME, top - FRAME, left + width + FRAME - 1, top + height + FRAME - 1)
        pen.rectangle(box, outline=MARK, width=FRAME)
    for number, text in enumerate(cell.lines):
        ink = MARK if cell.marked and not number else INK if not number else PALE
        write(pen, (left, top + height + number * LINE + LINE // 2 + 2), text, width, LINE - 5, ink)


def _played(paper: np.ndarray, places: _Places, rows: Sequence[Sequence[Cell]]) -> np.ndarray:
    """The background repeated for each frame, with that frame's tiles drawn on it."""
    film = np.repeat(paper[None], places.frames, axis=0)
    width, height = places.tile
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            left, top = places.corner(x, y)
            film[:, top : top + height, left : left + width] = cell.tile
    return film.astype(np.float32) / 255


def _tile_size(width: int, height: int) -> tuple[int, int]:
    scale = max((TILE_AREA / (width * height)) ** 0.5, LEAST_WIDTH / width)
    return 2 * round(width * scale / 2), 2 * max(round(height * scale / 2), 1)
