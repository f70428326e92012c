"""Attention inside ComfyUI: the one that the user chose for ComfyUI, else our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy.cli_args import args
from comfy.ldm.modules.attention import optimized_attention

from ...svd_core.kernels import frame_attention
from ...svd_core.model.backend import scaled_dot_product

if TYPE_CHECKING:
    from torch import Tensor

    from ...svd_core.model.backend import AttentionFn

_USER_CHOICES = (
    "use_split_cross_attention",
    "use_quad_cross_attention",
    "use_sage_attention",
    "use_flash_attention",
)


def host_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q, k, v, each (batch, heads, tokens, head width) -> the same shape."""
    if _user_chose():
        return optimized_attention(q, k, v, q.shape[1], skip_reshape=True, skip_output_reshape=True)
    return scaled_dot_product(q, k, v)


def host_frames(q: Tensor, k: Tensor, v: Tensor, heads: int, attend: AttentionFn) -> Tensor:
    """`svd_core.model.backend.Backend.frames`; the fused kernel is not used if the user chose an attention."""
    form = frame_attention.reference if _user_chose() else frame_attention
    return form(q, k, v, heads, attend)


def _user_chose() -> bool:
    return any(getattr(args, choice, False) for choice in _USER_CHOICES)
