"""A convolution inside a frame: how it is summed and stored, with the bias that may still be owed to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..kernels import owed_moments, owed_sum
from .norms import Moments
from .places import Place

LONG_SUM = 256
"""Input channels from which a float32 convolution on a CPU runs channels first; see `convolved`."""

Short = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None]]
"""(convolution, images (1, C, h, W)) -> its result, and the bias (C',) still to be added to it, or None: a device adds
that while storing the result, which saves a pass over it."""

ByCorner = Callable[[nn.Module, Tensor, Callable[..., Tensor]], Tensor | None]
"""(convolution, images (1, C, h, W), how to call one) -> its result (1, C', 2h, 2W) for the doubled images, by
`kernels.smoothed_by_corner`; None if the doubled images must be made."""


def whole(conv: nn.Module, images: Tensor) -> tuple[Tensor, None]:
    """A `Short` that adds the bias itself."""
    return convolved(conv, images), None


def never(_conv: nn.Module, _images: Tensor, _convolved: Callable[..., Tensor]) -> None:
    """A `ByCorner` that never applies."""


def convolved(conv: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """A convolution of images (1, C, h, W), channels last -> images, channels last.

    On a CPU, oneDNN sums a float32 convolution of many channels in one long chain if channels are last and in short
    ones if they are first: a third of the error, at almost no cost including both transposes. These hold one more band;
    no plan counts that, nor what oneDNN holds. Class: rounding."""
    if not (images.is_cpu and images.dtype == torch.float32 and images.shape[1] >= LONG_SUM):
        return conv(images)
    _, channels, height, width = images.shape
    # torch is fast at transposing matrices only
    planes = channels_at_end(images).reshape(-1, channels).t().contiguous()
    planes = conv(planes.view(1, channels, height, width))
    _, channels, height, width = planes.shape
    tokens = planes.reshape(channels, -1).t().contiguous()
    return tokens.view(1, height, width, channels).movedim(-1, 1)


def shortly(short: Short, conv: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution that leaves its bias owed where a kernel adds it later, and adds it itself elsewhere."""
    return short(conv, images) if owed_moments.wanted(images) else whole(conv, images)


def paid(result: Tensor, owed: Tensor | None) -> Tensor:
    """The result with the bias that is owed to it, if any, added in place."""
    return result if owed is None else result.add_(owed[:, None, None])


def save(place: Place, part: Tensor, result: Tensor, owed: Tensor | None) -> None:
    """Store a result, plus the bias `owed` if any, in a part."""
    if owed is not None:
        room = place.room(part)
        torch.add(result, owed[:, None, None], out=room)
        result = room
    place.save(part, result)


def save_sum(place: Place, part: Tensor, one: Tensor, other: Tensor, owed: Tensor | None = None) -> None:
    """Store one + other, plus the bias `owed` if any, in a part, directly if it is on the device."""
    room = place.room(part)
    if owed is None:
        torch.add(one, other, out=room)
    else:
        owed_sum.into(channels_at_end(room), channels_at_end(one), channels_at_end(other), owed)
    place.save(part, room)


def save_and_gather(place: Place, part: Tensor | None, result: Tensor, owed: Tensor | None) -> Moments:
    """Moments of a result plus the bias `owed`, if any; their sum is stored in a part if given."""
    if owed is None:
        moments = Moments.of(channels_at_end(result))
        if part is not None:
            place.save(part, result)
        return moments
    room = None if part is None else place.room(part)
    moments = Moments.owed(channels_at_end(result), owed, None if room is None else channels_at_end(room))
    if part is not None:
        place.save(part, room)
    return moments


def channels_at_end(images: Tensor) -> Tensor:
    """(1, C, H, W) -> (1, H, W, C), a view."""
    return images.movedim(1, -1)


def on_images(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Apply a function of tokens (..., C) to images (1, C, H, W)."""
    return function(channels_at_end(images)).movedim(-1, 1)
