"""Exact encoding in little memory: pictures one by one, layer by layer, in bands of rows (`bands.py`).

The encoder never looks across frames, so it only holds one picture's activations: one frame, which residual blocks and
attention change in place, and temporarily the output frame of any other layer. A residual block needs statistics
between its convolutions, so it either keeps the first one's result or computes it twice.

Available memory selects the plan and never changes a bit of the result. Class: rounding, relative to the plain encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor, prod

import torch
from torch import Tensor

from ..device_memory import has_own_memory, leaner_if_full, release_host
from ..errors import InputError
from .bands import Shape, bands
from .blocks import Residual, SelfAttention
from .frames import InsideFrame
from .places import MODES, Mode, OnDevice, OnHost, Place, steady
from .plan import mebibytes

PLAIN_PIXELS = 2**16
"""Most pixels of one call of the plain encoder, which takes as many pictures as fit: small ones come in batches, as in
training, and would leave a device idle one by one."""

PictureShape = tuple[int, int, int, int]
"""Pixels: pictures, channels, height, width."""


@dataclass(frozen=True, slots=True)
class EncodePlan:
    """One plan for encoding pictures; all plans give the same bits.

    mode: what the device holds besides the current band. "device": a frame of activations, and the result that a
    residual block keeps. "host": the frame alone, because blocks compute that result twice; one picture leaves nothing
    for the host to hold, so a processor that shares its memory can use it too. "bands": nothing; the host holds the
    frame.
    together: how many pictures go through the plain encoder at once, if they are small; 0 if each goes alone, in bands.
    device_bytes and host_bytes are the most that activations and latents hold there, excluding the weights, the pixels
    and the libraries' own workspaces.
    """

    mode: Mode
    together: int
    device_bytes: int
    host_bytes: int


def encode_plan(layers: Sequence[InsideFrame], pictures: PictureShape, itemsize: int, mode: Mode) -> EncodePlan:
    """Compute the memory that one mode needs. `itemsize` is the bytes of a value of the network's dtype."""
    count, *pixels = pictures
    staged = mode == "bands"
    steps = _steps(layers, tuple(pixels), mode)
    latents = itemsize * count * prod(steps[-1].made) // 2  # the other half of the moments are variances
    together = min(count, PLAIN_PIXELS // prod(pixels[1:]))
    if together:
        return EncodePlan("device", together, latents + together * itemsize * _plain_values(steps), 0)
    lengths, held = _lengths(steps), {}
    device, host = [], []
    for index, step in enumerate(steps):
        held[step.stretch] = lengths[step.stretch]
        frames = itemsize * (sum(held.values()) + (prod(pixels) if index == 0 else 0))
        host.append(frames if staged else 0)
        device.append((0 if staged else frames) + step.layer.scratch(step.given, itemsize, staged, 0))
        held = held if staged else {step.stretch: held[step.stretch]}
    return EncodePlan(mode, 0, latents + max(device), max(host))


def choose_encode(
    layers: Sequence[InsideFrame],
    pictures: PictureShape,
    itemsize: int,
    budget: int,
    *,
    own_memory: bool,
    mode: Mode | None = None,
) -> EncodePlan:
    """The fastest plan that fits `budget` bytes on the device; if `mode` is given, only that is tried.

    own_memory: the device's memory is not the host's, so that host memory costs no budget; if False, the mode that
    needs the host is not tried. Raises InputError naming the least budget if nothing fits.
    """
    plans = [encode_plan(layers, pictures, itemsize, way) for way in ((mode,) if mode else encode_modes(own_memory))]
    for plan in plans:
        if plan.device_bytes <= budget:
            return plan
    least = min(plan.device_bytes for plan in plans)
    raise InputError(
        f"a budget of {mebibytes(budget, floor)} cannot hold the encoding of {pictures[3]}x{pictures[2]}: "
        f"give at least {mebibytes(least)} or a smaller size"
    )


def run_encode(layers: Sequence[InsideFrame], picture: Tensor, dtype: torch.dtype, plan: EncodePlan) -> Tensor:
    """Encode a picture (1, 3, H, W), on the computing device, in bands -> moments (1, 8, H/8, W/8) there.

    If memory runs out because another program took some since planning, the next leaner mode is tried, with the same
    bits.
    """
    modes = encode_modes(has_own_memory(picture.device) or plan.mode == "bands")
    moments, mode = leaner_if_full(
        lambda mode: (encode_picture(layers, picture, dtype, mode), mode), modes[modes.index(plan.mode) :]
    )
    if mode == "bands":
        release_host(picture.device)
    return moments


@torch.no_grad()
def encode_picture(layers: Sequence[InsideFrame], picture: Tensor, dtype: torch.dtype, mode: Mode) -> Tensor:
    """Run one picture (1, 3, H, W) through all layers, which work in `dtype` -> (1, 8, H/8, W/8), on its device.

    Records no gradients.
    """
    staged = mode == "bands"
    place = OnHost(picture.device) if staged else OnDevice(picture.device)
    steps = _steps(layers, tuple(picture.shape[1:]), mode)
    lengths, held = _lengths(steps), {}
    frame = _taken(picture, dtype, place, steps[0].layer.size)
    with steady(picture.device):
        for step in steps:
            if step.stretch not in held:
                held[step.stretch] = place.empty((1, lengths[step.stretch], 1, 1), dtype)
            frame = step.layer(frame, place, _start_of(held[step.stretch], step.made))
            held = held if staged else {step.stretch: held[step.stretch]}
    return frame.to(picture.device, copy=True)  # a view would keep the whole stretch alive


@dataclass(frozen=True, slots=True)
class _Step:
    """A layer, its input and output shapes, and the stretch of memory that its output is placed at the start of."""

    layer: InsideFrame
    given: Shape
    made: Shape
    stretch: int


def _steps(layers: Sequence[InsideFrame], shape: Shape, mode: Mode) -> list[_Step]:
    """The layers as steps. A result not made in place goes into a new stretch on the device, and alternately into two
    on the host, whose allocator hands out powers of two and would keep separate memory for each frame size. Residual
    blocks keep their first result only in the fastest mode."""
    steps, stretch = [], 0
    for layer in layers:
        made = layer.result(shape)
        if made != shape or not isinstance(layer, Residual | SelfAttention):
            stretch = (stretch + 1) % 2 if mode == "bands" else stretch + 1
        suited = replace(layer, keep=mode == "device") if isinstance(layer, Residual) else layer
        steps.append(_Step(suited, shape, made, stretch))
        shape = made
    return steps


def _lengths(steps: Sequence[_Step]) -> dict[int, int]:
    """Length of each stretch in values: that of the largest result placed there."""
    lengths: dict[int, int] = {}
    for step in steps:
        lengths[step.stretch] = max(lengths.get(step.stretch, 0), prod(step.made))
    return lengths


def encode_modes(own_memory: bool) -> tuple[Mode, ...]:
    """Modes from the fastest to the leanest (except for pictures of one or two bands); those that need host memory only
    if the device has its own."""
    return MODES if own_memory else tuple(mode for mode in MODES if mode != "bands")


def _plain_values(steps: Sequence[_Step]) -> int:
    """Peak values that the plain encoder holds per picture: the pixels, and in a residual block its input, the first
    convolution's result, that normalised, and the second one's result."""
    blocks = (prod(step.given) + 3 * prod(step.made) for step in steps if isinstance(step.layer, Residual))
    return prod(steps[0].given) + max(blocks)


def _taken(picture: Tensor, dtype: torch.dtype, place: Place, size: int) -> Tensor:
    """A copy of the picture in `place`, channels last, so that its own layout and dtype change no bit; copied in
    `bands`."""
    taken = place.empty(picture.shape, dtype)
    row = dtype.itemsize * picture.shape[1] * picture.shape[3]
    for band in bands(picture.shape[2], row, size):
        rows = picture[:, :, band.rows].to(dtype)
        place.save(taken[:, :, band.rows], rows.contiguous(memory_format=torch.channels_last))
    return taken


def _start_of(stretch: Tensor, shape: Shape) -> Tensor:
    """A frame (1, C, H, W), channels last, at the start of a stretch (1, n, 1, 1)."""
    channels, height, width = shape
    return stretch.view(-1)[: prod(shape)].view(1, height, width, channels).movedim(-1, 1)
