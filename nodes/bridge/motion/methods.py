"""The methods as nodes configure them. Each wraps a denoiser, as its counterpart in `svd_core.motion` does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from ....svd_core.config import LATENT_SCALE
from ....svd_core.errors import InputError
from ....svd_core.motion import (
    Between,
    Brush,
    Brushed,
    ClipDenoiser,
    LongTake,
    Statistics,
    Windows,
    curve_values,
    with_curves,
)
from .denoiser import HostDenoiser, read_conditioning
from .hints import hints_of

if TYPE_CHECKING:
    from torch import Tensor

    from ....svd_core.conditioning import Conditioning

Values = float | list
"""Input of `svd_core.motion.curve_values`."""


class Method(Protocol):
    """A method as configured by a node. Methods with a higher `order` wrap further out."""

    order: int

    def wrap(self, denoise: ClipDenoiser, host: HostDenoiser) -> ClipDenoiser: ...


@dataclass(frozen=True, slots=True, eq=False)
class CurveMethod:
    """Settings that change along the clip; guidance is read by the guider."""

    guidance: Values | None
    motion_bucket: Values | None
    augmentation: Values | None
    order = 0

    def wrap(self, denoise: ClipDenoiser, host: HostDenoiser) -> ClipDenoiser:
        curves = [
            None if given is None else curve_values(given, host.clip_frames)
            for given in (self.motion_bucket, self.augmentation)
        ]
        return denoise.with_conditioning(lambda own: with_curves(own, *curves))


@dataclass(frozen=True, slots=True, eq=False)
class BetweenMethod:
    """A clip between two pictures. end is the conditioning of the last one, None for the first again, a loop;
    sequential as set by `directions_in_turns`."""

    end: Conditioning | None
    sequential: bool
    order = 1

    def wrap(self, denoise: ClipDenoiser, host: HostDenoiser) -> ClipDenoiser:
        require_no_views(host, "In-Between and Loop hold")
        if self.end is None or self.sequential:
            require_one_start(host)
        start = host.conditioning
        end = start if self.end is None else self.end
        held = (start.first * LATENT_SCALE, end.first.to(start.first) * LATENT_SCALE) if self.sequential else None
        return Between(denoise, end, held, loop=self.end is None, around=partial(hints_of, host.executor.class_obj))


def require_no_views(host: HostDenoiser, held: str) -> None:
    """Raise InputError if positive shows each frame its own view of the picture; `held` says who minds."""
    entries = host.executor.class_obj.conds["positive"]
    if any(read_conditioning(entry, host.clip_frames).first.ndim > 4 for entry in entries):
        raise InputError(
            f"{held} the clip to its picture, and Stable Video Camera or Drag moves that: use only one of them"
        )


def require_one_start(host: HostDenoiser) -> None:
    """Raise InputError if the entries of positive show different pictures."""
    first, *others = (read_conditioning(entry, host.clip_frames) for entry in host.executor.class_obj.conds["positive"])
    if any(not torch.equal(getattr(each, name), getattr(first, name)) for each in others for name in _PICTURE):
        raise InputError(
            f"positive holds {1 + len(others)} entries of different pictures, and Loop and in turns start from one: "
            "connect positive of one Stable Video Conditioning, or choose fusion on In-Between"
        )


_PICTURE = ("context", "first")
"""What a `Conditioning` says of its picture."""


@dataclass(frozen=True, slots=True, eq=False)
class LongTakeMethod:
    """A long clip in windows. colour_hold is in [0, 1]; continued as in `svd_core.motion.LongTake`."""

    windows: Windows
    colour_hold: float
    continued: Tensor | None
    order = 2

    def wrap(self, denoise: ClipDenoiser, host: HostDenoiser) -> ClipDenoiser:
        require_no_views(host, "Long Take holds")
        colour = Statistics.of(host.conditioning.first * LATENT_SCALE)
        guider = host.executor.class_obj
        device, around = guider.model_patcher.load_device, partial(hints_of, guider)
        return LongTake(denoise, self.windows, device, colour, self.colour_hold, self.continued, around=around)


@dataclass(frozen=True, slots=True, eq=False)
class BrushMethod:
    """Motion only under the brush; still (1, 4, h, w), in sampler units, is held elsewhere."""

    brush: Brush
    still: Tensor
    order = 3

    def wrap(self, denoise: ClipDenoiser, host: HostDenoiser) -> ClipDenoiser:
        require_no_views(host, "Motion Brush holds")
        sigmas = host.options["transformer_options"]["sample_sigmas"]
        levels = sigmas[sigmas > 0]
        if not len(levels):
            raise InputError("every noise level is 0, needed at least one above: connect other sigmas")
        return Brushed(denoise, self.brush.cells(), self.still, float(levels[-1]), float(levels[0]))
