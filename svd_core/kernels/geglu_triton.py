"""Triton form of `geglu`: values and gates share each tile of tokens, in two accumulators or in the halves of one."""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def products(
    x_tile,
    value_tile,
    gate_tile,
    k,
    width,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The products of the tile's tokens with the weights of its values and of its gates, summed over `width` channels
    in float32."""
    value = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, width, BLOCK_K):
        if EVEN:
            a, v, g = tl.load(x_tile), tl.load(value_tile), tl.load(gate_tile)
        else:
            left = k < width - start
            a = tl.load(x_tile, mask=left[None, :], other=0.0)
            v = tl.load(value_tile, mask=left[:, None], other=0.0)
            g = tl.load(gate_tile, mask=left[:, None], other=0.0)
        value = tl.dot(a, v, value, input_precision="tf32x3")
        gate = tl.dot(a, g, gate, input_precision="tf32x3")
        x_tile += BLOCK_K
        value_tile += BLOCK_K
        gate_tile += BLOCK_K
    return value, gate


@triton.jit
def joint_products(
    x_tile,
    weight_tile,
    k,
    width,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`products` in one accumulator, values in its left half and gates in its right: one wide product reads the tokens'
    tile once. A thread holds the same columns of both halves, so that splitting them moves no data."""
    total = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
    for start in range(0, width, BLOCK_K):
        if EVEN:
            a, w = tl.load(x_tile), tl.load(weight_tile)
        else:
            left = k < width - start
            a = tl.load(x_tile, mask=left[None, :], other=0.0)
            w = tl.load(weight_tile, mask=left[:, None], other=0.0)
        total = tl.dot(a, w, total, input_precision="tf32x3")
        x_tile += BLOCK_K
        weight_tile += BLOCK_K
    return tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_N)), (0, 2, 1)))


@triton.jit
def below(gate):
    """Standard normal CDF of `gate` in float32, for 16-bit results: gate times this is the erf GELU.

    A least-squares fit of an odd polynomial of degree 23, with an error of 2.5e-6. Beyond 4.8 it is 0 or 1. erf itself
    takes longer on a tile than the products do."""
    x = tl.minimum(tl.maximum(gate, -4.8), 4.8)
    t = x * (x * 0.08680555555555555) - 1.0  # from -1 to 1, where no digits cancel
    r = -0.00042284122901037335 * t + 0.0018708774587139487
    r = r * t - 0.003339906223118305
    r = r * t + 0.004525837488472462
    r = r * t - 0.008035603910684586
    r = r * t + 0.014467185363173485
    r = r * t - 0.022024253383278847
    r = r * t + 0.03055366314947605
    r = r * t - 0.04058121144771576
    r = r * t + 0.052919816225767136
    r = r * t - 0.07297953218221664
    r = r * t + 0.14721255004405975
    return 0.5 + x * r


@triton.jit
def corner(rows, hidden, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BAND: tl.constexpr):
    """First row and column of this program's tile. Tiles are ordered in bands of BAND rows of tiles, which share
    weights in the L2 cache."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(hidden, BLOCK_N)
    tile = tl.program_id(0)
    band = tile // (BAND * tiles_n)
    high = tl.minimum(tiles_m - band * BAND, BAND)
    inside = tile % (BAND * tiles_n)
    return (band * BAND + inside % high) * BLOCK_M, (inside // high) * BLOCK_N


@triton.jit
def geglu_kernel(
    x,
    weight,
    bias,
    out,
    rows,
    hidden,
    width,
    EVEN: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BAND: tl.constexpr,
    JOINT: tl.constexpr,
):
    """One (BLOCK_M, BLOCK_N) tile of out (rows, hidden)."""
    first_m, first_n = corner(rows, hidden, BLOCK_M, BLOCK_N, BAND)
    m, n, k = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    m_there, n_there = m < rows, n < hidden
    # Beyond the edge read the last row or column again: cheaper than a mask in the loop, and never stored.
    x_tile = x + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * width + k[None, :]
    if JOINT:
        half = tl.arange(0, 2 * BLOCK_N)
        row = tl.minimum(first_n + half % BLOCK_N, hidden - 1) + (half // BLOCK_N) * hidden
        weight_tile = weight + row[None, :] * width + k[:, None]
        value, gate = joint_products(x_tile, weight_tile, k, width, EVEN, BLOCK_M, BLOCK_N, BLOCK_K)
    else:
        value_tile = weight + tl.minimum(n, hidden - 1)[None, :] * width + k[:, None]
        gate_tile = value_tile + hidden * width
        value, gate = products(x_tile, value_tile, gate_tile, k, width, EVEN, BLOCK_M, BLOCK_N, BLOCK_K)
    if BIASED:
        value += tl.load(bias + n, mask=n_there, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(bias + hidden + n, mask=n_there, other=0.0).to(tl.float32)[None, :]
    if out.dtype.element_ty == tl.float32:
        result = value * gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        result = value * (gate * below(gate))
    place = out + m.to(tl.int64)[:, None] * hidden + n[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=m_there[:, None] & n_there[None, :])


def launch(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    block_m: int,
    block_n: int,
    warps: int,
    stages: int,
    joint: bool = False,
) -> Tensor:
    """Same as `geglu.reference`, in one accumulator if `joint`. Neither that nor the tile's size changes a bit: each
    sum runs over the same BLOCK_K in the same order."""
    width, hidden = weight.shape[1], weight.shape[0] // 2
    rows = tokens.numel() // width
    out = tokens.new_empty((*tokens.shape[:-1], hidden))
    block_k = 32 if tokens.dtype == torch.float32 else 64
    geglu_kernel[(triton.cdiv(rows, block_m) * triton.cdiv(hidden, block_n),)](
        tokens,
        weight,
        weight if bias is None else bias,
        out,
        rows,
        hidden,
        width,
        EVEN=width % block_k == 0,
        BIASED=bias is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        BAND=8,
        JOINT=joint,
        num_warps=warps,
        num_stages=stages,
    )
    return out


TILES = {
    "128x64": partial(launch, block_m=128, block_n=64, warps=8, stages=3),
    "128x128": partial(launch, block_m=128, block_n=128, warps=8, stages=3),
    "128x128, deep": partial(launch, block_m=128, block_n=128, warps=8, stages=4),
    "64x64": partial(launch, block_m=64, block_n=64, warps=4, stages=3),
    "128x128, joint": partial(launch, block_m=128, block_n=128, warps=8, stages=3, joint=True),
    "128x128, joint, deep": partial(launch, block_m=128, block_n=128, warps=8, stages=4, joint=True),
    "64x128, joint": partial(launch, block_m=64, block_n=128, warps=4, stages=2, joint=True),
    "128x64, joint": partial(launch, block_m=128, block_n=64, warps=4, stages=3, joint=True),
}
"""Candidates for the probe. Accumulators are twice as wide as the tile."""
