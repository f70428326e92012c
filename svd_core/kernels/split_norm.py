"""A GroupNorm in parts: statistics of some rows at a time, their merge, and the resulting affine map of each channel.

For tensors that never exist whole. Rows are pixels of any frames, tokens (..., C) in row-major order. Every
`SPLIT_ROWS` rows of a part have their own statistics, so that one launch serves a part of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .choice import Operation

SPLIT_ROWS = 512
SAMPLE_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Spans:
    """The rows that each entry of a list of statistics covers: `total` rows in parts of `part` rows, the last one
    shorter, and each part in splits of `split` rows."""

    total: int
    part: int
    split: int

    def counts(self) -> list[int]:
        """The number of rows of each entry, in order."""
        parts = [min(self.part, self.total - start) for start in range(0, self.total, self.part)]
        return [min(self.split, rows - start) for rows in parts for start in range(0, rows, self.split)]


def runs_of(tokens: Tensor) -> tuple[int, int, int] | None:
    """(outer, inner, stride): tokens (..., C) are `outer` contiguous runs of `inner` rows, which start `stride` values
    apart. None for other layouts."""
    channels = tokens.shape[-1]
    if tokens.is_contiguous():
        return 1, tokens.numel() // channels, 0
    if tokens.ndim == 3 and tokens.stride()[1:] == (channels, 1):
        return tokens.shape[0], tokens.shape[1], tokens.stride(0)
    return None


def _no_runs(tokens: Tensor, *_: object) -> str:
    return "tokens do not lie in equal runs of rows" if runs_of(tokens) is None else ""


def _channels(tokens: Tensor, *_: object) -> int:
    """The shape class: channels only, so that a choice holds for bands and strips of every size."""
    return tokens.shape[-1]


def _few(tokens: Tensor) -> Tensor:
    return tokens.reshape(-1, tokens.shape[-1])[:SAMPLE_ROWS]


# Statistics of a part


def moments_reference(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """tokens (..., C) -> mean and variance of each channel over every `SPLIT_ROWS` rows, (S, C) each, at least
    float32."""
    rows = _wide(tokens.reshape(-1, tokens.shape[-1]))
    whole = len(rows) // SPLIT_ROWS * SPLIT_ROWS
    parts = [rows[:whole].unflatten(0, (-1, SPLIT_ROWS))] if whole else []
    parts += [rows[None, whole:]] if whole < len(rows) else []
    variances, means = zip(*(torch.var_mean(part, dim=1, correction=0) for part in parts), strict=True)
    return torch.cat(means), torch.cat(variances)


def _moments_kernels() -> Mapping[str, Callable[..., tuple[Tensor, Tensor]]]:
    from .split_norm_triton import moments

    return {"one pass": moments}


split_moments = Operation(
    "split_moments",
    moments_reference,
    _moments_kernels,
    _no_runs,
    _channels,
    lambda tokens: (_few(tokens),),
    slack=4,  # on a CPU, torch sums float32 in float64
)


# Statistics of a convolution's result that still lacks its bias


def owed_reference(tokens: Tensor, owed: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """tokens (..., C) and the missing bias owed (C,) -> their sum, in `out` if given, and its `moments_reference`."""
    total = torch.add(tokens, owed, out=out)
    return total, *moments_reference(total)


def _owed_kernels() -> Mapping[str, Callable[..., tuple[Tensor, Tensor, Tensor]]]:
    from .split_norm_triton import owed_moments as launch

    return {"one pass": launch}


owed_moments = Operation(
    "owed_moments",
    owed_reference,
    _owed_kernels,
    lambda tokens, owed: "" if tokens.is_contiguous() else "tokens do not lie row after row",
    _channels,
    lambda tokens, owed: (_few(tokens), owed),
    slack=4,  # as for split_moments
)


# The sum of such a result and the tensor that it changes


def sum_reference(tokens: Tensor, change: Tensor, owed: Tensor, out: Tensor | None = None) -> Tensor:
    """tokens and change (..., C), owed (C,) -> tokens + change + owed, in `out` if given."""
    return torch.add(tokens, change + owed, out=out)


def _sum_kernels() -> Mapping[str, Callable[..., Tensor]]:
    from .split_norm_triton import owed_sum as launch

    return {"one pass": launch}


owed_sum = Operation(
    "owed_sum",
    sum_reference,
    _sum_kernels,
    lambda tokens, change, owed: (
        "" if tokens.is_contiguous() and change.is_contiguous() else "tokens or change do not lie row after row"
    ),
    _channels,
    lambda tokens, change, owed: (_few(tokens), _few(change), owed),
)


# The merge of statistics


def affine_reference(
    means: Tensor, variances: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, spans: Spans
) -> tuple[Tensor, Tensor]:
    """means and variances (S, C) of the rows that `spans` defines, weight and bias (C,) -> scale and shift (C,) that
    normalise each group of channels and apply weight and bias; merged without cancellation."""
    grouped = means.unflatten(-1, (groups, -1))  # (S, groups, channels of a group)
    counts = means.new_tensor(spans.counts())
    share = (counts / counts.sum())[:, None, None] / grouped.shape[-1]
    mean = (share * grouped).sum((0, 2), keepdim=True)
    spread = variances.unflatten(-1, (groups, -1)) + (grouped - mean) ** 2
    variance = (share * spread).sum((0, 2), keepdim=True)
    weight, bias = (value.to(means).unflatten(-1, (groups, -1))[None] for value in (weight, bias))
    scale = weight * torch.rsqrt(variance + eps)
    return scale.flatten(), (bias - mean * scale).flatten()


def _affine_kernels() -> Mapping[str, Callable[..., tuple[Tensor, Tensor]]]:
    from .split_norm_triton import merged

    return {"group by group": merged}


def _affine_class(means: Tensor, _variances: Tensor, weight: Tensor, *_: object) -> tuple[int, torch.dtype]:
    return means.shape[-1], weight.dtype


merged_affine = Operation(
    "merged_affine",
    affine_reference,
    _affine_kernels,
    lambda means, variances, *_: "" if means.is_contiguous() and variances.is_contiguous() else "not row after row",
    _affine_class,
    lambda *args: args,
    alike=2,
)


# Applying the norm


def silu_reference(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """tokens (..., C), scale and shift (C,) -> silu(tokens * scale + shift), computed in at least float32, in the
    tokens' dtype."""
    return nn.functional.silu(torch.addcmul(shift, _wide(tokens), scale), inplace=True).to(tokens.dtype)


def _silu_kernels() -> Mapping[str, Callable[..., Tensor]]:
    from .split_norm_triton import affine_silu as launch

    return {"one pass": launch}


affine_silu = Operation(
    "affine_silu",
    silu_reference,
    _silu_kernels,
    _no_runs,
    _channels,
    lambda tokens, *affine: (_few(tokens), *affine),
    alike=1,
)


def _wide(tokens: Tensor) -> Tensor:
    return tokens.float() if tokens.itemsize < 4 else tokens
