"""Self-attention along the frames of each pixel, reading the projections in place: nothing is permuted or copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from torch import Tensor

from .choice import Operation

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v) -> out, each (rows, heads, frames, head width): the attention of the reference; kernels ignore it."""

MOST_FRAMES = 32
HEAD_WIDTHS = (16, 32, 64, 128)
SAMPLE_PIXELS = 64


def reference(q: Tensor, k: Tensor, v: Tensor, heads: int, attend: Attend) -> Tensor:
    """q, k, v (B, T, S, C), which may be parts of one packed (B, T, S, 3C) -> (B, T, S, C): frames T of a pixel attend
    to each other, scaled by head width ** -0.5 (Vaswani et al. 2017; spec 1.5)."""
    mixed = [_clip(*clip, heads, attend) for clip in zip(q, k, v, strict=True)]
    return torch.stack(mixed) if len(mixed) > 1 else mixed[0][None]


def _clip(q: Tensor, k: Tensor, v: Tensor, heads: int, attend: Attend) -> Tensor:
    split = (rearrange(part, "t s (h d) -> s h t d", h=heads) for part in (q, k, v))
    return rearrange(attend(*split), "s h t d -> t s (h d)")


def _kernels() -> Mapping[str, Callable[..., Tensor]]:
    from .frame_attention_triton import launch

    return {"strided": launch}


def _refusal(q: Tensor, k: Tensor, v: Tensor, heads: int, attend: Attend) -> str:
    if q.shape[1] > MOST_FRAMES:
        return f"{q.shape[1]} frames are more than {MOST_FRAMES}"
    if q.shape[-1] // heads not in HEAD_WIDTHS:
        return f"head width {q.shape[-1] // heads} is none of {HEAD_WIDTHS}"
    if not q.stride() == k.stride() == v.stride() or q.stride(-1) != 1:
        return "q, k and v do not lie alike"
    return ""


def _shape_class(q: Tensor, k: Tensor, v: Tensor, heads: int, attend: Attend) -> tuple[int, int, int]:
    return q.shape[1], heads, q.shape[-1] // heads


def _sample(q: Tensor, k: Tensor, v: Tensor, heads: int, attend: Attend) -> tuple[Tensor, Tensor, Tensor, int, Attend]:
    return *(part[:1, :, :SAMPLE_PIXELS] for part in (q, k, v)), heads, attend


frame_attention = Operation("frame_attention", reference, _kernels, _refusal, _shape_class, _sample)
