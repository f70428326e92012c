"""Adds a share of a change, and the bias that a convolution left out, to an activation in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .channels_last import first_columns, is_channels_last
from .choice import Operation

SAMPLE_COLUMNS = 256


def reference(images: Tensor, change: Tensor, share: Tensor, owed: Tensor) -> Tensor:
    """images and change (N, C, H, W), share one value, owed (C,) the missing bias -> images + share * change + owed
    (spec 1.7)."""
    return torch.addcmul(images, change, share) + owed[:, None, None]


def in_place(images: Tensor, change: Tensor, share: Tensor, owed: Tensor) -> Tensor:
    """`reference` in the memory of `images`, a temporary of the caller. Class: exact."""
    return images.addcmul_(change, share).add_(owed[:, None, None])


def _kernels() -> Mapping[str, Callable[..., Tensor]]:
    from .blend_triton import launch

    return {"one pass": launch}


def _refusal(images: Tensor, change: Tensor, share: Tensor, owed: Tensor) -> str:
    if images.shape != change.shape or not (is_channels_last(images) and is_channels_last(change)):
        return "images and change do not lie alike, channels last"
    return ""


def _shape_class(images: Tensor, change: Tensor, share: Tensor, owed: Tensor) -> int:
    return images.shape[1]


def _sample(images: Tensor, change: Tensor, share: Tensor, owed: Tensor) -> tuple[Tensor, ...]:
    return *(first_columns(part, SAMPLE_COLUMNS) for part in (images, change)), share, owed


blend = Operation("blend", reference, _kernels, _refusal, _shape_class, _sample, in_place)
