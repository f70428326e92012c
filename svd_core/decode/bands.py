"""Bands of rows, in which the layers inside a frame are computed.

A band's height depends only on the frame's shape, its dtype and the device, never on free memory: every mode does the
same calculations on the same bands, and only where the rows are stored in between differs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, int, int]
"""Channels, height and width of a frame."""


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


def bands_of(frame: Tensor, outputs: int, size: int) -> list[Band]:
    """The bands of a frame (1, C, H, W) for a convolution to `outputs` channels."""
    return bands(frame.shape[2], frame.itemsize * frame.shape[3] * max(frame.shape[1], outputs), size)


def band_values(shape: Shape, outputs: int, itemsize: int, size: int) -> tuple[int, int, int]:
    """For the widest band: values seen, values of its own rows, and values of a convolution's result on the rows
    seen."""
    channels, height, width = shape
    band = widest(bands(height, itemsize * width * max(channels, outputs), size))
    seen = (band.seen.stop - band.seen.start) * width
    return seen * channels, (band.bottom - band.top) * width * channels, seen * outputs


def widest(rows: list[Band]) -> Band:
    """The band that sees the most rows, which needs the most memory."""
    return max(rows, key=lambda band: band.seen.stop - band.seen.start)
