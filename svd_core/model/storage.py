"""Weights stored in eight bits, with one scale per output channel. Class: quantised. Opt-in.

int8 takes half the memory of 16 bits: the weights of all linear and convolution layers are integers, dequantised when a
layer runs. fp8 is for speed: the transformers' wide layers multiply eight-bit floats, with tokens rounded too
(`kernels.fp8_linear`). Norms, biases and blends are unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..kernels import FP8, fp8_linear, in_fp8
from ..settings import WeightsName
from .cpu.route import by_chosen_route

LEVELS = 127

_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)
_WIDE = re.compile(r"\.(attn1|ff|ff_in)\.|\.proj_in$")
"""Names of the layers that take most of the matrix products' time. Layers whose output every block or the image
residual reads keep full precision, as in NVIDIA's TensorRT."""


class InEightBits(nn.Module):
    """Dequantises an int8 weight (O, ...) to the dtype of its scale (O, 1, ...), the network's."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, stored: Tensor) -> Tensor:
        return stored.to(self.scale.dtype).mul_(self.scale)


@torch.no_grad()
def store_in_eight_bits(network: nn.Module) -> None:
    """Store the weights of all linear and convolution layers as int8, one layer at a time; for inference only."""
    for layer in [layer for layer in network.modules() if isinstance(layer, _LAYERS)]:
        weight = layer.weight
        flat = weight.flatten(1).float()
        scale = (flat.abs().amax(1) / LEVELS).clamp_min(torch.finfo(weight.dtype).tiny)
        scale = scale.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1))
        stored = (weight.float() / scale.float()).round_().clamp_(-LEVELS, LEVELS).to(torch.int8)
        layer.weight = nn.Parameter(stored, requires_grad=False)
        parametrize.register_parametrization(layer, "weight", InEightBits(scale), unsafe=True)


class Fp8Linear(nn.Module):
    """A linear layer by `kernels.fp8_linear`, with the parameters of the layer it replaces and `scale`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scale = in_fp8(layer.weight)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        with by_chosen_route(tokens):
            return fp8_linear(tokens, self.weight, self.scale, self.bias)


@torch.no_grad()
def store_in_fp8(network: nn.Module) -> None:
    """Replace the wide layers of a network's transformers by `Fp8Linear`, one at a time; for inference only."""
    for name in [
        name for name, layer in network.named_modules() if isinstance(layer, nn.Linear) and _WIDE.search(name)
    ]:
        owner, _, own = name.rpartition(".")
        setattr(network.get_submodule(owner), own, Fp8Linear(network.get_submodule(name)))


STORES: Mapping[WeightsName, Callable[[nn.Module], None]] = {
    "whole": lambda network: None,
    "int8": store_in_eight_bits,
    "fp8": store_in_fp8,
}
"""Functions that convert a network's weights in place, by user-facing name."""


def stored_as(network: nn.Module) -> WeightsName:
    """The key of `STORES` that was applied to the network."""
    dtypes = {weight.dtype for weight in network.parameters()}
    return "int8" if torch.int8 in dtypes else "fp8" if FP8 in dtypes else "whole"
