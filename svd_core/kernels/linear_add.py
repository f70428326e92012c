"""A linear layer whose result is added to a residual without being stored separately."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from .choice import Operation

SAMPLE_ROWS = 256


def reference(tokens: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """tokens (R, I), weight (O, I), bias (O,), residual (R, O) -> residual + tokens @ weight.T + bias."""
    return residual + nn.functional.linear(tokens, weight, bias)


def in_place(tokens: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`reference` in the memory of `residual`, which the caller gives up. Class: exact."""
    return residual.add_(nn.functional.linear(tokens, weight, bias))


def _kernels() -> Mapping[str, Callable[..., Tensor]]:
    from .linear_add_triton import TILES

    return TILES


def _refusal(tokens: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> str:
    if bias is None:
        return "the layer has no bias"
    if not all(part.is_contiguous() for part in (residual, tokens, weight, bias)):
        return "residual, tokens, weight or bias do not lie row after row"
    return ""


def _shape_class(tokens: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> tuple[int, int]:
    return weight.shape[1], weight.shape[0]


def _sample(tokens: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
    return tokens[:SAMPLE_ROWS], weight, bias, residual[:SAMPLE_ROWS]


linear_add = Operation("linear_add", reference, _kernels, _refusal, _shape_class, _sample, in_place, overwritten=3)
