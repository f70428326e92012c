"""GEGLU inside the first GEMM of a feed-forward: the hidden layer's value and gate are never stored separately."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .choice import Operation
from .gradients import needs_gradient

SAMPLE_ROWS = 256


def reference(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """tokens (..., C), weight (2H, C), bias (2H,): the weight's rows are values, then gates -> (..., H).

    value * gelu(gate) with the exact erf GELU (Shazeer 2020, "GLU Variants Improve Transformer"; spec 1.5).
    """
    return gated(nn.functional.linear(tokens, weight, bias))


def gated(hidden: Tensor) -> Tensor:
    """Values and gates (..., 2H) -> value * gelu(gate), (..., H); if neither needs a gradient it reuses the memory of
    GELU's result."""
    value, gate = hidden.chunk(2, dim=-1)
    opened = nn.functional.gelu(gate)
    return value * opened if needs_gradient(hidden) else opened.mul_(value)


def _kernels() -> Mapping[str, Callable[..., Tensor]]:
    from .geglu_triton import TILES

    return TILES


def _refusal(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    if not (tokens.is_contiguous() and weight.is_contiguous() and (bias is None or bias.is_contiguous())):
        return "tokens, weight or bias do not lie row after row"
    return ""


def _shape_class(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[int, int, bool]:
    return weight.shape[1], weight.shape[0], bias is not None


def _sample(tokens: Tensor, *weights: Any) -> tuple[Any, ...]:
    return tokens.flatten(0, -2)[:SAMPLE_ROWS], *weights


geglu = Operation("geglu", reference, _kernels, _refusal, _shape_class, _sample)
