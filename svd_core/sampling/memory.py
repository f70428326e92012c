"""Sampling that continues after the device runs out of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import InputError, out_of_memory
from .guidance import GuidedDenoiser

if TYPE_CHECKING:
    from ..conditioning import Conditioning

SPENT = (
    "the device's memory ran out while sampling, and nothing more can be moved off it: close other programs that use "
    "it, or ask for fewer frames or a smaller size"
)


@dataclass(frozen=True, slots=True, eq=False)
class SteppingDown:
    """A denoiser that, when memory runs out, advances `ways`, which frees some at each step, and evaluates again.

    A denoiser has no state, so the repeated evaluation is the same as if it had never failed, and earlier steps are
    kept. Raises InputError when `ways` is exhausted.
    """

    denoise: GuidedDenoiser
    ways: Iterator[None]

    @property
    def num_frames(self) -> int:
        return self.denoise.num_frames

    def with_conditioning(self, change: Callable[[Conditioning], Conditioning]) -> SteppingDown:
        """A copy with the conditioning changed; memory already freed stays freed."""
        return replace(self, denoise=self.denoise.with_conditioning(change))

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        while True:
            try:
                return self.denoise(x, sigma)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            # Outside the handler, which would keep the failed evaluation's tensors alive.
            if next(self.ways, self) is self:
                raise InputError(SPENT)
