"""Long Take in turns: one window after the other, each going on from the last frame of the one before.

A whole run of the sampler makes a window, whose last frame, clean by then, is the picture of the next: no frame is
blended with another, so nothing wears soft, and the first step of a window is one that the model has learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..sampling.samplers import Callback, Model, NoiseSampler, Sampler, sample_euler
from .windows import Part, Windows

SEED_STEP = 0x9E3779B97F4A7C15
"""From a window's seed to the next one's: 2**64 over the golden ratio, by which SplitMix64 goes on. Its multiples lie
far apart, so that no window's noise is that of another window of a seed nearby."""

SEED_ROUND = 2**64 - 1
"""Where seeds come round. Samplers of ComfyUI's add 1 on a CPU, and a generator takes no more than this."""


class InParts(Protocol):
    """What `sample_in_turns` walks with; `LongTake` is one."""

    def part(self, part: Part) -> Model: ...


@torch.no_grad()
def sample_in_turns(
    model: InParts,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    noise_sampler: NoiseSampler | None = None,
    *,
    windows: Windows,
    sampler: Sampler = sample_euler,
    **options: Any,
) -> Tensor:
    """x (T, 4, h, w) of the whole clip, made by `sampler` in windows that share one frame, and by the last of them more
    where the clip's length asks for it. One model call a window for each evaluation of the sampler.

    Otherwise as the samplers of `svd_core.sampling`, with these differences: `callback` comes once a step of each
    window, with all frames and as many windows in a row at each `i` as there are; `options` are the sampler's. Where
    the schedule ends above 0, windows go on from what was denoised last. A sampler that adds noise needs a
    `noise_sampler` of the whole clip or `extra_args["seed"]`, or each window's is the same. Raises InputError for a
    clip shorter than a window.
    """
    starts, made = windows.starts(len(x)), _Made.of(x.float(), bool(sigmas[-1] == 0))
    for turn, start in enumerate(starts):
        part = Part(slice(start, start + windows.length), len(x), made.clean[start] if turn else None)
        watch = _Watch(made, part.frames, callback, turn, len(starts), len(sigmas) - 1)
        noise = {} if noise_sampler is None else {"noise_sampler": partial(_noise_of, noise_sampler, part.frames)}
        args = _arguments(extra_args, turn)
        end = sampler(model.part(part), made.start[part.frames], sigmas, args, watch, disable, **noise, **options)
        made.keep(part, end, watch.denoised)
    return made.x


def _arguments(extra_args: dict[str, Any] | None, turn: int) -> dict[str, Any]:
    """A window's own: samplers draw the noise that they add from the seed and the shape, and the same noise would let
    each window move as the one before. Some of them write into what they are given."""
    args = dict(extra_args or {})
    if turn and args.get("seed") is not None:
        args["seed"] = (args["seed"] + turn * SEED_STEP) % SEED_ROUND
    return args


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """The clip as it began, and so far: at the schedule's end and clean, which is the same where that is 0."""

    start: Tensor
    x: Tensor
    clean: Tensor

    @classmethod
    def of(cls, start: Tensor, ends_clean: bool) -> _Made:
        x = start.clone()
        return cls(start, x, x if ends_clean else start.clone())

    def keep(self, part: Part, x: Tensor, denoised: Tensor | None) -> None:
        """All frames of a window but the one that it goes on from, which is there already."""
        new = slice(0 if part.anchor is None else 1, None)
        if self.clean is not self.x and denoised is not None:
            self.clean[part.frames][new] = denoised[new].to(self.clean)
        self.x[part.frames][new] = x[new]


@dataclass(slots=True, eq=False)
class _Watch:
    """Between the sampler of one window and whoever watches the clip."""

    made: _Made
    frames: slice
    callback: Callback | None
    turn: int
    turns: int
    steps: int
    denoised: Tensor | None = None

    def __call__(self, said: dict[str, Any]) -> None:
        self.denoised = said["denoised"]
        if self.callback is None:
            return
        x, denoised = self._whole(self.made.start, said["x"]), self._whole(self.made.clean, said["denoised"])
        denoised[self.frames.stop :] = denoised[self.frames.stop - 1]  # nothing is known of these yet
        i = (self.turn * self.steps + min(said["i"], self.steps - 1)) // self.turns
        self.callback({**said, "x": x, "denoised": denoised, "i": i})

    def _whole(self, clip: Tensor, window: Tensor) -> Tensor:
        clip = clip.clone()
        clip[self.frames] = window
        return clip


def _noise_of(noise_sampler: Callable[..., Tensor], frames: slice, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return noise_sampler(sigma, sigma_next)[frames]
