"""Whether an operation must leave a graph behind for a backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def needs_gradient(*given: object) -> bool:
    """Whether gradients are recorded and any of the tensors, or any parameter of the modules, requires one; other
    objects do not count.

    Grad mode alone says too little: it is on in a plain call of a frozen network, where nothing needs a gradient.
    Weights count as well as activations, since the first trained layer of a frozen network gets activations without."""
    return torch.is_grad_enabled() and any(map(_requires_gradient, given))


def _requires_gradient(given: object) -> bool:
    if isinstance(given, nn.Module):
        return any(parameter.requires_grad for parameter in given.parameters())
    return isinstance(given, Tensor) and given.requires_grad
