"""Attention of the UNet: over the pixels of a frame, over the frames of a pixel, and to the picture's embedding."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from .backend import Backend


class Attention(nn.Module):
    """Multi-head attention with unbiased q, k, v and a biased output (spec 1.5).

    `forward` is the reference expression. `over_frames` and `constant` compute the same with less memory or work.
    """

    def __init__(self, channels: int, context_dim: int, head_channels: int, *, backend: Backend) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.attend, self.frames = backend.attention, backend.frames
        self.to_q = backend.linear(channels, channels, bias=False)
        self.to_k = backend.linear(context_dim, channels, bias=False)
        self.to_v = backend.linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(backend.linear(channels, channels))

    def forward(self, tokens: Tensor, context: Tensor, value: Tensor | None = None) -> Tensor:
        """tokens (R, L, C), context (R, M, D), value like context or the context itself -> (R, L, C)."""
        value = context if value is None else value
        return self.to_out(self.mix(self.to_q(tokens), self.to_k(context), self.to_v(value)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Projected (R, L, C), (R, M, C), (R, M, C) -> (R, L, C), before the output layer."""
        split = (rearrange(part, "r l (h d) -> r h l d", h=self.heads) for part in (q, k, v))
        return rearrange(self.attend(*split), "r h l d -> r l (h d)")

    def over_frames(self, tokens: Tensor) -> Tensor:
        """Self-attention along T of (B, T, S, C), read through strides; one clip at a time. Class: exact."""
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        return self.to_out(self.frames(q, k, v, self.heads, self.attend))

    def constant(self, context: Tensor) -> Tensor:
        """The attention output of every query for a context of one token, (R, 1, D) -> (R, 1, C). Class: rounding.

        Softmax over one key is 1, so queries, keys and scores drop out (spec 11a).
        """
        return self.to_out(self.to_v(context))
