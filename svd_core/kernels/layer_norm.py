"""Residual, frame embedding and LayerNorm in one pass: tokens are read once, and their sum and its norm written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from torch import Tensor, nn

from .choice import Operation

SAMPLE_VALUES = 2**18
MOST_CHANNELS = 8192
"""Most channels of a kernel: a row is held whole."""


def reference(
    tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, change: Tensor | None, embedding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The sum of tokens (..., C), change of the same shape and embedding, which broadcasts; and its LayerNorm over C
    (Ba et al. 2016). Both like tokens."""
    total = tokens
    for part in (change, embedding):
        total = total if part is None else total + part
    return total, nn.functional.layer_norm(total, weight.shape, weight, bias, eps)


def in_place(
    tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, change: Tensor | None, embedding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`reference` with the sum reusing the memory of `change`, a temporary of the caller. Class: exact."""
    if change is None or any(part is not None and part.dtype != tokens.dtype for part in (change, embedding)):
        return reference(tokens, weight, bias, eps, change, embedding)
    total = change.add_(tokens)
    if embedding is not None:
        total.add_(embedding)
    return total, nn.functional.layer_norm(total, weight.shape, weight, bias, eps)


def rows_of(tokens: Tensor, embedding: Tensor) -> tuple[int, int] | None:
    """(repeat, count): row r of tokens takes row (r // repeat) % count of the embedding. None if the embedding is not
    contiguous or varies along dimensions that are not adjacent."""
    shape = (1,) * (tokens.ndim - embedding.ndim) + tuple(embedding.shape)
    own = [axis for axis in range(tokens.ndim - 1) if shape[axis] != 1]
    if shape[-1] != tokens.shape[-1] or not embedding.is_contiguous():
        return None
    if not own:
        return tokens.numel() // tokens.shape[-1], 1
    if own != list(range(own[0], own[-1] + 1)) or any(shape[axis] != tokens.shape[axis] for axis in own):
        return None
    return prod(tokens.shape[own[-1] + 1 : -1]), prod(shape[:-1])


def _kernels() -> Mapping[str, Callable[..., tuple[Tensor, Tensor]]]:
    from .layer_norm_triton import launch

    return {"one pass": launch}


def _refusal(
    tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, change: Tensor | None, embedding: Tensor | None
) -> str:
    if tokens.shape[-1] > MOST_CHANNELS:
        return f"{tokens.shape[-1]} channels are more than {MOST_CHANNELS}"
    if not tokens.is_contiguous() or (change is not None and not change.is_contiguous()):
        return "tokens or change do not lie row after row"
    if change is not None and change.shape != tokens.shape:
        return "the change has another shape"
    if embedding is not None and rows_of(tokens, embedding) is None:
        return "the embedding does not repeat over rows"
    return "" if weight is not None and bias is not None else "the normalisation has no weight or no bias"


def _shape_class(
    tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, change: Tensor | None, embedding: Tensor | None
) -> tuple[int, bool, bool]:
    return tokens.shape[-1], change is not None, embedding is not None


def _sample(
    tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, change: Tensor | None, embedding: Tensor | None
) -> tuple[Any, ...]:
    """Reduces the last axis of rows, unless an embedding varies along it."""
    if embedding is not None and embedding.ndim > 1 and embedding.shape[-2] != 1:
        return tokens, weight, bias, eps, change, embedding
    few = max(1, SAMPLE_VALUES // (tokens.numel() // tokens.shape[-2]))
    cut = None if change is None else change[..., :few, :].contiguous()
    return tokens[..., :few, :].contiguous(), weight, bias, eps, cut, embedding


add_layer_norm = Operation("add_layer_norm", reference, _kernels, _refusal, _shape_class, _sample, in_place)
