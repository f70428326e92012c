"""Random draws that are the same on every platform and with every version of numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Dice:
    """Random draws from a seed. Only the raw 64-bit stream of PCG64 is used: numpy guarantees its stability, but not
    that of its distributions."""

    def __init__(self, *seeds: int) -> None:
        """seeds: integers of at least 0; every list of them gives an independent stream."""
        self._stream = np.random.PCG64(list(seeds))

    def many(self, *shape: int) -> np.ndarray:
        """Uniform float32 numbers in [0, 1) of the given shape."""
        raw = self._stream.random_raw(int(np.prod(shape))).reshape(shape)
        return ((raw >> np.uint64(40)).astype(np.float64) * 2.0**-24).astype(np.float32)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(self.many(1)[0])

    def index(self, size: int) -> int:
        """An integer in [0, size)."""
        return int(self.uniform(0, size))

    def pick(self, items: Sequence[T]) -> T:
        return items[self.index(len(items))]

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def sign(self) -> int:
        """-1 or 1."""
        return 2 * self.index(2) - 1

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return [items[place] for place in np.argsort(self.many(len(items)), kind="stable")]
