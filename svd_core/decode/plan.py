"""Computes how much memory a decode needs before it runs, and chooses a plan that fits."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..config import PIXELS_PER_LATENT
from ..errors import InputError
from .places import Mode
from .stream import Stage, TimeResidual, kept_strips, strip_pixels, strip_values

ClipShape = tuple[int, int, int, int]
"""Latents of one clip: frames, channels, height, width."""

_STREAMED: tuple[Mode, ...] = ("host", "bands")


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """One plan for decoding a clip; all plans give the same bits. `keep` is `stream`'s. device_bytes and host_bytes are
    the most that activations hold there, excluding the weights, the latents and the libraries' own workspaces."""

    mode: Mode
    keep: int
    device_bytes: int
    host_bytes: int


def decode_plan(stages: Sequence[Stage], clip: ClipShape, itemsize: int, mode: Mode, keep: int) -> DecodePlan:
    """Compute the memory that one mode and `keep` need. `itemsize` is the bytes of a value of the network's dtype."""
    peaks = [0]
    hosted = [0]
    shape = clip[1:]
    for stage in stages:
        made, layers = _inside(stage, shape, itemsize, mode)
        held = clip[0] * itemsize * (_size(shape) + (_size(made) if made != shape else 0))
        kept = _kept(stage, made, clip[0], keep, itemsize) * itemsize
        after = clip[0] * itemsize * _size(made) + kept
        across = stage.across.scratch(made, clip[0], itemsize, mode != "device") if stage.across else 0
        peaks += [held + layers, after + across] if mode == "device" else [layers, across]
        hosted += (
            [] if mode == "device" else [held + (_frames(stage, shape) * itemsize if mode == "bands" else 0), after]
        )
        shape = made
    return DecodePlan(mode, keep, max(peaks), max(hosted))


def choose_decode(
    stages: Sequence[Stage],
    clip: ClipShape,
    itemsize: int,
    budget: int,
    *,
    own_memory: bool,
    keep: int | None = None,
    mode: Mode | None = None,
) -> DecodePlan:
    """The fastest plan whose activations fit `budget` bytes on the device: the whole clip there, with as many results
    kept (`keep` frames' worth at most) as fit; then a frame; then only the current band.

    own_memory: the device's memory is not the host's, so that host memory costs no budget; if False, only the first is
    tried. If `mode` is given, only that is tried. Raises InputError naming the least budget if nothing fits.
    """
    modes = (mode,) if mode else ("device", *_STREAMED) if own_memory else ("device",)
    most = clip[0] if keep is None else min(keep, clip[0])
    count = partial(decode_plan, stages, clip, itemsize)
    for way in modes:
        kept = _most_kept(partial(count, way), most if way == "device" else 1, budget)
        if kept:
            return count(way, kept)
    least = min(count(way, 1).device_bytes for way in modes)
    raise InputError(
        f"a budget of {mebibytes(budget, math.floor)} cannot hold the decode of {clip[0]} frames of "
        f"{clip[3] * PIXELS_PER_LATENT}x{clip[2] * PIXELS_PER_LATENT}: give at least {mebibytes(least)}, "
        "fewer frames or a smaller size"
    )


def _most_kept(count: Callable[[int], DecodePlan], most: int, budget: int) -> int:
    """The most frames' worth of results, up to `most`, that may be kept within `budget`; 0 if none fit. Memory grows
    with the number, so this bisects: a long clip has a thousand candidates."""
    return bisect_right(range(1, most + 1), budget, key=lambda keep: count(keep).device_bytes)


def _inside(stage: Stage, shape: tuple[int, int, int], itemsize: int, mode: Mode) -> tuple[tuple[int, int, int], int]:
    """A stage's output shape for a frame, and the peak bytes of its frames and bands on the device, in addition to the
    clips."""
    staged = mode == "bands"
    peak = 0
    last = len(stage.inside) - 1
    for index, layer in enumerate(stage.inside):
        made = layer.result(shape)
        read = 0 if staged or (index == 0 and mode == "device") else itemsize * _size(shape)
        written = 0 if staged or (index == last and mode == "device") else itemsize * _size(made)
        peak = max(peak, read + layer.scratch(shape, itemsize, staged, written))
        shape = made
    return shape, peak


def _frames(stage: Stage, shape: tuple[int, int, int]) -> int:
    """Values of the frames on the host in mode "bands": a layer's input, its result and what is between them."""
    sizes = [_size(shape)]
    for layer in stage.inside:
        shape = layer.result(shape)
        sizes.append(_size(shape))
    return 3 * max(sizes)


def _kept(stage: Stage, shape: tuple[int, int, int], frames: int, keep: int, itemsize: int) -> int:
    """Values of the intermediate results kept from one sweep for the next."""
    if not isinstance(stage.across, TimeResidual):
        return 0
    strips = -(-shape[1] * shape[2] // strip_pixels(shape, frames, itemsize, stage.across.size))
    whole = frames * _size(shape)
    kept = min(whole, kept_strips(strips, frames, keep) * strip_values(shape, frames, itemsize, stage.across.size))
    # A loop's results are views of ones that are a frame longer at each end (`over_frames`).
    return kept + 2 * -(-kept // frames) if stage.across.circular else kept


def _size(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


def mebibytes(count: int, rounded: Callable[[float], int] = math.ceil) -> str:
    """A size as text. Round what is needed up and what was given down, or both might read the same."""
    return f"{count} bytes" if count < 2**20 else f"{rounded(count / 2**20)} MiB"
