"""Weight matrices kept in eight bits and made whole where a layer runs: half the memory of 16 bits. Class: quantised.

Each output channel has a scale of its own, so that its largest weight is 127. Norms, biases and blends stay as they
are. What is computed is computed in the network's dtype; only the weights are rounded. Opt-in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LEVELS = 127

_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)


class InEightBits(nn.Module):
    """The weight (O, ...) of eight bits in the dtype of its scale (O, 1, ...), which is the network's."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, stored: Tensor) -> Tensor:
        return stored.to(self.scale.dtype).mul_(self.scale)


@torch.no_grad()
def store_in_eight_bits(network: nn.Module) -> None:
    """Replace the weights of all matrices and convolutions of a network, one after the other; for inference only."""
    for layer in [layer for layer in network.modules() if isinstance(layer, _LAYERS)]:
        weight = layer.weight
        flat = weight.flatten(1).float()
        scale = (flat.abs().amax(1) / LEVELS).clamp_min(torch.finfo(weight.dtype).tiny)
        scale = scale.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1))
        stored = (weight.float() / scale.float()).round_().clamp_(-LEVELS, LEVELS).to(torch.int8)
        layer.weight = nn.Parameter(stored, requires_grad=False)
        parametrize.register_parametrization(layer, "weight", InEightBits(scale), unsafe=True)


def in_eight_bits(network: nn.Module) -> bool:
    """Whether `store_in_eight_bits` has been here."""
    return any(weight.dtype == torch.int8 for weight in network.parameters())
