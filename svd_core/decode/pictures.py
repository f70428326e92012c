"""The encoder in little memory, exact: pictures one by one, layer by layer, in bands of rows (`frames.py`).

Nothing in it looks across frames, so a picture's activations are all there is to hold: one frame, which residual blocks
and attention change in place, and for a while the frame that another layer makes of it. A residual block needs
statistics between its convolutions, so it either keeps what the first one gave or works that out twice.

Memory picks the way and never a bit of the result. Class: rounding, against the plain encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ..errors import InputError
from .frames import InsideFrame, Residual, SelfAttention, Shape, bands
from .places import MODES, Mode, OnDevice, OnHost, Place, has_own_memory, release_host
from .plan import mebibytes

PLAIN_PIXELS = 2**16
"""Pictures of up to as many pixels, and as many of them at once as have no more together, go through the plain encoder:
small ones come in batches, as in training, and would leave a device idle one by one."""

PictureShape = tuple[int, int, int, int]
"""Pixels: pictures, channels, height, width."""


@dataclass(frozen=True, slots=True)
class EncodePlan:
    """One way to encode pictures; every way gives the same bits.

    mode: what the device holds beside the band being worked on. "device": a frame of activations, and what a residual
    block keeps of it. "host": the frame alone, because blocks work things out twice; one picture leaves nothing for
    the host to hold, so a processor that shares its memory can do this too. "bands": nothing; the host has the frame.
    together: how many pictures go at once through the plain encoder, being small; 0 where each goes alone, in bands.
    device_bytes and host_bytes are the most that activations and latents hold there, beside the weights, the pixels
    and the libraries' own workspaces.
    """

    mode: Mode
    together: int
    device_bytes: int
    host_bytes: int


def encode_plan(layers: Sequence[InsideFrame], pictures: PictureShape, itemsize: int, mode: Mode) -> EncodePlan:
    """Count what one way needs. `itemsize` is the bytes of a value of the network's dtype."""
    count, *pixels = pictures
    steps = _steps(_suited(layers, mode), tuple(pixels))
    latents = itemsize * count * prod(steps[-1].made) // 2  # the other half of the moments are variances
    together = min(count, PLAIN_PIXELS // prod(pixels[1:]))
    if together:
        return EncodePlan("device", together, latents + together * itemsize * _plain_values(steps), 0)
    staged = mode == "bands"
    lengths, taken = _lengths(steps), set()
    device, host = [], []
    for index, step in enumerate(steps):
        taken.add(step.stretch)
        held = itemsize * (sum(lengths[stretch] for stretch in taken) + (prod(pixels) if index == 0 else 0))
        host.append(held if staged else 0)
        device.append((0 if staged else held) + step.layer.scratch(step.given, itemsize, staged, 0))
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
    """The quickest way that fits `budget` bytes on the device; `mode` tries no other than that.

    own_memory: the device's memory is not the host's, so that what the host holds costs no budget; without it the way
    that needs the host is not tried. Raises InputError that names the least budget where nothing fits.
    """
    plans = [encode_plan(layers, pictures, itemsize, way) for way in ((mode,) if mode else _modes(own_memory))]
    for plan in plans:
        if plan.device_bytes <= budget:
            return plan
    least = min(plan.device_bytes for plan in plans)
    raise InputError(
        f"a budget of {mebibytes(budget)} cannot hold the encoding of {pictures[3]}x{pictures[2]}: "
        f"give at least {mebibytes(least)} or a smaller size"
    )


def run_encode(layers: Sequence[InsideFrame], picture: Tensor, dtype: torch.dtype, plan: EncodePlan) -> Tensor:
    """A picture (1, 3, H, W), on the device that calculates -> moments (1, 8, H/8, W/8) there, in bands.

    Where another program has taken memory since the plan was made, the next leaner way is tried, with the same bits.
    """
    ways = _modes(has_own_memory(picture.device) or plan.mode == "bands")
    *quicker, leanest = ways[ways.index(plan.mode) :]
    for mode in quicker:
        try:
            return encode_picture(layers, picture, dtype, mode)
        except torch.OutOfMemoryError:
            pass  # leaving the handler frees what the failed attempt held
    moments = encode_picture(layers, picture, dtype, leanest)
    if leanest == "bands":
        release_host(picture.device)
    return moments


@torch.no_grad()
def encode_picture(layers: Sequence[InsideFrame], picture: Tensor, dtype: torch.dtype, mode: Mode) -> Tensor:
    """Run one picture (1, 3, H, W) through all layers, which work in `dtype` -> (1, 8, H/8, W/8), on its device.

    What layers make lies in two stretches of memory by turns, each as long as the largest that it will hold: the host's
    allocator hands out powers of two and would keep each frame's memory for itself. Records no gradients.
    """
    place = OnHost(picture.device) if mode == "bands" else OnDevice(picture.device)
    steps = _steps(_suited(layers, mode), tuple(picture.shape[1:]))
    lengths, stretches = _lengths(steps), {}
    frame = _taken(picture, dtype, place)
    for step in steps:
        if step.stretch not in stretches:
            stretches[step.stretch] = place.empty((1, lengths[step.stretch], 1, 1), dtype)
        frame = step.layer(frame, place, _start_of(stretches[step.stretch], step.made))
    return frame.to(picture.device, copy=True)  # a view would keep the stretch


@dataclass(frozen=True, slots=True)
class _Step:
    """A layer, the shapes of what it is given and makes, and which of the two stretches that goes to."""

    layer: InsideFrame
    given: Shape
    made: Shape
    stretch: int


def _steps(layers: Sequence[InsideFrame], shape: Shape) -> list[_Step]:
    steps, stretch = [], 1
    for layer in layers:
        made = layer.result(shape)
        in_place = made == shape and isinstance(layer, Residual | SelfAttention)
        stretch = stretch if in_place else 1 - stretch
        steps.append(_Step(layer, shape, made, stretch))
        shape = made
    return steps


def _lengths(steps: Sequence[_Step]) -> list[int]:
    """Values of each stretch."""
    return [max((prod(step.made) for step in steps if step.stretch == stretch), default=0) for stretch in (0, 1)]


def _suited(layers: Sequence[InsideFrame], mode: Mode) -> list[InsideFrame]:
    """Residual blocks keep what they can in the quickest way only."""
    keep = mode == "device"
    return [replace(layer, keep=keep) if isinstance(layer, Residual) else layer for layer in layers]


def _modes(own_memory: bool) -> tuple[Mode, ...]:
    """From the quickest to the leanest."""
    return MODES if own_memory else tuple(mode for mode in MODES if mode != "bands")


def _plain_values(steps: Sequence[_Step]) -> int:
    """What the plain encoder holds of a picture at its peak: the pixels, and in a residual block its input, what the
    first convolution gave, that normalised, and what the second one makes."""
    blocks = (prod(step.given) + 3 * prod(step.made) for step in steps if isinstance(step.layer, Residual))
    return prod(steps[0].given) + max(blocks)


def _taken(picture: Tensor, dtype: torch.dtype, place: Place) -> Tensor:
    """The picture in `place`, channels last, so that its own layout and dtype change no bit."""
    taken = place.empty(picture.shape, dtype)
    for band in bands(picture.shape[2], picture.shape[1] * picture.shape[3]):
        rows = picture[:, :, band.rows].to(dtype)
        place.save(taken[:, :, band.rows], rows.contiguous(memory_format=torch.channels_last))
    return taken


def _start_of(stretch: Tensor, shape: Shape) -> Tensor:
    """A frame (1, C, H, W), channels last, at the start of a stretch (1, n, 1, 1)."""
    channels, height, width = shape
    return stretch.view(-1)[: prod(shape)].view(1, height, width, channels).movedim(-1, 1)
