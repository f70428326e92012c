"""How the cases are shared out. Apart from the targets, so that reading it imports nothing heavy."""

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
"""Target -> its share of all cases. Those with the most readers, and the most dangerous ones, have the most."""


def shares(cases: int) -> dict[str, int]:
    """How many cases each target gets of so many."""
    total = sum(WEIGHTS.values())
    given = {name: cases * weight // total for name, weight in WEIGHTS.items()}
    given["checkpoint"] += cases - sum(given.values())
    return given
