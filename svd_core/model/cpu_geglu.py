"""GEGLU on a CPU as two products whose results oneDNN finishes itself, so that value and gate are never written apart.

By capability, one probe, kept choice, torch's operations otherwise. Never with gradients, in torch.compile, or on
weights that are anything but plain numbers in the CPU's memory.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from ..kernels.geglu import reference
from .cpu import MAY_LAG, PLAIN, by_chosen_library, is_plain, linear_by_onednn, replaces

logger = logging.getLogger(__name__)

PROBE_SHAPE = (1024, 320)
"""Tokens and channels: the finest level of the released UNet, where a hidden layer is wide beside its sums."""


def in_two_products(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`kernels.geglu`'s reference, without gradients: tokens (..., C), weight (2H, C), bias (2H,) -> (..., H). Class:
    rounding; in 16 bits with two roundings in place of four."""
    rows, half = tokens.flatten(0, -2), len(weight) // 2
    product = torch.ops.mkldnn._linear_pointwise
    opened = product(rows, weight[half:], bias[half:], "gelu", [], "none")
    return product.binary(rows, opened, weight[:half], bias[:half], "mul").view(*tokens.shape[:-1], half)


def may_run_in_two_products(tokens: Tensor) -> bool:
    """Whether a GEGLU of such tokens runs so, if its weights are `is_plain`. In float32 only where oneDNN computes
    linear layers anyway."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not tokens.is_cpu:
        return False
    if tokens.dtype != torch.bfloat16 and not (tokens.dtype == torch.float32 and linear_by_onednn()):
        return False
    plain = type(tokens) in PLAIN and tokens.numel() > 0 and not torch.is_autocast_enabled("cpu")
    return plain and chosen(tokens.dtype)


def are_plain(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether weights may be read past their layer."""
    return bias is not None and is_plain(weight, dtype) and is_plain(bias, dtype)


@cache
def chosen(dtype: torch.dtype) -> bool:
    """Whether GEGLU runs as two products here; found once in a process, and logged."""
    taken = _probe_agrees(dtype)
    logger.info("%s GEGLU on the CPU: %s", dtype, "as two products" if taken else "torch's own operations")
    return taken


@torch.inference_mode()
def _probe_agrees(dtype: torch.dtype) -> bool:
    """Whether two products come as close to the true numbers as the operations they replace, and are not slower, but
    for what a probe's noise may be: a recipe must give the same bits tomorrow."""
    count, channels = PROBE_SHAPE
    generator = torch.Generator().manual_seed(0)
    shapes = ((count, channels), (8 * channels, channels), (8 * channels,))
    operands = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    operands[1].div_(channels**0.5)
    try:
        return replaces(in_two_products, _apart, operands, MAY_LAG)
    except (AttributeError, RuntimeError) as error:  # a build of torch, or a CPU, without the operation
        logger.info("GEGLU as two products does not work here: %s", error)
        return False


def _apart(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with by_chosen_library(tokens):
        return reference(tokens, weight, bias)
