"""Arguments for every fused operation, of odd and of usual sizes: what the interpreter, the compiler and a GPU are
asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svd_core import kernels
from svd_core.kernels import Operation, in_fp8
from svd_core.model.backend import scaled_dot_product

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    name: str
    operation: Operation
    make: Callable[[Callable[..., Tensor]], tuple[Any, ...]]

    def arguments(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(0)
        return self.make(lambda *shape: torch.randn(shape, generator=generator).to(device, dtype))


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _packed(random, clips, frames, pixels, channels, heads):
    return *random(clips, frames, pixels, 3 * channels).chunk(3, dim=-1), heads, scaled_dot_product


def _apart(random, *shape, heads):
    return *(random(*shape) for _ in range(3)), heads, scaled_dot_product


def _norm(random, *shape, offset=0.0, shifts=0):
    channels = shape[1]
    shift = random(shifts, channels) if shifts else None
    return channels_last(random(*shape) + offset), random(channels), random(channels), 32, 1e-5, shift


def _strip(random, frames, pixels, channels, strip):
    """A strip of a clip, which does not lie in one run of memory."""
    return random(frames, pixels, channels)[:, 3 : 3 + strip]


def _affine(tokens, random, offset=0.0):
    channels = tokens.shape[-1]
    return tokens + offset if offset else tokens, random(channels).float(), random(channels).float()


def _merge(random, channels, spans, offset=0.0):
    entries = len(spans.counts())
    means, variances = random(entries, channels).float() + offset, random(entries, channels).float() ** 2
    return means, variances, random(channels), random(channels), 32, 1e-5, spans


def _linear_add(random, rows, width, outputs):
    return random(rows, width), random(outputs, width) / width**0.5, random(outputs), random(rows, outputs)


def _fp8_linear(random, *rows, width, outputs, biased=True):
    weight, scale = in_fp8(random(outputs, width) / width**0.5)
    return random(*rows, width), weight, scale, random(outputs) if biased else None


def _blend(random, *shape):
    return channels_last(random(*shape)), channels_last(random(*shape)), random(1), random(shape[1])


def _geglu(random, *rows, width, hidden):
    return random(*rows, width), random(2 * hidden, width) / width**0.5, random(2 * hidden)


def _conv(random, clips, width, frames, pixels, outputs):
    return channels_last(random(clips, width, frames, pixels)), random(outputs, width, 3, 1, 1) / 8, random(outputs)


SMALL = (
    Case("geglu, odd", kernels.geglu, lambda r: _geglu(r, 3, 33, width=40, hidden=72)),
    Case("geglu, whole tiles", kernels.geglu, lambda r: _geglu(r, 128, width=64, hidden=128)),
    Case("geglu, no bias", kernels.geglu, lambda r: (*_geglu(r, 5, width=8, hidden=6)[:2], None)),
    Case("group_norm of images", kernels.group_norm, lambda r: _norm(r, 2, 64, 5, 7)),
    Case("group_norm_silu of images", kernels.group_norm_silu, lambda r: _norm(r, 1, 160, 5, 3)),
    Case("group_norm_silu of clips, split", kernels.group_norm_silu, lambda r: _norm(r, 1, 32, 3, 231)),
    Case("group_norm_silu of images, shifted", kernels.group_norm_silu, lambda r: _norm(r, 3, 64, 5, 7, shifts=3)),
    Case("group_norm_silu of clips, shifted", kernels.group_norm_silu, lambda r: _norm(r, 2, 32, 3, 231, shifts=6)),
    Case("group_norm_silu, one shift for all", kernels.group_norm_silu, lambda r: _norm(r, 2, 96, 3, 41, shifts=1)),
    Case("split_moments, odd", kernels.split_moments, lambda r: (r(1, 23, 29, 40) + 7,)),
    Case("split_moments of a strip", kernels.split_moments, lambda r: (_strip(r, 3, 400, 64, 351),)),
    Case("owed_moments, odd", kernels.owed_moments, lambda r: (r(1, 23, 29, 40) + 7, r(40))),
    Case("owed_sum, odd", kernels.owed_sum, lambda r: (r(1, 5, 7, 160), r(1, 5, 7, 160), r(160))),
    Case("merged_affine, one part", kernels.merged_affine, lambda r: _merge(r, 96, kernels.Spans(700, 700, 512))),
    Case("merged_affine", kernels.merged_affine, lambda r: _merge(r, 64, kernels.Spans(5000, 1300, 512), offset=50.0)),
    Case("affine_silu, odd", kernels.affine_silu, lambda r: _affine(r(1, 5, 7, 40), r)),
    Case("affine_silu of a strip", kernels.affine_silu, lambda r: _affine(_strip(r, 3, 50, 192, 41), r)),
    Case("linear_add, odd", kernels.linear_add, lambda r: _linear_add(r, 131, 40, 72)),
    Case("linear_add, whole tiles", kernels.linear_add, lambda r: _linear_add(r, 128, 128, 64)),
    Case("blend, odd", kernels.blend, lambda r: _blend(r, 3, 40, 5, 7)),
    Case("group_norm, large mean", kernels.group_norm, lambda r: _norm(r, 1, 32, 5, 131, offset=100.0)),
    Case(
        "add_layer_norm, all",
        kernels.add_layer_norm,
        lambda r: (r(2, 5, 7, 48), r(48), r(48), 1e-5, r(2, 5, 7, 48), r(5, 1, 48)),
    ),
    Case(
        "add_layer_norm, one embedding a clip",
        kernels.add_layer_norm,
        lambda r: (r(2, 3, 5, 320), r(320), r(320), 1e-5, None, r(2, 1, 1, 320)),
    ),
    Case(
        "add_layer_norm, nothing added",
        kernels.add_layer_norm,
        lambda r: (r(2, 5, 24), r(24), r(24), 1e-5, None, None),
    ),
    Case("frame_attention, packed", kernels.frame_attention, lambda r: _packed(r, 2, 14, 5, 128, 2)),
    Case("frame_attention, 25 frames", kernels.frame_attention, lambda r: _apart(r, 1, 25, 3, 96, heads=6)),
    Case("frame_attention, one frame", kernels.frame_attention, lambda r: _apart(r, 1, 1, 6, 64, heads=2)),
    Case("frame_attention, wide heads", kernels.frame_attention, lambda r: _apart(r, 1, 32, 2, 128, heads=1)),
    Case("frame_conv, odd", kernels.frame_conv, lambda r: _conv(r, 2, 40, 5, 21, 72)),
    Case("frame_conv, whole tiles", kernels.frame_conv, lambda r: _conv(r, 1, 64, 2, 64, 128)),
    Case("frame_conv, one frame", kernels.frame_conv, lambda r: _conv(r, 2, 8, 1, 3, 8)),
    Case("frame_conv, no bias", kernels.frame_conv, lambda r: (*_conv(r, 1, 8, 3, 5, 16)[:2], None)),
)

REAL = (
    Case("geglu", kernels.geglu, lambda r: _geglu(r, 26214, width=320, hidden=1280)),
    Case("group_norm_silu of images", kernels.group_norm_silu, lambda r: _norm(r, 28, 320, 72, 128)),
    Case("group_norm_silu of clips", kernels.group_norm_silu, lambda r: _norm(r, 2, 320, 14, 9216)),
    Case("group_norm_silu, shifted", kernels.group_norm_silu, lambda r: _norm(r, 2, 320, 14, 9216, shifts=28)),
    Case("split_moments of a band", kernels.split_moments, lambda r: (r(1, 64, 1024, 128),)),
    Case("split_moments of a strip", kernels.split_moments, lambda r: (_strip(r, 25, 294912, 128, 2621),)),
    Case("owed_moments", kernels.owed_moments, lambda r: (r(1, 64, 1024, 128), r(128))),
    Case("owed_sum", kernels.owed_sum, lambda r: (r(1, 64, 1024, 128), r(1, 64, 1024, 128), r(128))),
    Case("merged_affine", kernels.merged_affine, lambda r: _merge(r, 128, kernels.Spans(14745600, 65525, 512))),
    Case("affine_silu of a strip", kernels.affine_silu, lambda r: _affine(_strip(r, 25, 294912, 128, 2621), r)),
    Case("linear_add", kernels.linear_add, lambda r: _linear_add(r, 26214, 1280, 320)),
    Case("blend", kernels.blend, lambda r: _blend(r, 28, 320, 72, 128)),
    Case(
        "add_layer_norm",
        kernels.add_layer_norm,
        lambda r: (r(2, 14, 9216, 320), r(320), r(320), 1e-5, r(2, 14, 9216, 320), r(14, 1, 320)),
    ),
    Case("frame_attention", kernels.frame_attention, lambda r: _packed(r, 2, 25, 9216, 320, 5)),
    Case("frame_conv", kernels.frame_conv, lambda r: _conv(r, 2, 320, 14, 9216, 320)),
)
"""As at the finest level of the released models, and at the end of their decoders."""


EIGHT_BITS = (
    Case("fp8_linear, odd", kernels.fp8_linear, lambda r: _fp8_linear(r, 3, 43, width=48, outputs=80)),
    Case("fp8_linear, whole tiles", kernels.fp8_linear, lambda r: _fp8_linear(r, 128, width=128, outputs=256)),
    Case("fp8_linear, no bias", kernels.fp8_linear, lambda r: _fp8_linear(r, 5, width=16, outputs=16, biased=False)),
)
REAL_EIGHT_BITS = Case("fp8_linear", kernels.fp8_linear, lambda r: _fp8_linear(r, 26214, width=320, outputs=2560))
"""For devices that have products of eight-bit floats."""


def each(cases: tuple[Case, ...]) -> Iterator[tuple[Case, torch.dtype]]:
    for case in cases:
        for dtype in DTYPES:
            yield case, dtype


def name_of(value: Any) -> str:
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")
