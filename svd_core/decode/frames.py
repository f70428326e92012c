"""The networks' layers inside one frame or picture, computed in bands of rows.

A band's height depends only on the frame's shape, its dtype and the device, never on free memory: every mode does the
same calculations on the same bands, and only where the rows are stored in between differs. Statistics cover the frame,
so a normalised layer first reads the whole frame to gather them. A convolution sees the neighbouring rows (a halo), so
there are no seams. Class: rounding, relative to the layer on the whole frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from ..kernels import doubled, owed_moments, owed_sum
from .norms import Affine, Moments, affine_bytes, moments_bytes
from .places import Place

LONG_SUM = 256
"""Input channels from which a float32 convolution on a CPU runs channels first; see `convolved`."""

Shape = tuple[int, int, int]


Short = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None]]
"""(convolution, images (1, C, h, W)) -> its result, and the bias (C',) still to be added to it, or None: a device adds
that while storing the result, which saves a pass over it."""


ByCorner = Callable[[nn.Module, Tensor, Callable[..., Tensor]], Tensor | None]
"""(convolution, images (1, C, h, W), how to call one) -> its result (1, C', 2h, 2W) for the doubled images, by
`kernels.smoothed_by_corner`; None if the doubled images must be made."""


def never(_conv: nn.Module, _images: Tensor, _convolved: Callable[..., Tensor]) -> None:
    """A `ByCorner` that never applies."""


def whole(conv: nn.Module, images: Tensor) -> tuple[Tensor, None]:
    """A `Short` that adds the bias itself."""
    return convolved(conv, images), None


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
class Band:
    """Rows `top` to `bottom` (exclusive) of a frame of `height` rows, and the halo that a convolution needs."""

    top: int
    bottom: int
    height: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.bottom)

    @property
    def seen(self) -> slice:
        """The rows plus one on each side, within the frame."""
        return slice(max(self.top - 1, 0), min(self.bottom + 1, self.height))

    def cut(self, convolved: Tensor, scale: int = 1) -> Tensor:
        """The band's own rows of a convolution's result on the rows seen, with `scale` rows for each of them."""
        first = scale * (self.top - self.seen.start)
        return convolved[:, :, first : first + scale * (self.bottom - self.top)]


def bands(height: int, bytes_per_row: int, size: int) -> list[Band]:
    """Equal bands of up to `size` bytes, at least four rows high so that halos stay cheap."""
    rows = max(4, size // bytes_per_row)
    count = -(-height // rows)
    rows = -(-height // count)
    return [Band(top, min(top + rows, height), height) for top in range(0, height, rows)]


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
        seen, _, convolved = _values(shape, self.conv.weight.shape[0], itemsize, self.size)
        copied = itemsize * seen if staged else 0
        normed = _normed(seen, itemsize, copied) if self.norm is not None else copied
        return made + max(normed, itemsize * convolved + (itemsize * seen if self.norm is not None else copied))

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        outputs = self.conv.weight.shape[0]
        rows = _bands_of(frame, outputs, self.size)
        affine = _statistics(self.norm, frame, place, rows) if self.norm is not None else None
        out = _made(place, self, frame) if out is None else out
        for band in rows:
            result, owed = self._convolved(place.load(frame[:, :, band.seen]), affine)
            _save(place, out[:, :, band.rows], band.cut(result), owed)
            del result
        return out

    def _convolved(self, seen: Tensor, affine: Affine | None) -> tuple[Tensor, Tensor | None]:
        return _shortly(self.short, self.conv, _on_images(affine.silu, seen) if affine else seen)


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
        band = _widest(self._bands(shape, itemsize))
        seen = (band.seen.stop - band.seen.start) * width
        copied = channels if staged else 0
        at_once = seen * (4 * channels + max(4 * outputs, copied))
        summed = 20 * channels * outputs  # all corners' weights, and a copy of one corner's
        corner = (seen // width + 1) * (width + 1) * outputs
        return made + itemsize * max(at_once, summed + corner + seen * (4 * outputs + copied))

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        out = _made(place, self, frame) if out is None else out
        for band in self._bands(tuple(frame.shape[1:]), frame.itemsize):
            result, owed = self._smoothed([place.load(frame[:, :, band.seen])])
            _save(place, out[:, :, 2 * band.top : 2 * band.bottom], band.cut(result, scale=2), owed)
            del result
        return out

    def _smoothed(self, seen: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Double and convolve the tensor in `seen`, a list that is emptied: held by the caller, the band would stay in
        memory while the convolution is at its widest."""
        smoothed = self.by_corner(self.conv, seen[0], convolved)
        if smoothed is not None:
            return smoothed, None
        return _shortly(self.short, self.conv, doubled(seen.pop()))

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
        band = _widest(self._bands(shape, itemsize))
        rows = band.bottom - band.top
        seen = (2 * rows + 1) * channels
        copied = seen * width if staged else 0
        return made + itemsize * (seen * (width + 1) + max(copied, rows * outputs * columns))

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        out = _made(place, self, frame) if out is None else out
        for band in self._bands(tuple(frame.shape[1:]), frame.itemsize):
            seen = frame[:, :, 2 * band.top : 2 * band.bottom + 1]
            below = 2 * band.bottom + 1 - 2 * band.top - seen.shape[2]  # 1 at the bottom of a frame of even height
            padded = nn.functional.pad(place.load(seen), (0, 1, 0, below))
            _save(place, out[:, :, band.rows], *_shortly(self.short, self.conv, padded))
            del padded
        return out

    def _bands(self, shape: Shape, itemsize: int) -> list[Band]:
        """Bands of the result's rows."""
        row = 2 * itemsize * shape[2] * max(shape[0], self.conv.weight.shape[0])
        return bands(shape[1] // 2, row, self.size)


@dataclass(frozen=True, slots=True)
class Residual:
    """shortcut(x) + conv2(SiLU(norm2(conv1(SiLU(norm1(x)))))), norms over the frame. May run in place.

    keep: the first convolution's result is kept, in `place`, until its statistics are known; otherwise it is computed
    twice, by the same calls and so to the same bits, and exists only in bands.
    """

    norm1: nn.Module
    conv1: nn.Module
    norm2: nn.Module
    conv2: nn.Module
    shortcut: Callable[[Tensor], Tensor]
    size: int
    keep: bool = True
    short: Short = whole

    def result(self, shape: Shape) -> Shape:
        return (self.conv1.weight.shape[0], *shape[1:])

    def scratch(self, shape: Shape, itemsize: int, staged: bool, made: int) -> int:
        outputs = self.conv1.weight.shape[0]
        seen, own, convolved = _values(shape, outputs, itemsize, self.size)
        result = own * outputs // shape[0]  # the band's own rows of it
        hidden = 0 if staged or not self.keep else itemsize * outputs * shape[1] * shape[2]
        waiting = 0 if self.keep else itemsize * convolved  # the next band's hidden rows
        copied = itemsize if staged else 0
        first = max(_normed(seen, itemsize, copied * seen), itemsize * (seen + convolved))
        loaded = copied if self.keep else itemsize
        second = max(_normed(convolved, itemsize, loaded * convolved), 2 * itemsize * convolved)
        added = copied * own + itemsize * result
        if shape[0] != outputs:
            added = max(added, 2 * itemsize * result)
        last = itemsize * convolved + added
        # The result is allocated after the first sweep.
        return hidden + max(first, made + waiting + max(0 if self.keep else first, second, last))

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        rows = _bands_of(frame, self.conv1.weight.shape[0], self.size)
        first = _statistics(self.norm1, frame, place, rows)
        hidden = _made(place, self, frame) if self.keep else None
        second = self._gather(frame, place, rows, first, hidden)
        out = _made(place, self, frame) if out is None else out
        if hidden is None:
            seen = self._again(frame, place, rows, first)
        else:
            seen = (place.load(hidden[:, :, band.seen]) for band in rows)
        for band in rows:
            branch, owed = self._branch(seen, band, second)
            part = out[:, :, band.rows]
            _save_sum(place, part, self.shortcut(place.load(frame[:, :, band.rows])), branch, owed)
            del branch  # else it would stay in memory while the next band is at its widest
        return out

    def _gather(self, frame: Tensor, place: Place, rows: list[Band], first: Affine, hidden: Tensor | None) -> Affine:
        """The second norm, with the statistics of the first convolution's result, which is stored in `hidden` if
        given."""
        moments = []
        for band in rows:
            convolved, owed = self._convolved(frame, place, band, first)
            part = None if hidden is None else hidden[:, :, band.rows]
            moments.append(_moments(place, part, convolved, owed))
            del convolved
        return Affine.of(self.norm2, moments)

    def _again(self, frame: Tensor, place: Place, rows: list[Band], first: Affine) -> Iterator[Tensor]:
        """Recompute, band by band, the first convolution's result on the rows that the band sees. The next band is
        computed before a band is yielded, so that the frame may then be overwritten down to the band's last row."""
        above, own = None, _paid(*self._convolved(frame, place, rows[0], first))
        for following in (*rows[1:], None):
            below = None if following is None else _paid(*self._convolved(frame, place, following, first))
            joined = [_joined(above, own, below)]
            above, own = own[:, :, -1:].clone(), below
            del below
            yield joined.pop()  # popped, so that no reference stays here

    def _convolved(self, frame: Tensor, place: Place, band: Band, first: Affine) -> tuple[Tensor, Tensor | None]:
        result, owed = _shortly(self.short, self.conv1, _on_images(first.silu, place.load(frame[:, :, band.seen])))
        return band.cut(result), owed

    def _branch(self, seen: Iterator[Tensor], band: Band, second: Affine) -> tuple[Tensor, Tensor | None]:
        """The second convolution of the next item of `seen`, which must be this band's."""
        result, owed = _shortly(self.short, self.conv2, _on_images(second.silu, next(seen)))
        return band.cut(result), owed


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """x + out(attention(q, k, v of norm(x))) over the pixels of a frame, one head. Keys and values of the whole frame
    are on the device; queries are processed in bands. May run in place."""

    norm: nn.Module
    q: nn.Module
    k: nn.Module
    v: nn.Module
    proj_out: nn.Module
    attention: Callable[[Tensor, Tensor, Tensor], Tensor]
    size: int

    def result(self, shape: Shape) -> Shape:
        return shape

    def scratch(self, shape: Shape, itemsize: int, staged: bool, made: int) -> int:
        """See `InsideFrame`: the whole frame's keys and values, plus tensors of the widest band."""
        _, own, _ = _values(shape, shape[0], itemsize, self.size)
        held = 2 * itemsize * shape[0] * shape[1] * shape[2]
        copied = itemsize * own if staged else 0
        return max(held + _normed(own, itemsize, copied), made + held + copied + 3 * itemsize * own)

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        rows = _bands_of(frame, frame.shape[1], self.size)
        affine = _statistics(self.norm, frame, place, rows)
        keys, values = self._keys_and_values(frame, place, rows, affine)
        out = _made(place, self, frame) if out is None else out
        for band in rows:
            own = place.load(frame[:, :, band.rows])
            _save_sum(place, out[:, :, band.rows], own, self._attended(own, affine, keys, values))
        return out

    def _keys_and_values(self, frame: Tensor, place: Place, rows: list[Band], affine: Affine) -> Tensor:
        """Keys and values of the whole frame, on the device, (2, 1, 1, H * W, C)."""
        _, channels, height, width = frame.shape
        both = affine.scale.new_empty((2, 1, 1, height * width, channels), dtype=frame.dtype)
        for band in rows:
            normed = _on_images(affine.normed, place.load(frame[:, :, band.rows]))
            for whole, project in zip(both, (self.k, self.v), strict=True):
                whole[:, :, band.top * width : band.bottom * width] = _tokens(project(normed))
        return both

    def _attended(self, own: Tensor, affine: Affine, keys: Tensor, values: Tensor) -> Tensor:
        attended = self.attention(_tokens(self.q(_on_images(affine.normed, own))), keys, values)
        return self.proj_out(rearrange(attended, "n 1 (h w) c -> n c h w", w=own.shape[3]))


def convolved(conv: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """A convolution of images (1, C, h, W), channels last -> images, channels last.

    On a CPU, oneDNN sums a float32 convolution of many channels in one long chain if channels are last and in short
    ones if they are first: a third of the error, at almost no cost including both transposes. These hold one more band;
    no plan counts that, nor what oneDNN holds. Class: rounding."""
    if not (images.is_cpu and images.dtype == torch.float32 and images.shape[1] >= LONG_SUM):
        return conv(images)
    _, channels, height, width = images.shape
    planes = _last(images).reshape(-1, channels).t().contiguous()  # torch is fast at transposing matrices only
    planes = conv(planes.view(1, channels, height, width))
    _, channels, height, width = planes.shape
    tokens = planes.reshape(channels, -1).t().contiguous()
    return tokens.view(1, height, width, channels).movedim(-1, 1)


def _bands_of(frame: Tensor, outputs: int, size: int) -> list[Band]:
    return bands(frame.shape[2], frame.itemsize * frame.shape[3] * max(frame.shape[1], outputs), size)


def _values(shape: Shape, outputs: int, itemsize: int, size: int) -> tuple[int, int, int]:
    """For the widest band: values seen, values of its own rows, and values of a convolution's result on the rows
    seen."""
    channels, height, width = shape
    band = _widest(bands(height, itemsize * width * max(channels, outputs), size))
    seen = (band.seen.stop - band.seen.start) * width
    return seen * channels, (band.bottom - band.top) * width * channels, seen * outputs


def _widest(rows: list[Band]) -> Band:
    return max(rows, key=lambda band: band.seen.stop - band.seen.start)


def _normed(values: int, itemsize: int, copied: int) -> int:
    return copied + max(affine_bytes(values, itemsize), moments_bytes(values, itemsize))


def _made(place: Place, layer: InsideFrame, frame: Tensor) -> Tensor:
    """An uninitialised tensor for the layer's result."""
    return place.empty((1, *layer.result(tuple(frame.shape[1:]))), frame.dtype)


def _shortly(short: Short, conv: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    return short(conv, images) if owed_moments.wanted(images) else whole(conv, images)


def _paid(result: Tensor, owed: Tensor | None) -> Tensor:
    return result if owed is None else result.add_(owed[:, None, None])


def _save(place: Place, part: Tensor, result: Tensor, owed: Tensor | None) -> None:
    """Store a result, plus the bias `owed` if any, in a part."""
    if owed is not None:
        room = place.room(part)
        torch.add(result, owed[:, None, None], out=room)
        result = room
    place.save(part, result)


def _save_sum(place: Place, part: Tensor, one: Tensor, other: Tensor, owed: Tensor | None = None) -> None:
    """Store one + other, plus the bias `owed` if any, in a part, directly if it is on the device."""
    room = place.room(part)
    if owed is None:
        torch.add(one, other, out=room)
    else:
        owed_sum.into(_last(room), _last(one), _last(other), owed)
    place.save(part, room)


def _moments(place: Place, part: Tensor | None, result: Tensor, owed: Tensor | None) -> Moments:
    """Moments of a result plus the bias `owed`, if any; their sum is stored in a part if given."""
    if owed is None:
        moments = Moments.of(_last(result))
        if part is not None:
            place.save(part, result)
        return moments
    room = None if part is None else place.room(part)
    moments = Moments.owed(_last(result), owed, None if room is None else _last(room))
    if part is not None:
        place.save(part, room)
    return moments


def _statistics(norm: nn.Module, frame: Tensor, place: Place, rows: list[Band]) -> Affine:
    return Affine.of(norm, [Moments.of(_last(place.load(frame[:, :, band.rows]))) for band in rows])


def _joined(above: Tensor | None, own: Tensor, below: Tensor | None) -> Tensor:
    """Rows (1, C, h, W) with the row above them and the first row of those below, if given."""
    rows = [above, own, None if below is None else below[:, :, :1]]
    return torch.cat([_last(part) for part in rows if part is not None], dim=1).movedim(-1, 1)


def _on_images(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Apply a function of tokens (..., C) to images (1, C, H, W)."""
    return function(_last(images)).movedim(-1, 1)


def _last(images: Tensor) -> Tensor:
    """(1, C, H, W) -> (1, H, W, C), a view."""
    return images.movedim(1, -1)


def _tokens(images: Tensor) -> Tensor:
    """(1, C, H, W) -> (1, 1, H * W, C)."""
    return rearrange(images, "n c h w -> n 1 (h w) c")
