"""Sampling that goes on where the device's memory runs out in the middle."""

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
    """A denoiser whose evaluation is repeated after each of `ways`, which frees memory when it is taken.

    What was sampled before is kept: a denoiser has no state, so the repeated evaluation is the same as if it had never
    failed. Raises InputError when the ways are used up.
    """

    denoise: GuidedDenoiser
    ways: Iterator[None]

    @property
    def num_frames(self) -> int:
        return self.denoise.num_frames

    def told(self, change: Callable[[Conditioning], Conditioning]) -> SteppingDown:
        """The same with the conditioning changed; what was given up stays given up."""
        return replace(self, denoise=self.denoise.told(change))

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """As the denoiser's own."""
        while True:
            try:
                return self.denoise(x, sigma)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            # Outside the handler, which would hold on to the failed evaluation's tensors.
            if next(self.ways, self) is self:
                raise InputError(SPENT)
