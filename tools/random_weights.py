"""Well-scaled random weights and a relative error, for comparing networks in tests and benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor


def random_like(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """A random weight on the generator's device: matrices of variance 1 / fan-in, norms around 1, biases and blends
    around 0."""
    noise = torch.randn(like.shape, generator=generator, device=generator.device)
    if like.ndim > 1:
        return noise / like[0].numel() ** 0.5
    if name.endswith("weight"):
        return 1 + 0.1 * noise
    return 0.5 * noise if name.endswith("mix_factor") else 0.1 * noise


def relative(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
