"""Transformers of the video UNet: a block over the pixels of each frame, then one over the frames of each pixel.

Spec 1.5. Tokens are (N, S, C) with S = H * W pixels; the temporal block views them as (B, T, S, C) and never permutes
them except inside attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from ..kernels import linear_add, needs_gradient
from ..sinusoid import sinusoid
from .attention import Attention
from .backend import Backend
from .cpu.probe import BLOCK_VALUES
from .embedding import embedding_mlp
from .fused import fused, geglu_of, normed_images, normed_tokens, summed_and_normed
from .layout import joined, to_images, to_tokens
from .resblock import TimeMixer
from .step import StepContext

WIDENING = 4
"""Hidden width of a feed-forward, as a multiple of its channels."""


HIDDEN_VALUES = 2**26
"""Most values of a feed-forward's hidden layer (value and gate) at once: 128 MiB in 16 bits, 26,214 tokens at the
finest level of the released models, enough to fill a GPU."""

CPU_HIDDEN_VALUES = BLOCK_VALUES
"""`HIDDEN_VALUES` on a CPU."""


class GEGLU(nn.Module):
    """Linear to (value | gate), then value * gelu(gate) with the exact erf GELU."""

    def __init__(self, channels: int, hidden: int, *, backend: Backend) -> None:
        super().__init__()
        self.proj = backend.linear(channels, 2 * hidden)
        self.weights = backend.weights

    def forward(self, tokens: Tensor) -> Tensor:
        return geglu_of(self.weights, self.proj, tokens)


class FeedForward(nn.Module):
    """GEGLU, then a linear layer back. `net.1` is the empty slot of a dropout; the released files call the last layer
    net.2."""

    def __init__(self, channels: int, *, backend: Backend) -> None:
        super().__init__()
        hidden = WIDENING * channels
        self.net = nn.Sequential(
            GEGLU(channels, hidden, backend=backend), nn.Identity(), backend.linear(hidden, channels)
        )
        self.weights = backend.weights
        self.only_first_group = False
        """For measuring peak memory without values: no group holds more than the first, and a long clip may have a
        hundred thousand of them."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.net(tokens)

    def added(self, fresh: Tensor, normed: Tensor) -> Tensor:
        """fresh + forward(normed), both (..., C), reusing the memory of `fresh`, a temporary of the caller.

        Tokens are independent, so large inputs run in equal groups and the hidden layer never exists whole. A group's
        size depends only on the shape and the device type, so no bit depends on memory. If a gradient is needed, all
        tokens run at once in new memory: the backward pass needs the whole hidden layer."""
        if needs_gradient(fresh, normed, self) or fresh.dtype != normed.dtype:
            return fresh + self(normed)
        tokens = fresh.flatten(0, -2)
        for to, of in zip(self._groups(tokens), self._groups(normed.flatten(0, -2)), strict=True):
            self._add(to, self.net[0](of))
        return tokens.view(fresh.shape)

    def _groups(self, tokens: Tensor) -> Sequence[Tensor]:
        """Tokens (R, C), split into the groups that run together."""
        at_once = min(CPU_HIDDEN_VALUES, HIDDEN_VALUES) if tokens.is_cpu else HIDDEN_VALUES
        groups = -(-len(tokens) * self.net[0].proj.out_features // at_once)
        size = max(1, -(-len(tokens) // max(1, groups)))
        # Slices, which unlike the views of `split` may be written to by an adapter's layers that need a gradient.
        starts = (0,) if self.only_first_group else range(0, max(1, len(tokens)), size)
        return [tokens[start : start + size] for start in starts]

    def _add(self, tokens: Tensor, hidden: Tensor) -> None:
        """Add the last layer's result to tokens (R, C) in place."""
        last = self.net[-1]
        fused(linear_add, self.weights, last, hidden, tokens, otherwise=lambda: tokens.add_(last(hidden)))


class _Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; abstract. norm1, norm2, norm3 precede them in that order."""

    def __init__(self, channels: int, context_dim: int, head_channels: int, *, backend: Backend) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, head_channels, backend=backend)
        self.attn2 = Attention(channels, context_dim, head_channels, backend=backend)
        self.ff = FeedForward(channels, backend=backend)
        self.norm1 = backend.layer_norm(channels)
        self.norm2 = backend.layer_norm(channels)
        self.norm3 = backend.layer_norm(channels)
        self.weights = backend.weights

    def attend_hooked(self, tokens: Tensor, context: Tensor, step: StepContext) -> Tensor:
        """Both attentions in full and in the layout hosts expect: tokens (R, L, C), context (R, M, D)."""
        tokens = tokens + step.hooks.self_attention(self.attn1, self.norm1(tokens))
        tokens = step.hooks.between_attentions(tokens)
        return tokens + step.hooks.cross_attention(self.attn2, self.norm2(tokens), context)


class SpatialBlock(_Block):
    """Every pixel attends to every pixel of its frame."""

    def forward(self, tokens: Tensor, step: StepContext) -> Tensor:
        """(N, S, C) -> (N, S, C)."""
        tokens, normed = self.attend(tokens, step)
        return self.ff.added(tokens, normed)

    def attend(self, tokens: Tensor, step: StepContext) -> tuple[Tensor, Tensor]:
        """The residual stream before the feed-forward, and its norm."""
        if step.hooks.changes_attention:
            return summed_and_normed(self.weights, self.norm3, self.attend_hooked(tokens, step.context, step), None)
        normed = normed_tokens(self.weights, self.norm1, tokens)
        change = self.attn1(normed, normed)
        if step.context.shape[1] == 1:
            return summed_and_normed(self.weights, self.norm3, tokens, change, self.attn2.constant(step.context))
        tokens, normed = summed_and_normed(self.weights, self.norm2, tokens, change)
        return summed_and_normed(self.weights, self.norm3, tokens, self.attn2(normed, step.context))


class TemporalBlock(_Block):
    """Every frame of a pixel attends to every frame of that pixel; begins with a feed-forward of its own."""

    def __init__(self, channels: int, context_dim: int, head_channels: int, *, backend: Backend) -> None:
        super().__init__(channels, context_dim, head_channels, backend=backend)
        self.norm_in = backend.layer_norm(channels)
        self.ff_in = FeedForward(channels, backend=backend)

    def forward(self, tokens: Tensor, embedding: Tensor, step: StepContext) -> Tensor:
        """Tokens (B, T, S, C), to which each frame's embedding (T, 1, C) is added first -> (B, T, S, C)."""
        tokens, normed = self.attend(self.ff_in.added(*self.placed(tokens, embedding)), step)
        return self.ff.added(tokens, normed)

    def placed(self, tokens: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens plus their frame's embedding, and the norm of that."""
        return summed_and_normed(self.weights, self.norm_in, tokens, None, embedding)

    def attend(self, tokens: Tensor, step: StepContext) -> tuple[Tensor, Tensor]:
        """The residual stream before the last feed-forward, and its norm."""
        one_token = step.context.shape[1] == 1
        if step.hooks.changes_attention or not one_token:
            return summed_and_normed(self.weights, self.norm3, self.attend_by_pixel(tokens, step), None)
        change = self.attn1.over_frames(normed_tokens(self.weights, self.norm1, tokens))
        constant = self.attn2.constant(step.clip_context)[:, None]  # (B, 1, 1, C)
        return summed_and_normed(self.weights, self.norm3, tokens, change, constant)

    def attend_by_pixel(self, tokens: Tensor, step: StepContext) -> Tensor:
        """The general path: one row of T tokens for each pixel, all reading the context of their clip."""
        clips, _, pixels, _ = tokens.shape
        rows = rearrange(tokens, "b t s c -> (b s) t c")
        context = step.clip_context.repeat_interleave(pixels, dim=0)
        rows = self.attend_hooked(rows, context, step)
        return rearrange(rows, "(b s) t c -> b t s c", b=clips)


class SpatialVideoTransformer(nn.Module):
    """Alternating spatial and temporal blocks, blended, between two projections and with a residual around them."""

    def __init__(self, channels: int, context_dim: int, head_channels: int, depth: int, *, backend: Backend) -> None:
        super().__init__()
        sizes = (channels, context_dim, head_channels)
        self.norm = backend.group_norm(channels, eps=1e-6)
        self.proj_in = backend.linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(SpatialBlock(*sizes, backend=backend) for _ in range(depth))
        self.time_stack = nn.ModuleList(TemporalBlock(*sizes, backend=backend) for _ in range(depth))
        self.time_pos_embed = embedding_mlp(channels, WIDENING * channels, channels, backend)
        self.time_mixer = TimeMixer(backend=backend)
        self.proj_out = backend.linear(channels, channels)
        self.weights = backend.weights

    def forward(self, images: Tensor, step: StepContext) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        tokens = self.proj_in(to_tokens(normed_images(self.weights, self.norm, images)))
        frame_embedding = self.frame_embedding(step.num_frames, tokens)
        share = self.time_mixer.temporal_share(tokens)
        for depth, (spatial, temporal) in enumerate(zip(self.transformer_blocks, self.time_stack, strict=True)):
            step.hooks.enter_transformer(depth, tuple(images.shape))
            tokens = spatial(tokens, step)
            clips = temporal(tokens.unflatten(0, (-1, step.num_frames)), frame_embedding, step)
            # The blend's temporal operand carries the frame embedding, its spatial operand does not (spec 1.5).
            tokens = torch.lerp(tokens, clips.flatten(0, 1), share)
        step.hooks.leave_transformer()
        return joined(images, to_images(self.proj_out(tokens), images.shape[-2]))

    def frame_embedding(self, num_frames: int, like: Tensor) -> Tensor:
        """Embedding (T, 1, C) of each frame's position in the clip."""
        frames = torch.arange(num_frames, device=like.device)
        return self.time_pos_embed(sinusoid(frames, like.shape[-1]).to(like.dtype))[:, None]
