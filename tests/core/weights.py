"""A module of random weights, for tests; `random_like` and `relative` are the benchmarks' own."""

from __future__ import annotations

import torch
from torch import nn

from tools.random_weights import random_like as random_like
from tools.random_weights import relative as relative


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter in place from one seed; returns the module in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(random_like(name, parameter, generator))
    return module.eval()
