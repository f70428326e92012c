"""Weights of ComfyUI's layers for a kernel, cast, moved and patched as for the layer itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import comfy.ops

from ...svd_core.model.cpu.conv import deriving_conv
from ...svd_core.model.cpu.route import deriving_linear
from ...svd_core.model.fused import Weights, altered

if TYPE_CHECKING:
    from torch import Tensor, nn

_PLAIN = tuple(
    layer
    for family in (comfy.ops.disable_weight_init, comfy.ops.manual_cast)
    for layer in (
        family.Linear,
        deriving_linear(family.Linear),
        family.Conv2d,
        deriving_conv(family.Conv2d),
        family.GroupNorm,
        family.LayerNorm,
    )
)
"""Layers that only cast their weights. Those with eight-bit weights have their own matrix products."""


@contextmanager
def host_weights(layer: nn.Module, like: Tensor) -> Iterator[Weights | None]:
    """`svd_core.model.fused.WeightsFn` for ComfyUI's layers; yields None for layers that must run themselves."""
    if type(layer) not in _PLAIN or altered(layer):
        yield None
        return
    comfy.ops.run_every_op()  # raises if the user has cancelled the run
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    try:
        yield weight, bias
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
