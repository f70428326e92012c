"""Triton forms of `split_norm`: one launch each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .group_norm_triton import lanes_together, taken_in
from .split_norm import SPLIT_ROWS, Spans, owed_reference, runs_of, sum_reference

LANES = 32
"""Rows that a program reads at once."""

READ_ROWS, READ_CHANNELS = 64, 64
"""Rows and channels that a program of `moments_kernel` reads at once. Another shape would merge in another order and
change the last digits, so all devices use the same."""


@triton.jit
def taken(mean, square, turn, x, due, total, r, last, c, layout, OWED: tl.constexpr, ONE_RUN: tl.constexpr):
    """The lanes' statistics after one more row each, the rows r."""
    inner, stride, channels = layout
    there = (r < last)[:, None] & (c < channels)[None, :]
    own = r.to(tl.int64)[:, None] * channels + c[None, :]
    place = (
        own
        if ONE_RUN
        else ((r // inner).to(tl.int64) * stride + (r % inner).to(tl.int64) * channels)[:, None] + c[None, :]
    )
    tile = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
    if OWED:
        rounded = (tile + due[None, :]).to(total.dtype.element_ty)
        tl.store(total + own, rounded, mask=there)
        tile = rounded.to(tl.float32)
    return taken_in(tile, there, mean, square, turn)


@triton.jit
def moments_kernel(
    x,
    owed,
    total,
    means,
    variances,
    rows,
    inner,
    stride,
    channels,
    OWED: tl.constexpr,
    ONE_RUN: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """x in runs of `inner` rows of C -> means and variances (splits, C); if OWED, those of x + owed, rounded, which is
    stored in `total`, contiguous. Each lane keeps its own statistics (Welford) until all rows are read; lanes are
    merged at the end (Chan, Golub & LeVeque 1979)."""
    split, c = tl.program_id(0), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_there = c < channels
    first = split * SPLIT
    r, last = first + tl.arange(0, BLOCK_R), tl.minimum(first + SPLIT, rows)
    mean = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    due = tl.load(owed + c, mask=c_there, other=0.0).to(tl.float32) if OWED else 0.0
    layout = (inner, stride, channels)
    for turn in tl.static_range(SPLIT // BLOCK_R):  # unrolled, so that loads overlap with arithmetic
        at = r + turn * BLOCK_R
        mean, square = taken(mean, square, turn, x, due, total, at, last, c, layout, OWED, ONE_RUN)
    middle, square = lanes_together(mean, square, last - first, BLOCK_R)
    tl.store(means + split * channels + c, middle, mask=c_there)
    tl.store(variances + split * channels + c, square / (last - first), mask=c_there)


@triton.jit
def together(means, variances, place, there, counts):
    """Merged count, mean and sum of squared deviations of entries that cover `counts` rows."""
    middle = tl.load(means + place, mask=there, other=0.0)
    added = tl.sum(tl.sum(counts, axis=1), axis=0)
    mean = tl.sum(tl.sum(middle * counts, axis=1), axis=0) / added
    away = middle - mean
    inside = counts * (tl.load(variances + place, mask=there, other=0.0) + away * away)
    return added, mean, tl.sum(tl.sum(inside, axis=1), axis=0)


@triton.jit
def merge_kernel(
    means,
    variances,
    weight,
    bias,
    scale_out,
    shift_out,
    entries,
    channels,
    total,
    part,
    split,
    per_part,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """means, variances (entries, C) -> scale, shift of one group of WIDTH channels; `Spans`: the rows of an entry."""
    w = tl.arange(0, BLOCK_W)
    w_there = w < WIDTH
    base = tl.program_id(0) * WIDTH
    count, mean, square = tl.zeros((), tl.float32), tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    start = 0
    while start < entries:
        s = start + tl.arange(0, BLOCK_S)
        there = (s < entries)[:, None] & w_there[None, :]
        left = tl.minimum(part, total - (s // per_part) * part) - (s % per_part) * split
        rows = tl.minimum(tl.maximum(left, 0), split)
        counts = tl.where(there, rows[:, None].to(tl.float32), 0.0)
        place = s.to(tl.int64)[:, None] * channels + base + w[None, :]
        added, part_mean, inside = together(means, variances, place, there, counts)
        gap = part_mean - mean
        square += inside + gap * gap * (count * added / (count + added))
        mean += gap * (added / (count + added))
        count, start = count + added, start + BLOCK_S
    gain = tl.load(weight + base + w, mask=w_there, other=0.0).to(tl.float32) / tl.sqrt(square / count + eps)
    offset = tl.load(bias + base + w, mask=w_there, other=0.0).to(tl.float32)
    tl.store(scale_out + base + w, gain, mask=w_there)
    tl.store(shift_out + base + w, offset - mean * gain, mask=w_there)


@triton.jit
def affine_silu_kernel(x, gains, offsets, out, inner, stride, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """x in runs of `inner` rows of C -> silu(x * gain + offset), contiguous."""
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    run = tl.program_id(2).to(tl.int64)
    c_there = c < channels
    there = (r < inner)[:, None] & c_there[None, :]
    row = r.to(tl.int64)[:, None]
    tile = tl.load(x + run * stride + row * channels + c[None, :], mask=there, other=0.0).to(tl.float32)
    gain, offset = tl.load(gains + c, mask=c_there, other=0.0), tl.load(offsets + c, mask=c_there, other=0.0)
    tile = tile * gain[None, :] + offset[None, :]
    tile = tile / (1.0 + tl.exp(-tile))
    tl.store(out + (run * inner + row) * channels + c[None, :], tile.to(out.dtype.element_ty), mask=there)


@triton.jit
def owed_sum_kernel(x, change, owed, out, rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """x + change + owed of (rows, C), in float32."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_there = c < channels
    there = (r < rows)[:, None] & c_there[None, :]
    place = r[:, None] * channels + c[None, :]
    tile = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
    tile += tl.load(change + place, mask=there, other=0.0).to(tl.float32)
    tile += tl.load(owed + c, mask=c_there, other=0.0).to(tl.float32)[None, :]
    tl.store(out + place, tile.to(out.dtype.element_ty), mask=there)


def moments(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Same as `split_norm.moments_reference`."""
    return _moments(tokens, None, None)


def owed_moments(tokens: Tensor, owed: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Same as `split_norm.owed_reference`."""
    total = torch.empty_like(tokens) if out is None else out
    if not total.is_contiguous():
        return owed_reference(tokens, owed, out)
    return total, *_moments(tokens, owed, total)


def _moments(tokens: Tensor, owed: Tensor | None, total: Tensor | None) -> tuple[Tensor, Tensor]:
    outer, inner, stride = runs_of(tokens)
    channels, rows = tokens.shape[-1], outer * inner
    splits, block_c = triton.cdiv(rows, SPLIT_ROWS), min(READ_CHANNELS, triton.next_power_of_2(channels))
    found = tokens.new_empty((2, splits, channels), dtype=torch.float32)
    flag = owed is not None
    tensors = (tokens, owed if flag else tokens, total if flag else tokens, found[0], found[1])
    flags = {"OWED": flag, "ONE_RUN": outer == 1}
    sizes = {"SPLIT": SPLIT_ROWS, "BLOCK_R": READ_ROWS, "BLOCK_C": block_c}
    grid = (splits, triton.cdiv(channels, block_c))
    moments_kernel[grid](*tensors, rows, inner, stride, channels, **flags, **sizes, num_warps=8)
    return found[0], found[1]


def owed_sum(tokens: Tensor, change: Tensor, owed: Tensor, out: Tensor | None = None) -> Tensor:
    """Same as `split_norm.sum_reference`."""
    total = torch.empty_like(tokens) if out is None else out
    if not total.is_contiguous():
        return sum_reference(tokens, change, owed, out)
    channels = tokens.shape[-1]
    rows, block_c = tokens.numel() // channels, min(128, triton.next_power_of_2(channels))
    grid = (triton.cdiv(rows, LANES), triton.cdiv(channels, block_c))
    owed_sum_kernel[grid](tokens, change, owed, total, rows, channels, BLOCK_R=LANES, BLOCK_C=block_c)
    return total


def merged(
    means: Tensor, variances: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, spans: Spans
) -> tuple[Tensor, Tensor]:
    """Same as `split_norm.affine_reference`."""
    entries, channels = means.shape
    width = channels // groups
    wide = triton.next_power_of_2(width)
    found = means.new_empty((2, channels))
    per_part = triton.cdiv(min(spans.part, spans.total), spans.split)
    numbers = (entries, channels, spans.total, spans.part, spans.split, per_part, eps)
    sizes = {"WIDTH": width, "BLOCK_S": max(1, 2048 // wide), "BLOCK_W": wide}
    merge_kernel[(groups,)](means, variances, weight, bias, found[0], found[1], *numbers, **sizes, num_warps=8)
    return found[0], found[1]


def affine_silu(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Same as `split_norm.silu_reference`."""
    outer, inner, stride = runs_of(tokens)
    channels = tokens.shape[-1]
    out = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
    block_c = min(128, triton.next_power_of_2(channels))
    grid = (triton.cdiv(inner, LANES), triton.cdiv(channels, block_c), outer)
    sizes = {"BLOCK_R": LANES, "BLOCK_C": block_c}
    affine_silu_kernel[grid](tokens, scale, shift, out, inner, stride, channels, **sizes)
    return out
