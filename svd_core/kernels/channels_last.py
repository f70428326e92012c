"""How kernels read images and clips: channels last, row after row."""

from __future__ import annotations

from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether x (N, C, H, W) is one run of memory in the order N, H, W, C."""
    return x.ndim == 4 and x.movedim(1, -1).is_contiguous()


def first_columns(x: Tensor, columns: int) -> Tensor:
    """Of the first of x (N, C, H, W) at most so many columns, (1, C, H, w), channels last: for a probe's sample."""
    return x[:1, :, :, :columns].movedim(1, -1).contiguous().movedim(-1, 1)
