"""What the benchmarks share: the order of a round, and the two files of a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")


def rotated(items: Sequence[Item], number: int) -> list[Item]:
    """The items in the order of a round. Each round starts with another one, so that none always runs first."""
    first = number % len(items) if items else 0
    return [*items[first:], *items[:first]]


def write_report(folder: Path, name: str, text: str, table: Any) -> None:
    """Write NAME.md and NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
