"""The networks' blocks inside one frame or picture, which may run in place: residual block and self-attention.

In bands, as the layers of `frames.py`. Class: rounding, relative to the block on the whole frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from .bands import Band, Shape, band_values, bands_of
from .convolving import Short, channels_at_end, on_images, paid, save_and_gather, save_sum, shortly, whole
from .frames import new_result
from .norms import Affine, normed_bytes
from .places import Place


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
        seen, own, convolved = band_values(shape, outputs, itemsize, self.size)
        result = own * outputs // shape[0]  # the band's own rows of it
        hidden = 0 if staged or not self.keep else itemsize * outputs * shape[1] * shape[2]
        waiting = 0 if self.keep else itemsize * convolved  # the next band's hidden rows
        copied = itemsize if staged else 0
        first = max(normed_bytes(seen, itemsize, copied * seen), itemsize * (seen + convolved))
        loaded = copied if self.keep else itemsize
        second = max(normed_bytes(convolved, itemsize, loaded * convolved), 2 * itemsize * convolved)
        added = copied * own + itemsize * result
        if shape[0] != outputs:
            added = max(added, 2 * itemsize * result)
        last = itemsize * convolved + added
        # The result is allocated after the first sweep.
        return hidden + max(first, made + waiting + max(0 if self.keep else first, second, last))

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        rows = bands_of(frame, self.conv1.weight.shape[0], self.size)
        first = Affine.of_frame(self.norm1, frame, place, rows)
        hidden = new_result(place, self, frame) if self.keep else None
        second = self._gather(frame, place, rows, first, hidden)
        out = new_result(place, self, frame) if out is None else out
        if hidden is None:
            seen = self._again(frame, place, rows, first)
        else:
            seen = (place.load(hidden[:, :, band.seen]) for band in rows)
        for band in rows:
            branch, owed = self._branch(seen, band, second)
            part = out[:, :, band.rows]
            save_sum(place, part, self.shortcut(place.load(frame[:, :, band.rows])), branch, owed)
            del branch  # else it would stay in memory while the next band is at its widest
        return out

    def _gather(self, frame: Tensor, place: Place, rows: list[Band], first: Affine, hidden: Tensor | None) -> Affine:
        """The second norm, with the statistics of the first convolution's result, which is stored in `hidden` if
        given."""
        moments = []
        for band in rows:
            convolved, owed = self._convolved(frame, place, band, first)
            part = None if hidden is None else hidden[:, :, band.rows]
            moments.append(save_and_gather(place, part, convolved, owed))
            del convolved
        return Affine.of(self.norm2, moments)

    def _again(self, frame: Tensor, place: Place, rows: list[Band], first: Affine) -> Iterator[Tensor]:
        """Recompute, band by band, the first convolution's result on the rows that the band sees. The next band is
        computed before a band is yielded, so that the frame may then be overwritten down to the band's last row."""
        above, own = None, paid(*self._convolved(frame, place, rows[0], first))
        for following in (*rows[1:], None):
            below = None if following is None else paid(*self._convolved(frame, place, following, first))
            joined = [_joined(above, own, below)]
            above, own = own[:, :, -1:].clone(), below
            del below
            yield joined.pop()  # popped, so that no reference stays here

    def _convolved(self, frame: Tensor, place: Place, band: Band, first: Affine) -> tuple[Tensor, Tensor | None]:
        result, owed = shortly(self.short, self.conv1, on_images(first.silu, place.load(frame[:, :, band.seen])))
        return band.cut(result), owed

    def _branch(self, seen: Iterator[Tensor], band: Band, second: Affine) -> tuple[Tensor, Tensor | None]:
        """The second convolution of the next item of `seen`, which must be this band's."""
        result, owed = shortly(self.short, self.conv2, on_images(second.silu, next(seen)))
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
        _, own, _ = band_values(shape, shape[0], itemsize, self.size)
        held = 2 * itemsize * shape[0] * shape[1] * shape[2]
        copied = itemsize * own if staged else 0
        return max(held + normed_bytes(own, itemsize, copied), made + held + copied + 3 * itemsize * own)

    def __call__(self, frame: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        rows = bands_of(frame, frame.shape[1], self.size)
        affine = Affine.of_frame(self.norm, frame, place, rows)
        keys, values = self._keys_and_values(frame, place, rows, affine)
        out = new_result(place, self, frame) if out is None else out
        for band in rows:
            own = place.load(frame[:, :, band.rows])
            save_sum(place, out[:, :, band.rows], own, self._attended(own, affine, keys, values))
        return out

    def _keys_and_values(self, frame: Tensor, place: Place, rows: list[Band], affine: Affine) -> Tensor:
        """Keys and values of the whole frame, on the device, (2, 1, 1, H * W, C)."""
        _, channels, height, width = frame.shape
        both = affine.scale.new_empty((2, 1, 1, height * width, channels), dtype=frame.dtype)
        for band in rows:
            normed = on_images(affine.normed, place.load(frame[:, :, band.rows]))
            for gathered, project in zip(both, (self.k, self.v), strict=True):
                gathered[:, :, band.top * width : band.bottom * width] = _tokens(project(normed))
        return both

    def _attended(self, own: Tensor, affine: Affine, keys: Tensor, values: Tensor) -> Tensor:
        attended = self.attention(_tokens(self.q(on_images(affine.normed, own))), keys, values)
        return self.proj_out(rearrange(attended, "n 1 (h w) c -> n c h w", w=own.shape[3]))


def _joined(above: Tensor | None, own: Tensor, below: Tensor | None) -> Tensor:
    """Rows (1, C, h, W) with the row above them and the first row of those below, if given."""
    rows = [above, own, None if below is None else below[:, :, :1]]
    return torch.cat([channels_at_end(part) for part in rows if part is not None], dim=1).movedim(-1, 1)


def _tokens(images: Tensor) -> Tensor:
    """(1, C, H, W) -> (1, 1, H * W, C)."""
    return rearrange(images, "n c h w -> n 1 (h w) c")
