"""Where the networks meet the fused operations: with the weights that a layer would compute with, or not at all.

A kernel reads weights itself, past the layer that holds them. Only a layer that does nothing but its class's sum may be
passed by, so a host says how its own layers give their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from ..kernels import Operation, add_layer_norm, group_norm, group_norm_silu
from .cpu import deriving_linear
from .layout import joined

Weights = tuple[Tensor, Tensor | None]

WeightsFn = Callable[[nn.Module, Tensor], AbstractContextManager[Weights | None]]
"""(layer, input) -> weight and bias as the layer would compute with on that input, until the context ends; None where
the layer must be called instead."""

Result = TypeVar("Result")


@contextmanager
def own_weights(layer: nn.Module, _like: Tensor) -> Iterator[Weights | None]:
    """The parameters of one of torch's own layers, unless something hooks it, wraps it or replaces its call."""
    plain = type(layer) in _plain_layers() and not altered(layer)
    yield (layer.weight, layer.bias) if plain else None


def _plain_layers() -> tuple[type[nn.Module], ...]:
    return nn.Linear, deriving_linear(nn.Linear), nn.GroupNorm, nn.LayerNorm


def altered(layer: nn.Module) -> bool:
    """Whether calling the layer does more than its class says."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def fused(
    operation: Operation,
    weights: WeightsFn,
    layer: nn.Module,
    tensor: Tensor,
    *more: Any,
    otherwise: Callable[[], Result],
) -> Result:
    """`operation(tensor, weight, bias, *more)` where a kernel may run and the layer's weights may be read, else what
    calls the layer. Class: rounding."""
    if operation.wanted(tensor):
        with weights(layer, tensor) as found:
            if found is not None:
                return operation(tensor, *found, *more)
    return otherwise()


def normed_images(weights: WeightsFn, norm: nn.Module, images: Tensor) -> Tensor:
    """GroupNorm of images (N, C, H, W) or clips (B, C, T, S) -> the same shape."""
    return fused(group_norm, weights, norm, images, norm.num_groups, norm.eps, otherwise=lambda: norm(images))


def summed_and_normed(
    weights: WeightsFn, norm: nn.Module, tokens: Tensor, change: Tensor | None, embedding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """tokens (..., C) plus change, of the same shape, plus embedding, which broadcasts; and the LayerNorm of that.

    The sum may take the memory of `change`, which the caller has just made, and never that of `tokens`; with nothing to
    add it is `tokens` itself."""

    def plain() -> tuple[Tensor, Tensor]:
        total = tokens if change is None else joined(tokens, change)
        if embedding is not None:
            total = tokens + embedding if change is None else joined(embedding, total)
        return total, norm(total)

    return fused(add_layer_norm, weights, norm, tokens, norm.eps, change, embedding, otherwise=plain)


class NormActivated(nn.Sequential):
    """GroupNorm and SiLU, which may run as one, and the layers after them."""

    def __init__(self, weights: WeightsFn, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.weights = weights

    def forward(self, images: Tensor) -> Tensor:
        norm, silu, *rest = self
        sizes = (norm.num_groups, norm.eps)
        images = fused(group_norm_silu, self.weights, norm, images, *sizes, otherwise=lambda: silu(norm(images)))
        for layer in rest:
            images = layer(images)
        return images
