"""Triton forms of `fp8_linear`: a kernel that rounds rows, followed by torch's product or one in Triton."""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fp8_linear import FP8
from .linear_add_triton import tile_product


@triton.jit
def rows_kernel(x, out, scales, width, BLOCK_I: tl.constexpr):
    """One row of x (rows, width) -> FP8, and its scale; the same bits as `fp8_linear.in_fp8`."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK_I)
    there = i < width
    values = tl.load(x + row * width + i, mask=there, other=0.0).to(tl.float32)
    # As integers, the bits of positive floats keep their order, and non-finite ones are above all others.
    largest = tl.max(tl.abs(values).to(tl.int32, bitcast=True), axis=0)
    exponent = tl.maximum(((largest + 0x1FFFFF) >> 23) - 8, 127 - 14)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    tl.store(scales + row, (exponent << 23).to(tl.float32, bitcast=True))
    tl.store(out + row * width + i, (values * inverse).to(out.dtype.element_ty), mask=there)


@triton.jit
def product_kernel(
    x,
    x_scales,
    weight,
    w_scales,
    bias,
    out,
    rows,
    outputs,
    width,
    EVEN: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One (BLOCK_M, BLOCK_N) tile of out (rows, outputs)."""
    total, m, n = tile_product(x, weight, rows, outputs, width, EVEN, BLOCK_M, BLOCK_N, BLOCK_K)
    m_there, n_there = m < rows, n < outputs
    total *= tl.load(x_scales + m, mask=m_there, other=0.0)[:, None]
    total *= tl.load(w_scales + n, mask=n_there, other=0.0)[None, :]
    if BIASED:
        total += tl.load(bias + n, mask=n_there, other=0.0).to(tl.float32)[None, :]
    place = m.to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=m_there[:, None] & n_there[None, :])


def rounded(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """tokens (..., I) -> rows (R, I) in FP8 and scales (R, 1) in float32."""
    width = tokens.shape[-1]
    rows = tokens.numel() // width
    out = torch.empty((rows, width), dtype=FP8, device=tokens.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=tokens.device)
    rows_kernel[(rows,)](tokens, out, scales, width, BLOCK_I=triton.next_power_of_2(width), num_warps=4)
    return out, scales


def launch(
    tokens: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *,
    block_m: int,
    block_n: int,
    warps: int,
    stages: int,
) -> Tensor:
    """Same as `fp8_linear.reference`."""
    stored, scales = rounded(tokens)
    (rows, width), outputs = stored.shape, weight.shape[0]
    out = tokens.new_empty((*tokens.shape[:-1], outputs))
    tensors = (stored, scales, weight, scale, weight if bias is None else bias, out)
    sizes = {"EVEN": width % BLOCK_K == 0, "BIASED": bias is not None, "BLOCK_M": block_m, "BLOCK_N": block_n}
    options = {"BLOCK_K": BLOCK_K, "num_warps": warps, "num_stages": stages}
    grid = (triton.cdiv(rows, block_m) * triton.cdiv(outputs, block_n),)
    product_kernel[grid](*tensors, rows, outputs, width, **sizes, **options)
    return out


def by_torch(tokens: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, *, quick_sums: bool) -> Tensor:
    """The product by torch. `quick_sums` trades digits of the sums for speed on Hopper."""
    stored, scales = rounded(tokens)
    more = {"bias": bias, "out_dtype": tokens.dtype, "use_fast_accum": quick_sums}
    found = torch._scaled_mm(stored, weight.t(), scales, scale.t(), **more)  # not a public API
    return found.unflatten(0, tokens.shape[:-1]) if tokens.ndim != 2 else found


BLOCK_K = 128
"""Channels per step of a sum: 128 bytes, one cache line."""

TILES = {
    "128x128": partial(launch, block_m=128, block_n=128, warps=8, stages=3),
    "128x64": partial(launch, block_m=128, block_n=64, warps=4, stages=3),
    "128x256": partial(launch, block_m=128, block_n=256, warps=8, stages=3),
}
FORMS = {
    "torch": partial(by_torch, quick_sums=False),
    "torch, quick sums": partial(by_torch, quick_sums=True),
    **TILES,
}
"""Candidates for the probe."""
