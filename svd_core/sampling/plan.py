"""From settings to what sampling takes: noise levels, guidance scales and the sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError
from ..settings import Curve, Schedule, Settings
from .guidance import (
    GuidanceInterval,
    constant_guidance,
    curve_guidance,
    linear_guidance,
    trapezoid_guidance,
    triangle_guidance,
)
from .samplers import SAMPLERS, Sampler
from .schedule import align_your_steps_sigmas, edm_sigmas, sigmas_from_list

SCHEDULES: dict[Schedule, Callable[[int], Tensor]] = {"edm": edm_sigmas, "align_your_steps": align_your_steps_sigmas}
"""Number of steps -> sigmas (steps + 1,)."""


def _constant(num_frames: int, minimum: float, maximum: float) -> Tensor:
    return constant_guidance(num_frames, maximum)


CURVES: dict[Curve, Callable[[int, float, float], Tensor]] = {
    "linear": linear_guidance,
    "constant": _constant,
    "triangle": triangle_guidance,
    "trapezoid": trapezoid_guidance,
}
"""(number of frames, minimum, maximum) -> guidance scales (T,). The order is that of widgets."""

_CHURNING = ("euler", "heun")


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Sampling inputs derived from resolved settings: sigmas (n + 1,), guidance (T,), its interval, and options of the
    sampler."""

    sigmas: Tensor
    guidance: Tensor
    interval: GuidanceInterval | None
    options: dict[str, float]


def plan_sampling(settings: Settings) -> SamplingPlan:
    """Derive and check everything about sampling before any network runs. Raises InputError."""
    sampler_named(settings.sampler)
    if settings.churn and settings.sampler not in _CHURNING:
        raise InputError(
            f"churn {settings.churn} with sampler {settings.sampler}, which has none: "
            f"set churn to 0 or choose {' or '.join(_CHURNING)}"
        )
    interval = GuidanceInterval(*settings.guidance_interval) if settings.guidance_interval else None
    options = {"s_churn": settings.churn} if settings.churn else {}
    return SamplingPlan(sigmas_for(settings), guidance_for(settings), interval, options)


def sampler_named(name: str) -> Sampler:
    """An entry of `SAMPLERS`. Raises InputError listing them for an unknown name."""
    if name not in SAMPLERS:
        raise InputError(f"sampler {name!r} is not known: choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def sigmas_for(settings: Settings) -> Tensor:
    """The noise levels (n + 1,) that resolved settings ask for."""
    if settings.sigmas is not None:
        return sigmas_from_list(settings.sigmas)
    return SCHEDULES[settings.schedule](settings.steps)


def guidance_for(settings: Settings) -> Tensor:
    """The guidance scales (T,) that resolved settings ask for."""
    frames = settings.frames
    if settings.guidance_points is not None:
        return curve_guidance(frames, settings.guidance_points)
    return CURVES[settings.guidance_curve](frames, settings.min_guidance, settings.max_guidance)
