"""Exact video decoding in little memory.

Only two things look across frames: convolutions of three frames, and GroupNorms whose statistics cover the clip. So the
clip goes through the network stage by stage and is held once. Layers inside a frame process one frame at a time
(`frames.py`). Across frames, pixels are independent except for the statistics, so strips of pixels are processed one at
a time, with all their frames: first to gather the second GroupNorm's statistics, then to finish. No frame is ever cut
off from its neighbours, so no overlap is needed.

The computation never depends on where or how much is kept: the size of bands and strips depends on the device's type
and total memory, and statistics are merged in a fixed order. So the result has the same bits for every mode and chunk.
Class: rounding, relative to the plain form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from ..device_memory import wait_for
from .bands import Shape
from .frames import InsideFrame
from .norms import Affine, Moments, affine_bytes, moments_bytes
from .places import Mode, Place, Placement, steady


class AcrossFrames(Protocol):
    """A layer that changes a clip (T, C, H, W), channels last and stored in `place`, in place, in strips of up to
    `size` bytes."""

    @property
    def size(self) -> int: ...

    def __call__(self, clip: Tensor, place: Place, keep: int) -> None: ...

    def scratch(self, shape: Shape, frames: int, itemsize: int, staged: bool) -> int:
        """Peak bytes in addition to the clip, whose frames have the shape (C, H, W), and to what is kept; `staged` if
        the clip is on the host."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers that see one frame at a time, then at most one that sees the clip."""

    inside: tuple[InsideFrame, ...]
    across: AcrossFrames | None = None


@dataclass(frozen=True, slots=True)
class TimeConvolution:
    """A (3,1,1) convolution that keeps the channels; `circular` as in `over_frames`."""

    conv: nn.Module
    size: int
    circular: bool = False

    def __call__(self, clip: Tensor, place: Place, keep: int) -> None:
        for strip in _strips(clip, self.size):
            own = _as_clip(place.load(strip).contiguous())  # contiguous, so that every mode makes the same call
            place.save(strip, _clip_tokens(over_frames(self.conv, own, self.circular)))

    def scratch(self, shape: Shape, frames: int, itemsize: int, staged: bool) -> int:
        values = strip_values(shape, frames, itemsize, self.size)
        return itemsize * (2 * values + wrapped_values(values, frames, self.circular))


@dataclass(frozen=True, slots=True)
class TimeResidual:
    """y + alpha * conv2(SiLU(norm2(conv1(SiLU(norm1(y)))))), norms over the clip, convolutions over three frames."""

    norm1: nn.Module
    conv1: nn.Module
    norm2: nn.Module
    conv2: nn.Module
    alpha: Tensor
    size: int
    circular: bool = False

    def __call__(self, clip: Tensor, place: Place, keep: int) -> None:
        """Adds in place. The hidden results of `keep` frames' worth of pixels are kept, in `place`, from the first
        sweep; the others are computed twice."""
        strips = _strips(clip, self.size)
        first = Affine.of(self.norm1, [Moments.of(place.load(strip)) for strip in strips])
        staying = kept_strips(len(strips), len(clip), keep)
        kept: list[Tensor] = []
        second = Affine.of(self.norm2, [self._gather(place, strip, first, kept, staying) for strip in strips])
        alpha = self.alpha.to(second.scale.device, clip.dtype)
        kept.reverse()
        for strip in strips:
            self._finish(place, strip, kept.pop() if kept else None, first, second, alpha)

    def scratch(self, shape: Shape, frames: int, itemsize: int, staged: bool) -> int:
        values = strip_values(shape, frames, itemsize, self.size)
        copied = itemsize * values if staged else 0
        whole = strip_pixels(shape, frames, itemsize, self.size) == shape[1] * shape[2]
        ungathered = 0 if staged or whole else itemsize * values  # a strip of a clip is not contiguous
        gathering = copied + ungathered + moments_bytes(values, itemsize)
        hidden = copied  # on the device it is one of the kept ones
        finishing = copied + hidden + max(affine_bytes(values, itemsize), 2 * itemsize * values)
        return max(gathering, finishing) + itemsize * wrapped_values(values, frames, self.circular)

    def _gather(self, place: Place, strip: Tensor, first: Affine, kept: list[Tensor], staying: int) -> Moments:
        hidden = self._hidden(place.load(strip), first)
        if len(kept) < staying:
            kept.append(place.keep(hidden))
        return Moments.of(hidden)

    def _finish(
        self, place: Place, strip: Tensor, kept: Tensor | None, first: Affine, second: Affine, alpha: Tensor
    ) -> None:
        own = place.load(strip)
        hidden = self._hidden(own, first) if kept is None else place.load(kept)
        branch = over_frames(self.conv2, _as_clip(second.silu(hidden)), self.circular)
        place.save(strip, own.addcmul_(_clip_tokens(branch), alpha))

    def _hidden(self, strip: Tensor, affine: Affine) -> Tensor:
        """strip (T, s, C) -> the same shape."""
        return _clip_tokens(over_frames(self.conv1, _as_clip(affine.silu(strip)), self.circular))


def over_frames(conv: nn.Module, clips: Tensor, circular: bool) -> Tensor:
    """A (3,1,1) convolution of clips (B, C, T, S). circular: the clip is padded with its last frame before the first
    and its first after the last, instead of zeros. The layer itself runs unchanged, on a clip longer by one frame on
    each side, so a host's layers need not support it."""
    if not circular:
        return conv(clips)
    return conv(torch.cat([clips[:, :, -1:], clips, clips[:, :, :1]], dim=2))[:, :, 1:-1]


def wrapped_values(values: int, frames: int, circular: bool) -> int:
    """Values that `over_frames` holds, given a strip of `values`: the longer strip, and the results of the two extra
    frames."""
    return values + 4 * -(-values // frames) if circular else 0


@torch.no_grad()
def stream(stages: Sequence[Stage], latents: Tensor, mode: Mode, keep: int) -> Tensor:
    """Run one clip (T, 4, h, w), on the computing device, through all stages -> (T, 3, H, W), in host memory unless the
    mode is "device".

    keep: how many frames' worth of intermediate results to hold instead of computing them twice, at least 1. Mode and
    keep change time and memory, never a bit of the result. Records no gradients: it works in place.
    """
    placement = Placement.of(mode, latents.device)
    clip = placement.clip.empty(latents.shape, latents.dtype)
    placement.clip.save(clip, latents)
    with steady(latents.device):
        for stage in stages:
            clip = _each_frame(stage.inside, clip, placement)
            if stage.across is not None:
                stage.across(clip, placement.clip, keep)
    if mode != "device":
        wait_for(latents.device)
    return clip


def _each_frame(layers: Sequence[InsideFrame], clip: Tensor, placement: Placement) -> Tensor:
    """Run the layers frame by frame, so that no kernel's choice or order of sums depends on how many frames there are.
    In place if the layers keep the shape, else into a new clip."""
    shape = reduce(lambda shape, layer: layer.result(shape), layers, tuple(clip.shape[1:]))
    out = clip if shape == clip.shape[1:] else placement.clip.empty((len(clip), *shape), clip.dtype)
    for old, new in zip(clip.split(1), out.split(1), strict=True):
        if placement.together:
            _run(layers, old, placement.frame, new)
        else:
            placement.clip.save(new, _run(layers, placement.clip.load(old), placement.frame))
    return out


def _run(layers: Sequence[InsideFrame], frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
    for layer in layers[:-1]:
        frame = layer(frame, place)
    return layers[-1](frame, place, out)


def strip_pixels(shape: Shape, frames: int, itemsize: int, size: int) -> int:
    """Pixels per strip of up to `size` bytes, of a clip whose frames have the shape (C, H, W)."""
    channels, height, width = shape
    count = -(-height * width // max(1, size // (itemsize * frames * channels)))
    return -(-height * width // count)


def strip_values(shape: Shape, frames: int, itemsize: int, size: int) -> int:
    return strip_pixels(shape, frames, itemsize, size) * frames * shape[0]


def kept_strips(strips: int, frames: int, keep: int) -> int:
    """How many of a clip's strips make up `keep` of its frames, rounded up."""
    return min(strips, -(-keep * strips // frames))


def _strips(clip: Tensor, size: int) -> list[Tensor]:
    """(T, C, H, W) -> views (T, strip, C)."""
    pixels = strip_pixels(tuple(clip.shape[1:]), len(clip), clip.itemsize, size)
    return list(rearrange(clip, "t c h w -> t (h w) c").split(pixels, dim=1))


def _as_clip(tokens: Tensor) -> Tensor:
    """(T, strip, C) -> (1, C, T, strip), channels last. Torch infers the layout from all strides, even of axes of size
    1: if the batch axis were added after the others were moved, a convolution would return channels first."""
    return tokens[None].movedim(-1, 1)


def _clip_tokens(clip: Tensor) -> Tensor:
    """(1, C, T, strip) -> (T, strip, C)."""
    return rearrange(clip, "1 c t s -> t s c")
