"""The contract that everything here wraps and keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ..conditioning import Conditioning


class ClipDenoiser(Protocol):
    """k-diffusion's `model(x, sigma) -> denoised` for clips, which can be told something else about them.

    x (B * T, 4, h, w) is in sampler units and frame-major; sigma is (B * T,) or one number.
    """

    @property
    def num_frames(self) -> int:
        """T, the frames of a clip that the network sees together."""

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor: ...

    def told(self, change: Callable[[Conditioning], Conditioning]) -> ClipDenoiser:
        """The same denoiser with its conditioning changed; this one stays as it is."""


Wrap = Callable[[ClipDenoiser], ClipDenoiser]
"""What a method makes of a denoiser."""
