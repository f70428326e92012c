"""The networks' layers inside one frame or picture, in bands of rows (`bands.py`); here those of one convolution.

Statistics cover the frame, so a normalised layer first reads the whole frame to gather them. A convolution sees the
neighbouring rows (a halo), so there are no seams. Class: rounding, relative to the layer on the whole frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ..kernels import doubled
from .bands import Band, Shape, band_values, bands, bands_of, widest
from .convolving import ByCorner, Short, convolved, never, on_images, save, shortly, whole
from .norms import Affine, normed_bytes
from .places import Place


class InsideFrame(Protocol):
    """A layer inside each frame, in bands whose widest tensor has up to `size` bytes."""

    @property
    def size(self) -> int: ...

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        """Run on a frame (1, C, H, W) in `place` and return the result there, in `out` if given."""

    def result(self, shape: Shape) -> Shape:
        """The output shape (C, H, W) for an input shape."""

    def scratch(self, shape: Shape, itemsize: int, staged: bool, made: int) -> int:
        """Peak bytes on the device in addition to the frame (C, H, W), including the `made` bytes of its result;
        `staged` if the frame is on the host, so that bands are copied and inner frames are on the host too."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A 3x3 convolution, after a GroupNorm and SiLU if there is a norm."""

    conv: nn.Module
    size: int
    norm: nn.Module | None = None
    short: Short = whole

    def result(self, shape: Shape) -> Shape:
        return (self.conv.weight.shape[0], *shape[1:])

    def scratch(self, shape: Shape, itemsize: int, staged: bool, made: int) -> int:
        seen, _, results = band_values(shape, self.conv.weight.shape[0], itemsize, self.size)
        copied = itemsize * seen if staged else 0
        normed = normed_bytes(seen, itemsize, copied) if self.norm is not None else copied
        return made + max(normed, itemsize * results + (itemsize * seen if self.norm is not None else copied))

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        outputs = self.conv.weight.shape[0]
        rows = bands_of(frame, outputs, self.size)
        affine = Affine.of_frame(self.norm, frame, place, rows) if self.norm is not None else None
        out = new_result(place, self, frame) if out is None else out
        for band in rows:
            result, owed = self._convolved(place.load(frame[:, :, band.seen]), affine)
            save(place, out[:, :, band.rows], band.cut(result), owed)
            del result
        return out

    def _convolved(self, seen: Tensor, affine: Affine | None) -> tuple[Tensor, Tensor | None]:
        return shortly(self.short, self.conv, on_images(affine.silu, seen) if affine else seen)


@dataclass(frozen=True, slots=True)
class Doubling:
    """Doubles the frame by repeating pixels, then applies a 3x3 convolution."""

    conv: nn.Module
    size: int
    by_corner: ByCorner = never
    short: Short = whole

    def result(self, shape: Shape) -> Shape:
        return self.conv.weight.shape[0], 2 * shape[1], 2 * shape[2]

    def scratch(self, shape: Shape, itemsize: int, staged: bool, made: int) -> int:
        channels, _, width = shape
        outputs = self.conv.weight.shape[0]
        band = widest(self._bands(shape, itemsize))
        seen = (band.seen.stop - band.seen.start) * width
        copied = channels if staged else 0
        at_once = seen * (4 * channels + max(4 * outputs, copied))
        summed = 20 * channels * outputs  # all corners' weights, and a copy of one corner's
        corner = (seen // width + 1) * (width + 1) * outputs
        return made + itemsize * max(at_once, summed + corner + seen * (4 * outputs + copied))

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        out = new_result(place, self, frame) if out is None else out
        for band in self._bands(tuple(frame.shape[1:]), frame.itemsize):
            result, owed = self._smoothed([place.load(frame[:, :, band.seen])])
            save(place, out[:, :, 2 * band.top : 2 * band.bottom], band.cut(result, scale=2), owed)
            del result
        return out

    def _smoothed(self, seen: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Double and convolve the tensor in `seen`, a list that is emptied: held by the caller, the band would stay in
        memory while the convolution is at its widest."""
        smoothed = self.by_corner(self.conv, seen[0], convolved)
        if smoothed is not None:
            return smoothed, None
        return shortly(self.short, self.conv, doubled(seen.pop()))

    def _bands(self, shape: Shape, itemsize: int) -> list[Band]:
        """Bands of the frame's rows, sized for four result pixels per pixel."""
        row = 4 * itemsize * shape[2] * max(shape[0], self.conv.weight.shape[0])
        return bands(shape[1], row, self.size)


@dataclass(frozen=True, slots=True)
class Halving:
    """A 3x3 convolution with stride 2 of the frame padded at its right and bottom: pixel (r, c) of the result sees rows
    2r to 2r + 2 and columns 2c to 2c + 2."""

    conv: nn.Module
    size: int
    short: Short = whole

    def result(self, shape: Shape) -> Shape:
        return self.conv.weight.shape[0], shape[1] // 2, shape[2] // 2

    def scratch(self, shape: Shape, itemsize: int, staged: bool, made: int) -> int:
        channels, _, width = shape
        outputs, _, columns = self.result(shape)
        band = widest(self._bands(shape, itemsize))
        rows = band.bottom - band.top
        seen = (2 * rows + 1) * channels
        copied = seen * width if staged else 0
        return made + itemsize * (seen * (width + 1) + max(copied, rows * outputs * columns))

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        out = new_result(place, self, frame) if out is None else out
        for band in self._bands(tuple(frame.shape[1:]), frame.itemsize):
            seen = frame[:, :, 2 * band.top : 2 * band.bottom + 1]
            below = 2 * band.bottom + 1 - 2 * band.top - seen.shape[2]  # 1 at the bottom of a frame of even height
            padded = nn.functional.pad(place.load(seen), (0, 1, 0, below))
            save(place, out[:, :, band.rows], *shortly(self.short, self.conv, padded))
            del padded
        return out

    def _bands(self, shape: Shape, itemsize: int) -> list[Band]:
        """Bands of the result's rows."""
        row = 2 * itemsize * shape[2] * max(shape[0], self.conv.weight.shape[0])
        return bands(shape[1] // 2, row, self.size)


def new_result(place: Place, layer: InsideFrame, frame: Tensor) -> Tensor:
    """An uninitialised tensor, in `place`, for the layer's result."""
    return place.empty((1, *layer.result(tuple(frame.shape[1:]))), frame.dtype)
