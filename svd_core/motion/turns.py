"""Sequential Long Take: one window after the other, each continuing from the last frame of the one before.

Each window is a complete run of the sampler, and its last frame, clean by then, becomes the picture of the next window.
No frames are blended, so nothing blurs, and the first step of each window resembles the model's training.
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
"""Difference between the seeds of consecutive windows: 2**64 over the golden ratio, SplitMix64's increment. Its
multiples are far apart, so that windows of nearby seeds do not share noise."""

SEED_ROUND = 2**64 - 1
"""Modulus of window seeds. ComfyUI's samplers add 1 on a CPU, and a generator accepts seeds up to this value."""


class InParts(Protocol):
    """The model that `sample_in_turns` needs, such as `LongTake`."""

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
    """Sample the whole clip x (T, 4, h, w) window by window with `sampler`. Windows share one frame; the last one
    shares more if needed to end with the clip. One model call per window for each evaluation of the sampler.

    Like the samplers of `svd_core.sampling`, with these differences. `callback` is called once per step of each window,
    with all frames; its `i` spans the whole run, so each value comes once per window in a row. `options` go to
    `sampler`. If the schedule ends above 0, windows continue from the last denoised frame. A sampler that adds noise
    needs a `noise_sampler` for the whole clip or `extra_args["seed"]`, or all windows get the same noise. Raises
    InputError for a clip shorter than a window.
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
    """A copy of the arguments (some samplers write to them) with the window's own seed. Samplers draw the noise they
    add from seed and shape, and the same noise would make every window move alike."""
    args = dict(extra_args or {})
    if turn and args.get("seed") is not None:
        args["seed"] = (args["seed"] + turn * SEED_STEP) % SEED_ROUND
    return args


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """The clip in progress: its starting noise, its frames at the schedule's last level, and its clean frames (the same
    tensor if that level is 0)."""

    start: Tensor
    x: Tensor
    clean: Tensor

    @classmethod
    def of(cls, start: Tensor, ends_clean: bool) -> _Made:
        x = start.clone()
        return cls(start, x, x if ends_clean else start.clone())

    def keep(self, part: Part, x: Tensor, denoised: Tensor | None) -> None:
        """Store a window's frames, except the one that it continues from, which is already there."""
        new = slice(0 if part.anchor is None else 1, None)
        if self.clean is not self.x and denoised is not None:
            self.clean[part.frames][new] = denoised[new].to(self.clean)
        self.x[part.frames][new] = x[new]


@dataclass(slots=True, eq=False)
class _Watch:
    """A callback for the sampler of one window that reports to the callback of the whole clip."""

    made: _Made
    frames: slice
    callback: Callback | None
    turn: int
    turns: int
    steps: int
    denoised: Tensor | None = None

    def __call__(self, state: dict[str, Any]) -> None:
        self.denoised = state["denoised"]
        if self.callback is None:
            return
        x, denoised = self._whole(self.made.start, state["x"]), self._whole(self.made.clean, state["denoised"])
        denoised[self.frames.stop :] = denoised[self.frames.stop - 1]  # frames not made yet
        i = (self.turn * self.steps + min(state["i"], self.steps - 1)) // self.turns
        self.callback({**state, "x": x, "denoised": denoised, "i": i})

    def _whole(self, clip: Tensor, window: Tensor) -> Tensor:
        clip = clip.clone()
        clip[self.frames] = window
        return clip


def _noise_of(noise_sampler: Callable[..., Tensor], frames: slice, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return noise_sampler(sigma, sigma_next)[frames]
