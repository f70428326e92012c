"""Triton form of `linear_add`: the residual's tile is read after the products are summed, and may be overwritten."""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .frame_conv_triton import product


@triton.jit
def tile_product(
    x,
    weight,
    rows,
    outputs,
    width,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """This program's (BLOCK_M, BLOCK_N) tile of x (rows, width) @ weight (outputs, width).T, and its rows and columns.
    Tiles of the same rows follow each other, so that the rows are read from memory once."""
    tiles_n = tl.cdiv(outputs, BLOCK_N)
    tile = tl.program_id(0)
    m = (tile // tiles_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tile % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_tile = x + m.to(tl.int64)[:, None] * width + k[None, :]
    w_tile = weight + tl.minimum(n, outputs - 1)[None, :] * width + k[:, None]
    return product(tl.zeros((BLOCK_M, BLOCK_N), tl.float32), x_tile, w_tile, m < rows, k, width, EVEN, BLOCK_K), m, n


@triton.jit
def linear_add_kernel(
    residual,
    x,
    weight,
    bias,
    out,
    rows,
    outputs,
    width,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One (BLOCK_M, BLOCK_N) tile of out (rows, outputs), which may be the residual."""
    total, m, n = tile_product(x, weight, rows, outputs, width, EVEN, BLOCK_M, BLOCK_N, BLOCK_K)
    m_there, n_there = m < rows, n < outputs
    place = m.to(tl.int64)[:, None] * outputs + n[None, :]
    there = m_there[:, None] & n_there[None, :]
    total += tl.load(bias + n, mask=n_there, other=0.0).to(tl.float32)[None, :]
    total += tl.load(residual + place, mask=there, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=there)


def launch(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    out: Tensor | None = None,
    *,
    block_m: int,
    block_n: int,
    warps: int,
    stages: int,
) -> Tensor:
    """Same as `linear_add.reference`, in `out`, which may be the residual. The tile's size changes no bit."""
    out = torch.empty_like(residual) if out is None else out
    rows, width = tokens.shape
    outputs = weight.shape[0]
    grid = (triton.cdiv(rows, block_m) * triton.cdiv(outputs, block_n),)
    block_k = 32 if tokens.dtype == torch.float32 else 64
    sizes = {"EVEN": width % block_k == 0, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
    tensors, options = (residual, tokens, weight, bias, out), {"num_warps": warps, "num_stages": stages}
    linear_add_kernel[grid](*tensors, rows, outputs, width, **sizes, **options)
    return out


TILES = {
    "128x64": partial(launch, block_m=128, block_n=64, warps=4, stages=3),
    "128x64, deep": partial(launch, block_m=128, block_n=64, warps=4, stages=4),
    "128x128": partial(launch, block_m=128, block_n=128, warps=8, stages=3),
}
