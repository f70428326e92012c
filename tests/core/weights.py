"""Random weights that behave: scaled by fan-in, norms about one, blends neither 0 nor 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter in place from one seed; returns the module in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(random_like(name, parameter, generator))
    return module.eval()


def random_like(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """A weight matrix with variance 1 / fan-in, a norm around 1, a bias or blend around 0."""
    noise = torch.randn(like.shape, generator=generator)
    if like.ndim > 1:
        return noise / like[0].numel() ** 0.5
    if name.endswith("weight"):
        return 1 + 0.1 * noise
    return 0.5 * noise if name.endswith("mix_factor") else 0.1 * noise


def relative(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
