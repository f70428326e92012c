"""Calls to fused operations with the weights that a layer would use, or to the layer itself.

A kernel reads weights directly and bypasses the layer that holds them. That is only right for a layer that computes no
more than its class does, so a host defines how its own layers give their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from ..kernels import (
    Operation,
    add_layer_norm,
    blend,
    doubled,
    gated,
    geglu,
    group_norm,
    group_norm_silu,
    needs_gradient,
    smoothed_by_corner,
    spread,
)
from .cpu.conv import deriving_conv, may_run_by_corner
from .cpu.geglu import are_plain, geglu_route
from .cpu.probe import is_plain_kernel
from .cpu.route import deriving_linear
from .cpu.wide import doubled_smooth, may_widen
from .layout import blended, joined

Weights = tuple[Tensor, Tensor | None]

WeightsFn = Callable[[nn.Module, Tensor], AbstractContextManager[Weights | None]]
"""(layer, input) -> weight and bias as the layer would use them on that input, valid until the context ends; None if
the layer must be called instead."""

Result = TypeVar("Result")


@contextmanager
def own_weights(layer: nn.Module, _like: Tensor) -> Iterator[Weights | None]:
    """Yield the parameters of one of torch's own layers; None if it is hooked or wrapped or its call is replaced."""
    plain = type(layer) in _plain_layers() and not altered(layer)
    yield (layer.weight, layer.bias) if plain else None


def _plain_layers() -> tuple[type[nn.Module], ...]:
    return nn.Linear, deriving_linear(nn.Linear), nn.Conv2d, deriving_conv(nn.Conv2d), nn.GroupNorm, nn.LayerNorm


def altered(layer: nn.Module) -> bool:
    """Whether calling the layer differs from its class's forward: node packs for tileable pictures, for example, change
    every convolution's padding or `_conv_forward`."""
    replaced = not {"forward", "_conv_forward"}.isdisjoint(vars(layer))
    wrapped = getattr(layer, "padding_mode", "zeros") != "zeros"
    return bool(layer._forward_hooks or layer._forward_pre_hooks or replaced or wrapped)


def fused(
    operation: Operation,
    weights: WeightsFn,
    layer: nn.Module,
    tensor: Tensor,
    *more: Any,
    otherwise: Callable[[], Result],
) -> Result:
    """`operation(tensor, weight, bias, *more)` if a kernel may run and the layer's weights may be read, else
    `otherwise()`. Class: rounding."""
    if operation.wanted(tensor, *more):
        with weights(layer, tensor) as found:
            if _are_frozen(found):
                return operation(tensor, *found, *more)
    return otherwise()


def _are_frozen(found: Weights | None) -> bool:
    """Whether weights could be read and need no gradient, which only calling their layer would give them."""
    return found is not None and not needs_gradient(*found)


def normed_images(weights: WeightsFn, norm: nn.Module, images: Tensor) -> Tensor:
    """GroupNorm of images (N, C, H, W) or clips (B, C, T, S) -> the same shape."""
    return fused(group_norm, weights, norm, images, norm.num_groups, norm.eps, None, otherwise=lambda: norm(images))


def normed_tokens(weights: WeightsFn, norm: nn.Module, tokens: Tensor) -> Tensor:
    """LayerNorm of tokens (..., C) -> the same shape."""
    return summed_and_normed(weights, norm, tokens, None)[1]


def short_of_bias(weights: WeightsFn, conv: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """The convolution of images (N, C, H, W) without its bias, and that bias (C',), which the caller must add; the full
    result and None if no kernel would add it. On a device, torch adds a bias in a separate pass. Class: rounding."""
    if group_norm_silu.wanted(images):
        with weights(conv, images) as found:
            if _are_frozen(found) and found[1] is not None:
                weight, bias = found
                # A host's weights are only valid inside the context.
                owed = bias if bias is conv.bias else bias.clone()
                return nn.functional.conv2d(images, weight, None, conv.stride, conv.padding), owed
    return conv(images), None


def doubled_convolved(weights: WeightsFn, conv: nn.Module, images: Tensor) -> Tensor:
    """A 3x3 convolution of images (N, C, H, W) doubled by nearest neighbour -> (N, C', 2H, 2W)."""
    smoothed = convolved_by_corner(weights, conv, images)
    return conv(doubled(images)) if smoothed is None else smoothed


def convolved_by_corner(weights: WeightsFn, conv: nn.Module, images: Tensor, *more: Any) -> Tensor | None:
    """`doubled_convolved` by `kernels.smoothed_by_corner(images, weight, bias, *more)`, or None if the layer must be
    called or is faster. Class: rounding."""
    if not may_run_by_corner(images):
        return None
    with weights(conv, images) as found:
        if not _are_frozen(found) or not is_plain_kernel(found[0], images.dtype):
            return None
        if may_widen(nn.functional.conv2d, images, *found):
            return doubled_smooth(images, *found)
        return smoothed_by_corner(images, *found, *more)


def geglu_of(weights: WeightsFn, proj: nn.Module, tokens: Tensor) -> Tensor:
    """GEGLU of tokens (..., C) -> (..., H), `proj` being its layer of values and gates: by a kernel on a device or two
    products on a CPU where possible, else by the layer."""
    return fused(geglu, weights, proj, tokens, otherwise=lambda: _geglu_of_products(weights, proj, tokens))


def _geglu_of_products(weights: WeightsFn, proj: nn.Module, tokens: Tensor) -> Tensor:
    route = geglu_route(tokens)
    if route is not None:
        with weights(proj, tokens) as found:
            if _are_frozen(found) and are_plain(*found, tokens.dtype):
                return route(tokens, *found)
    return gated(proj(tokens))


def blended_with(fresh: Tensor, change: Tensor, share: Tensor, owed: Tensor | None) -> Tensor:
    """`layout.blended`, plus the bias `owed` not yet added to `fresh`, if any."""
    return blended(fresh, change, share) if owed is None else blend(fresh, change, share, owed)


def summed_and_normed(
    weights: WeightsFn, norm: nn.Module, tokens: Tensor, change: Tensor | None, embedding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of tokens (..., C), change of the same shape and embedding, which broadcasts; and its LayerNorm.

    The sum may overwrite `change`, a temporary of the caller, but never `tokens`; with nothing to add it is `tokens`
    itself."""

    def plain() -> tuple[Tensor, Tensor]:
        total = tokens if change is None else joined(tokens, change)
        if embedding is not None:
            total = tokens + embedding if change is None else joined(embedding, total)
        return total, norm(total)

    return fused(add_layer_norm, weights, norm, tokens, norm.eps, change, embedding, otherwise=plain)


class NormActivated(nn.Sequential):
    """GroupNorm and SiLU, which may run as one, then a convolution, the last layer; layers in between are
    placeholders."""

    def __init__(self, weights: WeightsFn, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.weights = weights

    def forward(self, images: Tensor, shift: Tensor | None = None, *, fresh: bool = True) -> Tensor:
        """images (N, C, H, W) or clips (B, C, T, S) -> the same with C' channels. `shift` (`kernels.spread`) is added
        first: in place if the images are `fresh`, a temporary of the caller."""
        return self[-1](self.activated(images, shift, fresh))

    def short(self, images: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`forward` by `short_of_bias`: the result without its bias, and the bias."""
        return short_of_bias(self.weights, self[-1], self.activated(images, shift, fresh=True))

    def activated(self, images: Tensor, shift: Tensor | None, fresh: bool) -> Tensor:
        """The convolution's input."""
        norm, silu, *_ = self

        def plain() -> Tensor:
            if shift is None:
                return silu(norm(images))
            added = spread(shift, images)
            return silu(norm(joined(added, images) if fresh else images + added))

        return fused(group_norm_silu, self.weights, norm, images, norm.num_groups, norm.eps, shift, otherwise=plain)
