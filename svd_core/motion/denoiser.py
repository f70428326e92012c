"""The denoiser interface that every wrapper in this package takes and implements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from ..conditioning import Conditioning


class ClipDenoiser(Protocol):
    """k-diffusion's `model(x, sigma) -> denoised` for clips, with replaceable conditioning.

    x (B * T, 4, h, w) is in sampler units and frame-major; sigma is (B * T,) or one number.
    """

    @property
    def num_frames(self) -> int:
        """T, the number of frames that the network sees together."""

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor: ...

    def with_conditioning(self, change: Callable[[Conditioning], Conditioning]) -> ClipDenoiser:
        """A copy of the denoiser with its conditioning changed; this one is not modified."""


Wrap = Callable[[ClipDenoiser], ClipDenoiser]
"""A method's wrapper: denoiser -> denoiser."""

Around = Callable[[Sequence[int]], AbstractContextManager[object]]
"""What a host enters around a pass through the network that does not see the rows of x as they come: it is given their
numbers, in the order of the pass."""
