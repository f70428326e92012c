"""A linear layer with eight-bit tokens and weights, which newer devices multiply at twice the rate of 16 bits.

Both are float8 e4m3 (Micikevicius et al. 2022, "FP8 Formats for Deep Learning"), with a power of two as each row's
scale: scaling by it rounds nothing, so every form of the operation rounds to the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .choice import Operation

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
"""448, which is 1.75 times 2^8."""

LEAST_POWER = torch.finfo(torch.float16).smallest_normal
"""2^-14, so that a scale and its inverse are exact in every dtype."""

SAMPLE_ROWS = 256
LEAST_CAPABILITY = (8, 9)
"""Ada; the first to multiply eight-bit floats."""

SIDE_MULTIPLE = 16
"""Multiple that devices' products require of the channels."""


def reference(tokens: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """tokens (..., I), weight (O, I) of FP8, scale (O, 1) of float32, bias (O,) -> (..., O). Class: quantised."""
    rounded = whole(*in_fp8(tokens), tokens.dtype)
    return nn.functional.linear(rounded, whole(weight, scale, tokens.dtype), bias)


def in_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows (..., I) -> the rows in FP8 and their scales (..., 1) in float32: per row the least power of two that brings
    all of it within `LARGEST`. A row that is not finite stays so."""
    scale = power(rows.abs().amax(-1, keepdim=True).float())
    return (rows / scale.to(rows.dtype)).to(FP8), scale


def power(largest: Tensor) -> Tensor:
    """The least power of two p, at least `LEAST_POWER`, such that positive float32 values are at most `LARGEST` * p.

    Computed from their bits: the exponent, plus one if the fraction is above that of 1.75, minus the eight of 2^8."""
    exponent = (largest.view(torch.int32) + 0x1FFFFF >> 23) - 8
    return (exponent << 23).view(torch.float32).clamp_min(LEAST_POWER)


def whole(stored: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Dequantise the result of `in_fp8` to a dtype, clamped to its range, which rounding may exceed."""
    largest = torch.finfo(dtype).max
    return (stored.to(dtype) * scale.to(dtype)).clamp_(-largest, largest)


def _kernels() -> Mapping[str, Callable[..., Tensor]]:
    from .fp8_linear_triton import FORMS

    return FORMS


def _refusal(tokens: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> str:
    if tokens.is_cuda and torch.cuda.get_device_capability(tokens.device) < LEAST_CAPABILITY:
        return "the device has no products of eight-bit floats"
    if any(side % SIDE_MULTIPLE for side in weight.shape):
        return f"channels are no multiple of {SIDE_MULTIPLE}"
    if not (tokens.is_contiguous() and weight.is_contiguous()):
        return "tokens or weight do not lie row after row"
    return ""


def _shape_class(tokens: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> tuple[int, int, bool]:
    return weight.shape[1], weight.shape[0], bias is not None


def _sample(tokens: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    return tokens.flatten(0, -2)[:SAMPLE_ROWS], weight, scale, bias


fp8_linear = Operation("fp8_linear", reference, _kernels, _refusal, _shape_class, _sample, alike=1)
