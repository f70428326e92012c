"""Distribution of cases over targets; a separate module, so that importing it is cheap."""

from __future__ import annotations

WEIGHTS = {
    "checkpoint": 30,
    "folder": 8,
    "recipe": 15,
    "clip": 10,
    "picture": 20,
    "dataset": 5,
    "state": 5,
    "training-recipe": 4,
    "flags": 3,
}
"""Target -> weight. The most widely used and the most dangerous targets get the most cases."""


def shares(cases: int) -> dict[str, int]:
    """Number of cases for each target, out of `cases` in total."""
    total = sum(WEIGHTS.values())
    given = {name: cases * weight // total for name, weight in WEIGHTS.items()}
    given["checkpoint"] += cases - sum(given.values())
    return given
