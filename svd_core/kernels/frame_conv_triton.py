"""Triton form of `frame_conv`: one accumulator for three sums over channels, of rows one frame apart."""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def product(total, x_tile, w_tile, row_there, k, width, EVEN: tl.constexpr, BLOCK_K: tl.constexpr):
    """total plus one tap's sum over `width` channels; missing rows are zeros."""
    for start in range(0, width, BLOCK_K):
        if EVEN:
            a = tl.load(x_tile, mask=row_there[:, None], other=0.0)
            w = tl.load(w_tile)
        else:
            left = k < width - start
            a = tl.load(x_tile, mask=row_there[:, None] & left[None, :], other=0.0)
            w = tl.load(w_tile, mask=left[:, None], other=0.0)
        total = tl.dot(a, w, total, input_precision="tf32x3")
        x_tile += BLOCK_K
        w_tile += BLOCK_K
    return total


@triton.jit
def frame_conv_kernel(
    x,
    weight,
    bias,
    out,
    frames,
    pixels,
    outputs,
    width,
    EVEN: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x (B, T, S, width), weight (3, outputs, width) -> out (B, T, S, outputs), one (BLOCK_M, BLOCK_N) tile of a clip's
    T * S rows."""
    rows, tiles_n = frames * pixels, tl.cdiv(outputs, BLOCK_N)
    # Only the first grid axis may exceed 65,535, which a decoder's clips do.
    tile, clip = tl.program_id(0), tl.program_id(1).to(tl.int64)
    m = (tile // tiles_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tile % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    m_there, n_there = m < rows, n < outputs
    columns = tl.minimum(n, outputs - 1)[None, :] * width
    base = x + clip * rows * width
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tap in range(3):
        row = m + (tap - 1) * pixels
        row_there = m_there & (row >= 0) & (row < rows)
        x_tile = base + row.to(tl.int64)[:, None] * width + k[None, :]
        w_tile = weight + tap * outputs * width + columns + k[:, None]
        total = product(total, x_tile, w_tile, row_there, k, width, EVEN, BLOCK_K)
    if BIASED:
        total += tl.load(bias + n, mask=n_there, other=0.0).to(tl.float32)[None, :]
    place = out + (clip * rows + m)[:, None] * outputs + n[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=m_there[:, None] & n_there[None, :])


def launch(
    clips: Tensor, weight: Tensor, bias: Tensor | None, *, block_m: int, block_n: int, warps: int, stages: int
) -> Tensor:
    """Same as `frame_conv.reference`. The weight is reordered tap by tap in each call: in a file's order its channels
    are three apart. The tile's size changes no bit."""
    batch, width, frames, pixels = clips.shape
    outputs = weight.shape[0]
    taps = weight.reshape(outputs, width, 3).permute(2, 0, 1).contiguous()
    out = clips.new_empty((batch, frames, pixels, outputs))
    block_k = 32 if clips.dtype == torch.float32 else 64
    flags = {"EVEN": width % block_k == 0, "BIASED": bias is not None}
    sizes = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
    grid = (triton.cdiv(frames * pixels, block_m) * triton.cdiv(outputs, block_n), batch)
    bias = taps if bias is None else bias
    tensors = (clips, taps, bias, out)
    options = {"num_warps": warps, "num_stages": stages}
    frame_conv_kernel[grid](*tensors, frames, pixels, outputs, width, **flags, **sizes, **options)
    return out.movedim(-1, 1)


TILES = {
    "128x128": partial(launch, block_m=128, block_n=128, warps=8, stages=3),
    "128x64": partial(launch, block_m=128, block_n=64, warps=4, stages=3),
}
