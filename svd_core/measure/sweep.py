"""Sweep: every combination of the values of one or two settings, side by side in a labelled grid.

This module knows no model: it is handed a function that makes a clip of a choice of settings.

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
"""Names of `Settings` and the values that one cell takes for them."""

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
"""Settings that can be swept, and how a value is read from text."""

_KINDS = {int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting and the values that it takes, in order. Raises InputError for a setting that cannot be swept, for no
    value, more than MAX_VALUES, and one value twice."""

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
        """The values between commas or spaces. Raises InputError, naming the word, for what is no such value."""
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
    """Every cell's choice and measurements, row by row; the grid as one image (H, W, 3) of the last frames, where what
    a setting does has added up, and as one clip (T, H, W, 3), in [0, 1]."""

    x: Axis
    y: Axis | None
    cells: tuple[tuple[Choice, Measured], ...]
    frames: np.ndarray

    @property
    def image(self) -> np.ndarray:
        return self.frames[-1]

    def report(self) -> str:
        """A line for each cell."""
        lines = [
            f"{', '.join(f'{name} {value}' for name, value in each.items()):40} {_numbers(m)}" for each, m in self.cells
        ]
        return "\n".join([f"{len(self.cells)} clips; motion, camera and subject in pixels a frame", *lines])

    def to_json(self) -> str:
        """One line: each cell's settings and readings."""
        cells = [
            {"settings": dict(choice), "numbers": {each.name: round(each.value, 5) for each in measured.readings}}
            for choice, measured in self.cells
        ]
        return json.dumps({"cells": cells}, allow_nan=False)


def check_choice(choice: Choice) -> None:
    """Raise InputError for values that `svd_core` would refuse."""
    settings = Settings(**choice)
    settings.check()
    if settings.sampler not in SAMPLERS:
        raise InputError(f"sampler {settings.sampler!r} is not known: choose one of {', '.join(SAMPLERS)}")
    MicroConditioning(settings.fps, settings.motion_bucket, settings.augmentation)


def choices(x: Axis, y: Axis | None) -> list[Choice]:
    """What each cell takes, row by row: x runs along a row. Raises InputError for one setting on both axes, and for
    more than MAX_CELLS cells."""
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
    told: Callable[[Choice, Measured], None] | None = None,
) -> Swept:
    """Render every combination once, and lay the clips out: x from left to right, y from top to bottom.

    `render` makes a clip (T, H, W, 3) in [0, 1] of a choice; `check` sees every choice before the first is rendered;
    `told` hears of each cell as it is done. Both it and `render` may raise to stop. Clips are kept as small tiles only.
    Raises InputError as `choices` and `check` do, and for clips of several sizes or lengths.
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
        if told is not None:
            told(choice, measured)
    rows = [tiles[start : start + len(x.values)] for start in range(0, len(tiles), len(x.values))]
    settings = x.setting if y is None else f"{x.setting} (across) and {y.setting} (down)"
    labels = Labels(f"Sweep of {settings}; pixels a frame", () if y is None else y.labels, x.labels)
    return Swept(x, y, tuple(cells), draw_grid(rows, labels))


def _numbers(measured: Measured) -> str:
    parts = {"motion": measured.motion, "camera": measured.camera, "subject": measured.subject}
    return "  ".join(f"{name} {curve.mean():.2f}" for name, curve in parts.items())
