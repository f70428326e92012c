"""Reuse of the UNet's deep features from one step to the next while its first block hardly changes.

At neighbouring noise levels the network's inputs are nearly the same. The first block is always computed; if it adds
nearly what it added when the deep blocks last ran, their result is reused and only the shallow blocks on both sides
run. The cut is at DeepCache's place (Ma et al., arXiv 2312.00858), the rule is that of first-block caches
(ParaAttention, WaveSpeed). Class: approximate; opt-in, and bit-identical at a threshold of 0.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError

SHALLOW = 2
"""Blocks on each side that always run: the first convolution and the first block on the way down, and on the way up
those that take their skips."""

STRIDE = 4
"""The first block's result is compared at every fourth row and column, which is enough to tell how much changed."""

MOST_KEPT = 4
"""Calls per step whose features are kept: two guidance branches, for both ends of a clip. Further ones, such as the
windows of a long take, are computed in full."""


@dataclass(slots=True, eq=False)
class Kept:
    """One call that recurs in every step. `asked` identifies it, `seen` is its last input at the current noise level;
    `deep` is the input of the shallow blocks on the way up, `first` what the first block added when `deep` was
    computed."""

    asked: Hashable
    seen: Tensor | None = None
    first: Tensor | None = None
    deep: Tensor | None = None


@dataclass(slots=True, eq=False)
class FeatureReuse:
    """The features that one sampling run keeps, and how often they were reused.

    threshold: the relative change of the first block's result, L1 over L1, below which deep features are reused; around
    0.1 is usual, 0 reuses none. Raises InputError unless it is from 0 to 1.
    """

    threshold: float
    computed: int = 0
    reused: int = 0
    _level: tuple[float, ...] = ()
    _kept: list[Kept] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"reuse {self.threshold} is outside 0 to 1: 0 is off, 0.05 to 0.2 is usual")

    def report(self) -> str:
        """A summary for the user."""
        return (
            f"reuse {self.threshold:g} (approximate): {self.reused} of {self.computed + self.reused} UNet calls took "
            "the deep features of an earlier step"
        )

    def forget(self) -> None:
        """Free the kept features."""
        self._kept.clear()

    def find(self, x: Tensor, c_noise: Tensor, context: Tensor) -> Kept:
        """The call of earlier steps that this one continues: the first with the same shape and context that this noise
        level has not used yet. A call that is repeated with the same x, because memory ran out, finds its own entry
        again, so that no bit depends on memory."""
        level = tuple(c_noise.tolist())
        if level != self._level:
            self._level = level
            for kept in self._kept:
                kept.seen = None
        asked = (tuple(x.shape), float(context.float().norm()))
        for kept in self._kept:
            if kept.asked == asked and (kept.seen is None or torch.equal(kept.seen, x)):
                kept.seen = x
                return kept
        kept = Kept(asked, x)
        if len(self._kept) < MOST_KEPT:
            self._kept.append(kept)
        return kept

    def deep(self, kept: Kept, first: Tensor) -> Tensor | None:
        """The features to reuse, or None if they must be computed. first (N, C, h, w) is what the first block adds
        now."""
        if kept.deep is not None and _change(first, kept.first) < self.threshold:
            self.reused += 1
            return kept.deep
        self.computed += 1
        kept.first, kept.deep = first, None
        return None


def thinned(images: Tensor) -> Tensor:
    """(N, C, h, w) -> a view of every `STRIDE`th row and column."""
    return images[..., ::STRIDE, ::STRIDE]


def kept_bytes(rows: int, channels: int, height: int, width: int, itemsize: int) -> int:
    """Bytes kept from step to step for `rows` frames, both guidance branches counted: the deep features, the first
    block's thinned result and the input."""
    thin = -(-height // STRIDE) * -(-width // STRIDE)
    return itemsize * rows * (channels * (height * width + thin) + 8 * height * width)


def _change(now: Tensor, before: Tensor) -> float:
    now, before = now.float(), before.float()
    return float((now - before).abs().mean() / before.abs().mean().clamp_min(torch.finfo(torch.float32).tiny))
