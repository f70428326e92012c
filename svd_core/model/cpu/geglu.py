"""The first half of a feed-forward on a CPU. Widened 16-bit products are rounded once; otherwise it may run as two
products with GELU and multiplication fused by oneDNN, so that value and gate are never stored separately."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...decode.rescue import HALF
from ...kernels.geglu import reference
from . import wide
from .onednn import linear_by_onednn
from .probe import MAY_LAG, is_plain, may_replace, of_layer, probed, replaces
from .route import by_chosen_route

PROBE_SHAPE = (1024, 320)
"""Tokens and channels: the finest level of the released UNet, where the hidden layer is wide compared with its sums."""


def in_two_products(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`kernels.geglu`'s reference, without gradients: tokens (..., C), weight (2H, C), bias (2H,) -> (..., H). Class:
    rounding; in 16 bits with two roundings instead of four."""
    rows, half = tokens.flatten(0, -2), len(weight) // 2
    product = torch.ops.mkldnn._linear_pointwise
    opened = product(rows, weight[half:], bias[half:], "gelu", [], "none")
    return product.binary(rows, opened, weight[:half], bias[:half], "mul").view(*tokens.shape[:-1], half)


def geglu_route(tokens: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The function for GEGLU of such tokens, if its weights `are_plain`; None for torch's operations. In float32, two
    products are used only if oneDNN computes linear layers anyway."""
    if not may_replace(tokens):
        return None
    if tokens.dtype in HALF and wide.chosen(nn.functional.linear, tokens.dtype):
        return wide.geglu
    meant = tokens.dtype == torch.bfloat16 or (tokens.dtype == torch.float32 and linear_by_onednn())
    return in_two_products if meant and chosen(tokens.dtype) else None


def are_plain(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether weights may be used without calling their layer."""
    return bias is not None and is_plain(weight, dtype) and is_plain(bias, dtype)


@probed("{} GEGLUs", "as two products")
def chosen(dtype: torch.dtype) -> bool:
    """Whether two products are about as accurate here as the operations they replace, and not far slower."""
    channels = PROBE_SHAPE[1]
    operands = of_layer(dtype, PROBE_SHAPE, (8 * channels, channels))
    return replaces(in_two_products, _apart, operands, MAY_LAG)


def _apart(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with by_chosen_route(tokens):
        return reference(tokens, weight, bias)
