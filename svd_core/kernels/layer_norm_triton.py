"""Triton form of `add_layer_norm`: a program holds whole rows, so mean and variance are those of the sum itself."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layer_norm import rows_of

TILE = 4096
"""Values that one program holds."""


@triton.jit
def add_layer_norm_kernel(
    tokens,
    change,
    embedding,
    weight,
    bias,
    total_out,
    normed_out,
    rows,
    channels,
    repeat,
    count,
    eps,
    CHANGED: tl.constexpr,
    EMBEDDED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """tokens and change (rows, C), embedding (count, C) -> total and normed (rows, C); sums in float32."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)
    c_there = c < channels
    there = (r < rows)[:, None] & c_there[None, :]
    place = r[:, None] * channels + c[None, :]
    total = tl.load(tokens + place, mask=there, other=0.0).to(tl.float32)
    if CHANGED:
        total += tl.load(change + place, mask=there, other=0.0).to(tl.float32)
    if EMBEDDED:
        row = (r // repeat) % count
        total += tl.load(embedding + row[:, None] * channels + c[None, :], mask=there, other=0.0).to(tl.float32)
    if CHANGED or EMBEDDED:
        tl.store(total_out + place, total.to(total_out.dtype.element_ty), mask=there)
    mean = tl.sum(total, axis=1) / channels
    away = tl.where(there, total - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(away * away, axis=1) / channels + eps)
    gain = tl.load(weight + c, mask=c_there, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=c_there, other=0.0).to(tl.float32)
    normed = away * scale[:, None] * gain[None, :] + shift[None, :]
    tl.store(normed_out + place, normed.to(normed_out.dtype.element_ty), mask=there)


def launch(
    tokens: Tensor, weight: Tensor, bias: Tensor, eps: float, change: Tensor | None, embedding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Same as `layer_norm.reference`. If nothing is added, the sum is the tokens themselves."""
    channels = tokens.shape[-1]
    rows = tokens.numel() // channels
    changed, embedded = change is not None, embedding is not None
    repeat, count = rows_of(tokens, embedding) or (1, 1) if embedded else (1, 1)
    total = torch.empty_like(tokens) if changed or embedded else tokens
    normed = torch.empty_like(tokens)
    block_c = triton.next_power_of_2(channels)
    block_r = max(1, TILE // block_c)
    tensors = (tokens, change if changed else tokens, embedding if embedded else tokens, weight, bias, total, normed)
    flags = {"CHANGED": changed, "EMBEDDED": embedded, "BLOCK_R": block_r, "BLOCK_C": block_c}
    grid = (triton.cdiv(rows, block_r),)
    add_layer_norm_kernel[grid](*tensors, rows, channels, repeat, count, eps, **flags, num_warps=8)
    return total, normed
