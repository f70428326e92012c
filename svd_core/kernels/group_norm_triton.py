"""Triton form of `group_norm`: partial statistics of blocks of rows, their merge, and one pass that applies them.

Statistics are means and sums of squared deviations in float32, merged pairwise (Chan, Golub & LeVeque 1979), so a large
mean costs no digits. The split of rows depends only on a frame's size, so no bit depends on the batch.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT_ROWS = 512
"""Rows of one partial sum."""


@triton.jit
def shifted(tile, shift, image, r, c, there, per_image, repeat, channels):
    """The tile's rows r plus their rows of the shift: every image has `per_image` of them, each for `repeat` rows of
    the image; 0 if one row serves all."""
    row = image * per_image + r // repeat
    return tile + tl.load(shift + row[:, None] * channels + c[None, :], mask=there, other=0.0).to(tl.float32)


@triton.jit
def taken_in(tile, there, mean, square, turn):
    """Each lane's mean and sum of squared deviations, updated with one more row (Welford 1962)."""
    gap = tl.where(there, tile - mean, 0.0)
    mean += gap * (1.0 / (turn + 1))
    return mean, square + gap * (tile - mean)


@triton.jit
def lanes_together(mean, square, rows, BLOCK_R: tl.constexpr):
    """Each channel's mean and sum of squared deviations, merged from those of the lanes (BLOCK_R, channels), which took
    `rows` rows in turn (Chan, Golub & LeVeque 1979)."""
    count = tl.maximum(0, (rows - tl.arange(0, BLOCK_R) + BLOCK_R - 1) // BLOCK_R).to(tl.float32)[:, None]
    near = tl.sum(mean, axis=0) / BLOCK_R
    middle = near + tl.sum((mean - near[None, :]) * count, axis=0) / rows
    away = mean - middle[None, :]
    return middle, tl.sum(square + count * away * away, axis=0)


@triton.jit
def partial_kernel(
    x,
    shift,
    means,
    squares,
    rows,
    channels,
    splits,
    per_image,
    repeat,
    SHIFTED: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """x (N, rows, C) -> each channel's mean and sum of squared deviations over one split's rows, (N, splits, C)
    each."""
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    lane, c = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_there = c < channels
    first = split * SPLIT
    last = tl.minimum(first + SPLIT, rows)
    base = x + image * rows * channels
    mean = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    # Each lane keeps its own until the end (Welford): merging them in every turn would take longer than reading.
    for turn in range(SPLIT // BLOCK_R):
        r = first + turn * BLOCK_R + lane
        there = (r < last)[:, None] & c_there[None, :]
        tile = tl.load(base + r.to(tl.int64)[:, None] * channels + c[None, :], mask=there, other=0.0).to(tl.float32)
        if SHIFTED:
            tile = shifted(tile, shift, image, r, c, there, per_image, repeat, channels)
        mean, square = taken_in(tile, there, mean, square, turn)
    middle, square = lanes_together(mean, square, last - first, BLOCK_R)
    place = (image * splits + split) * channels + c
    tl.store(means + place, middle, mask=c_there)
    tl.store(squares + place, square, mask=c_there)


@triton.jit
def merge_kernel(
    means,
    squares,
    mean_out,
    scale_out,
    rows,
    channels,
    splits,
    eps,
    groups,
    WIDTH: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """means, squares (N, splits, C) -> mean, 1 / sqrt(variance + eps) (N, groups) each, of groups of WIDTH channels."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    w = tl.arange(0, BLOCK_W)
    base = image * splits * channels + group * WIDTH
    count = tl.zeros((), tl.float32)
    mean = tl.zeros((), tl.float32)
    square = tl.zeros((), tl.float32)
    start = 0
    while start < splits:
        s = start + tl.arange(0, BLOCK_S)
        there = (s < splits)[:, None] & (w < WIDTH)[None, :]
        place = base + s.to(tl.int64)[:, None] * channels + w[None, :]
        part = tl.load(means + place, mask=there, other=0.0)
        counts = tl.where(there, tl.minimum(rows - s * SPLIT, SPLIT)[:, None].to(tl.float32), 0.0)
        added = tl.sum(tl.sum(counts, axis=1), axis=0)
        part_mean = tl.sum(tl.sum(part * counts, axis=1), axis=0) / added
        away = part - part_mean
        inner = tl.load(squares + place, mask=there, other=0.0) + counts * away * away
        gap = part_mean - mean
        square += tl.sum(tl.sum(inner, axis=1), axis=0) + gap * gap * (count * added / (count + added))
        mean += gap * (added / (count + added))
        count += added
        start += BLOCK_S
    tl.store(mean_out + image * groups + group, mean)
    tl.store(scale_out + image * groups + group, 1.0 / tl.sqrt(square / count + eps))


@triton.jit
def apply_kernel(
    x,
    shift,
    means,
    scales,
    weight,
    bias,
    out,
    rows,
    channels,
    groups,
    per_image,
    repeat,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
    SHIFTED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out = (x + shift - mean) * scale * weight + bias of (N, rows, C), then SiLU if SILU."""
    image = tl.program_id(2).to(tl.int64)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_there = c < channels
    there = (r < rows)[:, None] & c_there[None, :]
    mean = tl.load(means + image * groups + c // WIDTH, mask=c_there, other=0.0)
    scale = tl.load(scales + image * groups + c // WIDTH, mask=c_there, other=0.0)
    scale *= tl.load(weight + c, mask=c_there, other=0.0).to(tl.float32)
    offset = tl.load(bias + c, mask=c_there, other=0.0).to(tl.float32)
    place = (image * rows + r)[:, None] * channels + c[None, :]
    tile = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
    if SHIFTED:
        tile = shifted(tile, shift, image, r, c, there, per_image, repeat, channels)
    tile = (tile - mean[None, :]) * scale[None, :] + offset[None, :]
    if SILU:
        tile = tile / (1.0 + tl.exp(-tile))
    tl.store(out + place, tile.to(out.dtype.element_ty), mask=there)


def launch(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, shift: Tensor | None, *, silu: bool
) -> Tensor:
    """Same as `group_norm.reference`, then SiLU if `silu`, in three launches."""
    images, channels, height, width = x.shape
    rows, group = height * width, channels // groups
    per_image = 0 if shift is None or len(shift) == 1 else len(shift) // images
    added = (x if shift is None else shift, per_image, rows // max(1, per_image), shift is not None)
    block_c = min(128, triton.next_power_of_2(channels))
    means, scales = _statistics(x, added, groups, eps, block_c)
    out = torch.empty_like(x)
    shift, per_image, repeat, flag = added
    grid = (triton.cdiv(rows, 32), triton.cdiv(channels, block_c), images)
    tensors, sizes = (x, shift, means, scales, weight, bias, out), (rows, channels, groups, per_image, repeat)
    apply_kernel[grid](*tensors, *sizes, group, silu, flag, BLOCK_R=32, BLOCK_C=block_c)
    return out


def _statistics(
    x: Tensor, added: tuple[Tensor, int, int, bool], groups: int, eps: float, block_c: int
) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation, (N, groups) each, of x plus the shift. `added` is the shift, its rows per
    image, how many rows each is for, and whether there is a shift."""
    shift, *repeats, flag = added
    images, channels, height, width = x.shape
    rows, group = height * width, channels // groups
    splits = triton.cdiv(rows, SPLIT_ROWS)
    parts = x.new_empty((2, images, splits, channels), dtype=torch.float32)
    merged = x.new_empty((2, images, groups), dtype=torch.float32)
    sizes = {"SPLIT": SPLIT_ROWS, "BLOCK_R": 16, "BLOCK_C": block_c}
    grid = (splits, triton.cdiv(channels, block_c), images)
    partial_kernel[grid](x, shift, *parts, rows, channels, splits, *repeats, flag, **sizes)
    wide = triton.next_power_of_2(group)
    sizes = {"WIDTH": group, "SPLIT": SPLIT_ROWS, "BLOCK_S": max(1, 2048 // wide), "BLOCK_W": wide}
    merge_kernel[(groups, images)](*parts, *merged, rows, channels, splits, eps, groups, **sizes)
    return merged[0], merged[1]


plain = partial(launch, silu=False)
with_silu = partial(launch, silu=True)
