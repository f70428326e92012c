"""Where activations stay while a network works on a part of them: on the device, or in host memory.

A part is loaded, processed and saved. Only the device computes, and copies are queued on its stream, so the values have
the same bits wherever they stay, and the host waits once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from ..errors import InputError

Mode = Literal["device", "host", "bands"]
"""What the device holds besides the current part: the clip, a frame or nothing, respectively. The host holds the
rest."""

MODES: tuple[Mode, ...] = get_args(Mode)


SMALL_BANDS, LARGE_BANDS, CPU_BANDS = 2**25, 2**26, 30 * 2**20
"""Bytes of the widest tensor of a band or strip. Several exist at once: some 0.2 GiB with small ones, 0.4 with large.
On a CPU they stay below the 32 MiB from which C's allocator requests every block from the system."""

LARGE_DEVICE = 40 * 2**30
"""Memory of a CUDA device from which it takes large bands. One that fast computes a small 16-bit band in about the time
that the host takes to launch it."""


class Place(Protocol):
    """Memory of one kind. `part` is always a view into a tensor that `empty` made."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Frames (T, C, H, W), channels last, with any values."""

    def load(self, part: Tensor) -> Tensor:
        """The part on the device: itself if it is there already, else a copy."""

    def room(self, part: Tensor) -> Tensor:
        """A device tensor for a value that is to be saved in the part: the part itself if it is on the device."""

    def save(self, part: Tensor, value: Tensor) -> None:
        """Copy a value from the device into the part, unless it is the part."""

    def keep(self, value: Tensor) -> Tensor:
        """Store a value (T, s, C) from the device, for `load` to bring back later."""


@dataclass(frozen=True, slots=True)
class OnDevice:
    device: torch.device

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.device, memory_format=torch.channels_last)

    def load(self, part: Tensor) -> Tensor:
        return part

    def room(self, part: Tensor) -> Tensor:
        return part

    def save(self, part: Tensor, value: Tensor) -> None:
        if value is not part:
            part.copy_(value)

    def keep(self, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True, slots=True)
class OnHost:
    """Host memory; parts are loaded to `device`."""

    device: torch.device

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return host_memory(shape, dtype, self.device)

    def load(self, part: Tensor) -> Tensor:
        loaded = torch.empty_like(part, device=self.device)
        _copy(loaded, part)
        return loaded

    def room(self, part: Tensor) -> Tensor:
        return torch.empty_like(part, device=self.device)

    def save(self, part: Tensor, value: Tensor) -> None:
        _copy(part, value)

    def keep(self, value: Tensor) -> Tensor:
        frames, pixels, channels = value.shape
        kept = self.empty((frames, channels, 1, pixels), value.dtype)[:, :, 0].movedim(1, -1)
        _copy(kept, value)
        return kept


@dataclass(frozen=True, slots=True)
class Placement:
    """Where whole clips are stored, and where the current frame is."""

    clip: Place
    frame: Place

    @classmethod
    def of(cls, mode: Mode, device: torch.device) -> Placement:
        """Raises InputError for an unknown mode."""
        if mode not in MODES:
            raise InputError(f"decode mode {mode!r} is not known: choose one of {', '.join(MODES)}")
        here, host = OnDevice(device), OnHost(device)
        return cls(here if mode == "device" else host, host if mode == "bands" else here)

    @property
    def together(self) -> bool:
        """Whether a clip's frame can be processed where it is stored."""
        return self.clip == self.frame


def host_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised frames (T, C, H, W) in the host memory of `device`, channels last; pinned for a CUDA device, so
    that it can copy without the host's help. The meta device is its own host."""
    home = "meta" if device.type == "meta" else "cpu"
    empty = torch.empty([shape[0], *shape[2:], shape[1]], dtype=dtype, device=home, pin_memory=device.type == "cuda")
    return empty.movedim(-1, 1)


def band_bytes(device: torch.device) -> int:
    """Bytes of the widest tensor of a band or strip on a device. Depends on the device but never on its free memory,
    since a convolution's bits depend on the band."""
    if device.type == "cpu":
        return CPU_BANDS
    if device.type != "cuda" or not torch.cuda.is_available():
        return SMALL_BANDS
    return LARGE_BANDS if torch.cuda.get_device_properties(device).total_memory >= LARGE_DEVICE else SMALL_BANDS


@contextmanager
def steady(device: torch.device) -> Iterator[None]:
    """Context in which cuDNN chooses a convolution by its shape alone, and only deterministic ones. Otherwise a host
    that enables `benchmark` gets different bits from one call to the next."""
    cudnn = torch.backends.cudnn
    if device.type != "cuda":
        yield
        return
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def _copy(target: Tensor, source: Tensor) -> None:
    """Copy index by index along the first axis: each copy is then contiguous and needs no staging."""
    for to, of in zip(target, source, strict=True):
        to.copy_(of, non_blocking=to.is_cuda or of.is_cuda)
