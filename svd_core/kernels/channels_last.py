"""The layout in which kernels read images and clips: contiguous channels last."""

from __future__ import annotations

from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether x (N, C, H, W) is contiguous in the order N, H, W, C."""
    return x.ndim == 4 and x.movedim(1, -1).is_contiguous()


def first_columns(x: Tensor, columns: int) -> Tensor:
    """At most `columns` columns of the first of x (N, C, H, W), as (1, C, H, w), channels last: a probe's sample."""
    return x[:1, :, :, :columns].movedim(1, -1).contiguous().movedim(-1, 1)
