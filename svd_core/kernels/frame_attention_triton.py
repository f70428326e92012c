"""Triton form of `frame_attention`: a program takes a few pixels and one head, with all frames in registers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .frame_attention import Attend

PIXELS = 4
"""Pixels of one program, one per warp."""


@triton.jit
def frame_attention_kernel(
    q,
    k,
    v,
    out,
    frames,
    pixels,
    heads,
    scale,
    stride_b,
    stride_t,
    stride_s,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """q, k, v (B, T, S, heads * WIDTH) with common strides -> out, contiguous. Softmax in float32."""
    clip, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    t = tl.arange(0, BLOCK_T)
    d = tl.arange(0, WIDTH)
    s_there, t_there = s < pixels, t < frames
    base = clip * stride_b + head * WIDTH
    place = s.to(tl.int64)[:, None, None] * stride_s + t.to(tl.int64)[None, :, None] * stride_t + d[None, None, :]
    there = s_there[:, None, None] & t_there[None, :, None]
    queries = tl.load(q + base + place, mask=there, other=0.0)
    keys = tl.load(k + base + place, mask=there, other=0.0)
    values = tl.load(v + base + place, mask=there, other=0.0)
    scores = tl.dot(queries, tl.permute(keys, (0, 2, 1)), input_precision="tf32x3") * scale
    scores = tl.where(t_there[None, None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=2, keep_dims=True))
    total = tl.sum(weights, axis=2, keep_dims=True)
    mixed = tl.dot(weights.to(values.dtype), values, input_precision="tf32x3") / total
    row = (clip * frames + t.to(tl.int64))[None, :, None] * pixels + s[:, None, None]
    to = out + (row * heads + head) * WIDTH + d[None, None, :]
    tl.store(to, mixed.to(out.dtype.element_ty), mask=there)


def launch(q: Tensor, k: Tensor, v: Tensor, heads: int, _attend: Attend) -> Tensor:
    """Same as `frame_attention.reference`."""
    clips, frames, pixels, channels = q.shape
    width = channels // heads
    out = q.new_empty(q.shape)
    block_t = max(16, triton.next_power_of_2(frames))
    sizes = {"WIDTH": width, "BLOCK_S": PIXELS, "BLOCK_T": block_t}
    grid = (triton.cdiv(pixels, PIXELS), clips * heads)
    strides = q.stride()[:3]
    frame_attention_kernel[grid](q, k, v, out, frames, pixels, heads, width**-0.5, *strides, **sizes, num_warps=PIXELS)
    return out
