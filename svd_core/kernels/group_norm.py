"""GroupNorm, with and without SiLU, of channels-last activations: images, or clips across their frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .channels_last import first_columns, is_channels_last
from .choice import Operation

SAMPLE_COLUMNS = 256


def reference(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, shift: Tensor | None) -> Tensor:
    """x (N, C, H, W) or (B, C, T, S), weight and bias (C,) -> like x. Statistics span a group's channels and the last
    two dimensions: one frame of images, all frames of clips (Wu & He 2018; spec 1.4). `shift` is added first, see
    `spread`."""
    x = x if shift is None else x + spread(shift, x)
    return nn.functional.group_norm(x, groups, weight, bias, eps)


def silu_reference(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, shift: Tensor | None) -> Tensor:
    """`reference`, then SiLU."""
    return nn.functional.silu(reference(x, weight, bias, groups, eps, shift), inplace=True)


def spread(shift: Tensor, x: Tensor) -> Tensor:
    """A view of shift that broadcasts to x (N, C, H, W): shift (1, C) for all, (N, C) per image, or (N * H, C) per
    frame of clips, whose frames are axis H."""
    if len(shift) == 1:
        return shift[..., None, None]
    return shift.unflatten(0, (len(x), -1)).movedim(-1, 1)[..., None]


def _kernels() -> Mapping[str, Callable[..., Tensor]]:
    from .group_norm_triton import plain

    return {"split statistics": plain}


def _silu_kernels() -> Mapping[str, Callable[..., Tensor]]:
    from .group_norm_triton import with_silu

    return {"split statistics": with_silu}


def _refusal(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, shift: Tensor | None) -> str:
    if shift is not None and not shift.is_contiguous():
        return "the shift does not lie row after row"
    if not is_channels_last(x):
        return "x does not lie channels last"
    return "" if weight is not None and bias is not None else "the normalisation has no weight or no bias"


def _shape_class(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, shift: Tensor | None
) -> tuple[int, int, int, float, bool]:
    """Rows determine how the statistics are split, so the size of a frame or clip counts; their number does not."""
    return x.shape[1], x.shape[2] * x.shape[3], groups, eps, shift is not None


def _sample(x: Tensor, *rest: Any) -> tuple[Any, ...]:
    *rest, shift = rest
    own = None if shift is None else shift[: max(1, len(shift) // len(x))]
    return first_columns(x, SAMPLE_COLUMNS), *rest, own


group_norm = Operation("group_norm", reference, _kernels, _refusal, _shape_class, _sample)
group_norm_silu = Operation("group_norm_silu", silu_reference, _silu_kernels, _refusal, _shape_class, _sample)
