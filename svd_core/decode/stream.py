"""The video decoder in little memory, exact (performance notes 2.9).

Only two things look across frames: convolutions of three frames, and GroupNorms whose statistics cover the clip. So
the clip goes through the network stage by stage, held once. Inside a frame, each frame goes alone. Across frames each
pixel stands alone but for the statistics, so strips of pixels go alone, all frames of them: first to gather the second
GroupNorm's statistics, then to finish. No frame is ever cut off from its neighbours, and there is nothing to overlap.

What is computed never depends on how much is kept: frames and strips have sizes of their own, and statistics are
merged in a fixed order. That makes the result the same bits for every chunk. Class: rounding, against the plain form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn


class AcrossFrames(Protocol):
    """A layer that reads a clip (T, C, H, W), channels last, and returns its result, in place if it can."""

    def __call__(self, clip: Tensor, keep: int) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers that see one frame (1, C, H, W) at a time, then at most one that sees the clip."""

    inside: tuple[Callable[[Tensor], Tensor], ...]
    across: AcrossFrames | None = None


@dataclass(frozen=True, slots=True)
class ClipConv:
    """A (3,1,1) convolution small enough to run on the clip at once."""

    conv: nn.Module

    def __call__(self, clip: Tensor, keep: int) -> Tensor:
        height = clip.shape[-2]
        out = self.conv(rearrange(clip, "t c h w -> 1 c t (h w)"))
        return rearrange(out, "1 c t (h w) -> t c h w", h=height)


@dataclass(frozen=True, slots=True)
class TimeResidual:
    """y + alpha * conv2(SiLU(norm2(conv1(SiLU(norm1(y)))))), norms over the clip, convolutions over three frames."""

    norm1: nn.Module
    conv1: nn.Module
    norm2: nn.Module
    conv2: nn.Module
    alpha: Tensor

    def __call__(self, clip: Tensor, keep: int) -> Tensor:
        """Adds to `clip` in place. The hidden results of `keep` strips stay from the first sweep; others run twice."""
        tokens = rearrange(clip, "t c h w -> t (h w) c")
        strips = list(_strips(tokens))
        first = Affine.of(self.norm1, [Moments.of(frame) for frame in tokens])
        kept: list[Tensor] = []
        moments = []
        for strip in strips:
            hidden = self._hidden(strip, first)
            moments.append(Moments.of(_clip_tokens(hidden)))
            if len(kept) < keep:
                kept.append(hidden)
        second = Affine.of(self.norm2, moments)
        kept.reverse()
        for strip in strips:
            hidden = kept.pop() if kept else self._hidden(strip, first)
            self._finish(strip, hidden, second)
        return clip

    def _hidden(self, strip: Tensor, affine: Affine) -> Tensor:
        """strip (T, s, C) -> (1, C, T, s)."""
        return self.conv1(rearrange(affine.silu(strip), "t s c -> 1 c t s"))

    def _finish(self, strip: Tensor, hidden: Tensor, affine: Affine) -> None:
        branch = self.conv2(rearrange(affine.silu(_clip_tokens(hidden)), "t s c -> 1 c t s"))
        strip.addcmul_(_clip_tokens(branch), self.alpha.to(strip))


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of each channel over `count` values, in float32."""

    mean: Tensor
    variance: Tensor
    count: int

    @classmethod
    def of(cls, tokens: Tensor) -> Moments:
        """tokens (..., C)."""
        rows = tokens.reshape(-1, tokens.shape[-1]).float()
        variance, mean = torch.var_mean(rows, dim=0, correction=0)
        return cls(mean, variance, len(rows))


@dataclass(frozen=True, slots=True)
class Affine:
    """A GroupNorm whose statistics are known: one multiplication and one addition a channel, in float32."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, norm: nn.Module, parts: Sequence[Moments]) -> Affine:
        """Merges the parts' moments, in order and without cancellation, into those of each group of channels."""
        means = _by_group([part.mean for part in parts], norm.num_groups)  # (parts, groups, channels of a group)
        variances = _by_group([part.variance for part in parts], norm.num_groups)
        counts = means.new_tensor([part.count for part in parts])
        share = (counts / counts.sum())[:, None, None] / means.shape[-1]
        mean = (share * means).sum((0, 2), keepdim=True)
        variance = (share * (variances + (means - mean) ** 2)).sum((0, 2), keepdim=True)
        weight, bias = (_by_group([value.to(means)], norm.num_groups) for value in (norm.weight, norm.bias))
        scale = weight * torch.rsqrt(variance + norm.eps)
        return cls(scale.flatten(), (bias - mean * scale).flatten())

    def silu(self, tokens: Tensor) -> Tensor:
        """SiLU of the normalised tokens (..., C), in their dtype."""
        normed = torch.addcmul(self.shift, tokens.float(), self.scale)
        return nn.functional.silu(normed, inplace=True).to(tokens.dtype)


@torch.no_grad()
def stream(stages: Sequence[Stage], latents: Tensor, keep: int) -> Tensor:
    """Run one clip (T, 4, h, w) through all stages -> (T, 3, H, W).

    keep: how many frames' worth of intermediate results to hold instead of computing them twice, at least 1; it changes
    time and memory, never a bit of the result. Records no gradients: it works in place.
    """
    clip = latents.clone(memory_format=torch.channels_last)
    for stage in stages:
        clip = _each_frame(stage.inside, clip)
        if stage.across is not None:
            clip = stage.across(clip, keep)
    return clip


def _each_frame(layers: Sequence[Callable[[Tensor], Tensor]], clip: Tensor) -> Tensor:
    """Frame by frame, so that no kernel's choice or order of sums depends on how many frames there are.

    In place when the layers keep the shape, else into a new clip.
    """
    out = clip
    for index in range(len(clip)):
        frame = reduce(lambda value, layer: layer(value), layers, clip[index : index + 1])
        if index == 0 and frame.shape[1:] != clip.shape[1:]:
            shape = (len(clip), *frame.shape[1:])
            out = torch.empty(shape, dtype=frame.dtype, device=frame.device, memory_format=torch.channels_last)
        out[index] = frame[0]
        del frame  # or it would stay while the next frame is at its widest
    return out


def _strips(tokens: Tensor) -> Iterator[Tensor]:
    """(T, pixels, C) -> views (T, strip, C), each about as many values as one frame."""
    frames, pixels = tokens.shape[:2]
    return iter(tokens.split(-(-pixels // frames), dim=1))


def _clip_tokens(clip: Tensor) -> Tensor:
    """(1, C, T, strip) -> (T, strip, C)."""
    return rearrange(clip, "1 c t s -> t s c")


def _by_group(channels: Sequence[Tensor], groups: int) -> Tensor:
    """Vectors (C,) -> (vectors, groups, C / groups)."""
    return torch.stack(list(channels)).unflatten(-1, (groups, -1))
