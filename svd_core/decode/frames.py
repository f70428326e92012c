"""The decoder's layers inside one frame, band of rows by band of rows.

A band's height depends on the frame's shape alone, never on memory: every mode does the same calculations on the same
bands, and only where the rows wait in between differs. Statistics cover the frame, so a normalised layer reads it once
to gather them. A convolution sees its neighbours' rows (a halo), so no seam is ever made. Class: rounding, against the
layer on the whole frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from .norms import Affine, Moments, affine_bytes, moments_bytes
from .places import Place

BAND_VALUES = 2**23
"""Values of the widest tensor of a band: 16 MiB in 16 bits. Large enough to fill a GPU, small enough that the several
that live at once fit the smallest budgets."""


Shape = tuple[int, int, int]


class InsideFrame(Protocol):
    """A layer of the network inside each frame."""

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        """Reads a frame (1, C, H, W) in `place` and returns its result there, in `out` where that is given."""

    def result(self, shape: Shape) -> Shape:
        """The shape (C, H, W) that it makes of another."""

    def scratch(self, shape: Shape, itemsize: int, staged: bool, made: int) -> int:
        """Bytes that it holds at its peak beside the frame (C, H, W), with the `made` bytes of its result; `staged`
        where the frame lies on the host, so that bands are copied and inner frames are the host's too."""


@dataclass(frozen=True, slots=True)
class Band:
    """Rows top to bottom of a frame of `height` rows, and what a convolution needs to see beside them."""

    top: int
    bottom: int
    height: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.bottom)

    @property
    def seen(self) -> slice:
        """The rows with one more on each side that is not the frame's edge."""
        return slice(max(self.top - 1, 0), min(self.bottom + 1, self.height))

    def cut(self, convolved: Tensor, scale: int = 1) -> Tensor:
        """From a convolution of `scale` times the rows seen, the rows that saw all their neighbours."""
        first = scale * (self.top - self.seen.start)
        return convolved[:, :, first : first + scale * (self.bottom - self.top)]


def bands(height: int, values_per_row: int) -> list[Band]:
    """Equal bands, at least four rows high so that halos stay cheap."""
    rows = max(4, BAND_VALUES // values_per_row)
    count = -(-height // rows)
    rows = -(-height // count)
    return [Band(top, min(top + rows, height), height) for top in range(0, height, rows)]


@dataclass(frozen=True, slots=True)
class Convolution:
    """A 3x3 convolution, after a GroupNorm and SiLU where there is a norm."""

    conv: nn.Module
    norm: nn.Module | None = None

    def result(self, shape: Shape) -> Shape:
        return (self.conv.weight.shape[0], *shape[1:])

    def scratch(self, shape: Shape, itemsize: int, staged: bool, made: int) -> int:
        seen, _, convolved = _values(shape, self.conv.weight.shape[0])
        copied = itemsize * seen if staged else 0
        normed = _normed(seen, itemsize, copied) if self.norm is not None else copied
        return made + max(normed, itemsize * convolved + (itemsize * seen if self.norm is not None else copied))

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        outputs = self.conv.weight.shape[0]
        rows = _bands_of(frame, outputs)
        affine = _statistics(self.norm, frame, place, rows) if self.norm is not None else None
        out = _made(place, self, frame) if out is None else out
        for band in rows:
            place.save(out[:, :, band.rows], band.cut(self._convolved(place.load(frame[:, :, band.seen]), affine)))
        return out

    def _convolved(self, seen: Tensor, affine: Affine | None) -> Tensor:
        return self.conv(_on_images(affine.silu, seen) if affine else seen)


@dataclass(frozen=True, slots=True)
class Doubling:
    """Each pixel becomes four, which a 3x3 convolution smooths."""

    conv: nn.Module

    def result(self, shape: Shape) -> Shape:
        return self.conv.weight.shape[0], 2 * shape[1], 2 * shape[2]

    def scratch(self, shape: Shape, itemsize: int, staged: bool, made: int) -> int:
        channels, height, width = shape
        outputs = self.conv.weight.shape[0]
        band = _widest(bands(height, 4 * width * max(channels, outputs)))
        seen = (band.seen.stop - band.seen.start) * width
        return made + itemsize * seen * (4 * (channels + outputs) + (channels if staged else 0))

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        outputs = self.conv.weight.shape[0]
        out = _made(place, self, frame) if out is None else out
        for band in bands(frame.shape[2], 4 * frame.shape[3] * max(frame.shape[1], outputs)):
            place.save(
                out[:, :, 2 * band.top : 2 * band.bottom], self._doubled(place.load(frame[:, :, band.seen]), band)
            )
        return out

    def _doubled(self, seen: Tensor, band: Band) -> Tensor:
        return band.cut(self.conv(nn.functional.interpolate(seen, scale_factor=2, mode="nearest")), scale=2)


@dataclass(frozen=True, slots=True)
class Residual:
    """shortcut(x) + conv2(SiLU(norm2(conv1(SiLU(norm1(x)))))), norms over the frame. May go in place."""

    norm1: nn.Module
    conv1: nn.Module
    norm2: nn.Module
    conv2: nn.Module
    shortcut: Callable[[Tensor], Tensor]

    def result(self, shape: Shape) -> Shape:
        return (self.conv1.weight.shape[0], *shape[1:])

    def scratch(self, shape: Shape, itemsize: int, staged: bool, made: int) -> int:
        outputs = self.conv1.weight.shape[0]
        seen, own, convolved = _values(shape, outputs)
        result = own * outputs // shape[0]  # the band's own rows of it
        hidden = 0 if staged else itemsize * outputs * shape[1] * shape[2]
        copied = itemsize if staged else 0
        first = max(_normed(seen, itemsize, copied * seen), itemsize * (seen + convolved))
        second = max(_normed(convolved, itemsize, copied * convolved), 2 * itemsize * convolved)
        added = copied * own + itemsize * result
        if shape[0] != outputs:
            added = max(added, 2 * itemsize * result)
        last = itemsize * convolved + added
        return hidden + max(first, made + second, made + last)  # room for the result is made after the first sweep

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        outputs = self.conv1.weight.shape[0]
        rows = _bands_of(frame, outputs)
        hidden, second = self._hidden(frame, place, rows)
        out = _made(place, self, frame) if out is None else out
        for band in rows:
            branch = self._branch(hidden, place, band, second)
            place.save(out[:, :, band.rows], self.shortcut(place.load(frame[:, :, band.rows])).add(branch))
            del branch  # or it would stay while the next band is at its widest
        return out

    def _branch(self, hidden: Tensor, place: Place, band: Band, second: Affine) -> Tensor:
        return band.cut(self.conv2(_on_images(second.silu, place.load(hidden[:, :, band.seen]))))

    def _hidden(self, frame: Tensor, place: Place, rows: list[Band]) -> tuple[Tensor, Affine]:
        """What the first convolution gives, in `place`, and the norm that follows it."""
        hidden = _made(place, self, frame)
        first = _statistics(self.norm1, frame, place, rows)
        moments = []
        for band in rows:
            convolved = band.cut(self.conv1(_on_images(first.silu, place.load(frame[:, :, band.seen]))))
            moments.append(Moments.of(_last(convolved)))
            place.save(hidden[:, :, band.rows], convolved)
            del convolved
        return hidden, Affine.of(self.norm2, moments)


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """x + out(attention(q, k, v of norm(x))) over the pixels of a frame, one head. Keys and values of the whole frame
    are on the device, queries come in bands. May go in place."""

    norm: nn.Module
    q: nn.Module
    k: nn.Module
    v: nn.Module
    proj_out: nn.Module
    attention: Callable[[Tensor, Tensor, Tensor], Tensor]

    def result(self, shape: Shape) -> Shape:
        return shape

    def scratch(self, shape: Shape, itemsize: int, staged: bool, made: int) -> int:
        """Tokens counted in units of the band's, of which keys and values hold the frame's."""
        _, own, _ = _values(shape, shape[0])
        held = 2 * itemsize * shape[0] * shape[1] * shape[2]
        copied = itemsize * own if staged else 0
        joined = held if own < shape[0] * shape[1] * shape[2] else 0
        return max(held + joined, held + _normed(own, itemsize, copied), made + held + copied + 3 * itemsize * own)

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        rows = _bands_of(frame, frame.shape[1])
        affine = _statistics(self.norm, frame, place, rows)
        normed = (_on_images(affine.normed, place.load(frame[:, :, band.rows])) for band in rows)
        parts = [(_tokens(self.k(part)), _tokens(self.v(part))) for part in normed]
        keys, values = (torch.cat(side, dim=2) if len(rows) > 1 else side[0] for side in zip(*parts, strict=True))
        del parts
        out = _made(place, self, frame) if out is None else out
        for band in rows:
            place.save(out[:, :, band.rows], self._attended(place.load(frame[:, :, band.rows]), affine, keys, values))
        return out

    def _attended(self, own: Tensor, affine: Affine, keys: Tensor, values: Tensor) -> Tensor:
        attended = self.attention(_tokens(self.q(_on_images(affine.normed, own))), keys, values)
        return own + self.proj_out(rearrange(attended, "n 1 (h w) c -> n c h w", w=own.shape[3]))


def _bands_of(frame: Tensor, outputs: int) -> list[Band]:
    return bands(frame.shape[2], frame.shape[3] * max(frame.shape[1], outputs))


def _values(shape: Shape, outputs: int) -> tuple[int, int, int]:
    """Of the widest band: values seen, values of its own rows, and values that a convolution makes of those seen."""
    channels, height, width = shape
    band = _widest(bands(height, width * max(channels, outputs)))
    seen = (band.seen.stop - band.seen.start) * width
    return seen * channels, (band.bottom - band.top) * width * channels, seen * outputs


def _widest(rows: list[Band]) -> Band:
    return max(rows, key=lambda band: band.seen.stop - band.seen.start)


def _normed(values: int, itemsize: int, copied: int) -> int:
    return copied + max(affine_bytes(values, itemsize), moments_bytes(values, itemsize))


def _made(place: Place, layer: InsideFrame, frame: Tensor) -> Tensor:
    """Room for the layer's result."""
    return place.empty((1, *layer.result(tuple(frame.shape[1:]))), frame.dtype)


def _statistics(norm: nn.Module, frame: Tensor, place: Place, rows: list[Band]) -> Affine:
    return Affine.of(norm, [Moments.of(_last(place.load(frame[:, :, band.rows]))) for band in rows])


def _on_images(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """A function of tokens (..., C) on images (1, C, H, W)."""
    return function(_last(images)).movedim(-1, 1)


def _last(images: Tensor) -> Tensor:
    """(1, C, H, W) -> (1, H, W, C), a view."""
    return images.movedim(1, -1)


def _tokens(images: Tensor) -> Tensor:
    """(1, C, H, W) -> (1, 1, H * W, C)."""
    return rearrange(images, "n c h w -> n 1 (h w) c")
