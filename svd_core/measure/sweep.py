"""Sweep: every combination of the values of one or two settings, side by side in a labelled grid.

This module is independent of the model: the caller passes a function that makes a clip for a choice of settings.

    def render(choice):
        return svd.animate(picture, seed=3, **choice)

    swept = sweep(render, Axis.parse("motion_bucket", "40, 127, 200"), Axis.parse("augmentation", "0, 0.1"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from ..conditioning import MicroConditioning
from ..errors import InputError
from ..sampling import SAMPLERS
from ..settings import Settings
from .grid import Cell, Labels, draw_grid, tile_of
from .meter import Measured, measure

MAX_VALUES, MAX_CELLS = 16, 64
SWEPT_SIDE = 320
"""Frames are measured at no more pixels a side than this."""

Choice = Mapping[str, Any]
"""Fields of `Settings` and their values in one cell."""

SWEPT: dict[str, Callable[[str], Any]] = {
    "motion_bucket": int,
    "fps": int,
    "augmentation": float,
    "min_guidance": float,
    "max_guidance": float,
    "guidance_curve": str,
    "steps": int,
    "schedule": str,
    "sampler": str,
    "seed": int,
}
"""Settings that can be swept, and how to parse their values."""

_KINDS = {int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting and its values, in order. Raises InputError for a setting that cannot be swept, no values, more than
    MAX_VALUES, and repeated values."""

    setting: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.setting not in SWEPT:
            raise InputError(f"setting {self.setting!r} cannot be swept: choose one of {', '.join(SWEPT)}")
        if not 1 <= len(self.values) <= MAX_VALUES:
            given = f"{len(self.values)} values of {self.setting}"
            raise InputError(f"{given} are outside 1 to {MAX_VALUES}: list some with commas between, such as 1, 2, 3")
        for place, value in enumerate(self.values):
            if value in self.values[:place]:
                raise InputError(f"{self.setting} {value} is listed twice: it would make the same clip, leave one out")

    @classmethod
    def parse(cls, setting: str, text: str) -> Axis:
        """Parse values separated by commas or spaces. Raises InputError naming the first invalid one."""
        read = SWEPT.get(setting, str)
        values = []
        for word in text.replace(",", " ").split():
            try:
                values.append(read(word))
            except ValueError as error:
                raise InputError(f"{word!r} in the values of {setting} is not {_KINDS[read]}") from error
        return cls(setting, tuple(values))

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(f"{self.setting} {value}" for value in self.values)


@dataclass(frozen=True, slots=True, eq=False)
class Swept:
    """Every cell's choice and measurements, row by row; the grid as a clip (T, H, W, 3) in [0, 1], and as an image
    (H, W, 3) of the last frames, where a setting's effect is largest."""

    x: Axis
    y: Axis | None
    cells: tuple[tuple[Choice, Measured], ...]
    frames: np.ndarray

    @property
    def image(self) -> np.ndarray:
        return self.frames[-1]

    def report(self) -> str:
        """The number of clips, then one line per cell."""
        lines = [
            f"{', '.join(f'{name} {value}' for name, value in each.items()):40} {_numbers(m)}" for each, m in self.cells
        ]
        return "\n".join([f"{len(self.cells)} clips; motion, camera and subject in pixels a frame", *lines])

    def to_json(self) -> str:
        """One line of JSON: each cell's settings and readings."""
        cells = [
            {"settings": dict(choice), "numbers": {each.name: round(each.value, 5) for each in measured.readings}}
            for choice, measured in self.cells
        ]
        return json.dumps({"cells": cells}, allow_nan=False)


def check_choice(choice: Choice) -> None:
    """Raise InputError for values that `svd_core` would reject."""
    settings = Settings(**choice)
    settings.check()
    if settings.sampler not in SAMPLERS:
        raise InputError(f"sampler {settings.sampler!r} is not known: choose one of {', '.join(SAMPLERS)}")
    MicroConditioning(settings.fps, settings.motion_bucket, settings.augmentation)


def choices(x: Axis, y: Axis | None) -> list[Choice]:
    """The choice of each cell, row by row, with x along the rows. Raises InputError if both axes have the same setting,
    and for more than MAX_CELLS cells."""
    if y is not None and x.setting == y.setting:
        raise InputError(f"{x.setting} is on both axes: choose another setting for one of them, or none for y")
    rows: tuple[Any, ...] = (None,) if y is None else y.values
    if len(rows) * len(x.values) > MAX_CELLS:
        given = f"{len(x.values)} by {len(rows)} values make {len(rows) * len(x.values)} clips"
        raise InputError(f"{given}, at most {MAX_CELLS}: list fewer values")
    named = [({} if y is None else {y.setting: row}) | {x.setting: column} for row, column in product(rows, x.values)]
    return list(named)


def sweep(
    render: Callable[[Choice], np.ndarray],
    x: Axis,
    y: Axis | None = None,
    *,
    check: Callable[[Choice], None] = check_choice,
    callback: Callable[[Choice, Measured], None] | None = None,
) -> Swept:
    """Render every combination once and arrange the clips: x from left to right, y from top to bottom.

    `render` makes a clip (T, H, W, 3) in [0, 1] for a choice; `check` is called with every choice before the first is
    rendered; `callback` is called with each finished cell. `callback` and `render` may raise to stop. Clips are kept
    only as small tiles. Raises InputError as `choices` and `check` do, and for clips of different sizes or lengths.
    """
    wanted = choices(x, y)
    for choice in wanted:
        check(choice)
    cells, tiles = [], []
    for choice in wanted:
        frames = render(choice)
        measured = measure(frames, SWEPT_SIDE)
        cells.append((choice, measured))
        tiles.append(Cell(tile_of(frames), (_numbers(measured),)))
        if callback is not None:
            callback(choice, measured)
    rows = [tiles[start : start + len(x.values)] for start in range(0, len(tiles), len(x.values))]
    settings = x.setting if y is None else f"{x.setting} (across) and {y.setting} (down)"
    labels = Labels(f"Sweep of {settings}; pixels a frame", () if y is None else y.labels, x.labels)
    return Swept(x, y, tuple(cells), draw_grid(rows, labels))


def _numbers(measured: Measured) -> str:
    parts = {"motion": measured.motion, "camera": measured.camera, "subject": measured.subject}
    return "  ".join(f"{name} {curve.mean():.2f}" for name, curve in parts.items())
