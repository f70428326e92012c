"""Noise schedules: falling noise levels, one more than there are steps, ending in 0.

A sigma is the standard deviation of the noise in a latent, in sampler units (x 0.18215), in which the clean latent's
own is about 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import InputError
from ..settings import MAX_STEPS, is_whole

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 700.0, 7.0
"""Schedule parameters of the released models (spec 5.2)."""

ALIGN_YOUR_STEPS_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
"""Ten optimised steps for SVD, from "Align Your Steps" (arXiv 2404.14507)."""


def edm_sigmas(steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO) -> Tensor:
    """The schedule of Karras et al. (arXiv 2206.00364, equation 5), the default of the released models.

    Returns (steps + 1,) float32: sigma_max, ..., sigma_min, 0; a single step starts at sigma_max. Computed in float32
    throughout, like the reference, so sigma_max is exact to one unit in the last place.
    Raises InputError unless 1 <= steps <= MAX_STEPS, 0 < sigma_min < sigma_max < inf and 0 < rho < inf, and if float32
    cannot hold such levels or tell them apart.
    """
    _check_steps(steps)
    if not 0 < sigma_min < sigma_max < math.inf:
        raise InputError(
            f"sigma_min {sigma_min} and sigma_max {sigma_max} do not satisfy 0 < sigma_min < sigma_max: "
            f"{SIGMA_MIN} and {SIGMA_MAX:g} are usual"
        )
    if not 0 < rho < math.inf:
        raise InputError(f"rho {rho} is not a finite number above 0: {RHO:g} is usual")
    low, high = _power(sigma_min, 1 / rho), _power(sigma_max, 1 / rho)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float32, device="cpu")
    sigmas = _ending_in_zero((high + ramp * (low - high)) ** rho)
    if _first_fault(sigmas, lambda before, after: after < before):
        raise InputError(
            f"rho {rho} makes no falling noise levels in float32 of {steps} steps from {sigma_max:g} to {sigma_min:g}: "
            f"{RHO:g} is usual, and fewer steps or another range may do"
        )
    return sigmas


def _power(base: float, exponent: float) -> float:
    """base ** exponent, or infinity if it is too large for a float."""
    try:
        return base**exponent
    except OverflowError:
        return math.inf


def align_your_steps_sigmas(steps: int) -> Tensor:
    """The optimised SVD schedule of "Align Your Steps" (arXiv 2404.14507), log-linearly resampled (spec 9.3).

    Returns (steps + 1,) float32: steps + 1 levels from 700 to 0.002, the last of which is replaced by 0.
    Raises InputError unless 1 <= steps <= MAX_STEPS.
    """
    _check_steps(steps)
    knots = torch.tensor(ALIGN_YOUR_STEPS_SVD, dtype=torch.float64, device="cpu").log()
    position = torch.linspace(0, len(knots) - 1, steps + 1, dtype=torch.float64, device="cpu")[:-1]
    knot = position.long()
    return _ending_in_zero(torch.lerp(knots[knot], knots[knot + 1], position - knot).exp().float())


def sigmas_from_list(values: Sequence[float]) -> Tensor:
    """A schedule from a list of strictly falling numbers above 0, with or without the 0 at the end.

    Returns (steps + 1,) float32 ending in 0. Raises InputError, naming the first fault, for anything else.
    """
    levels = [float(value) for value in values]
    if levels and levels[-1] == 0:
        levels.pop()
    if not levels:
        raise InputError("no sigma above 0 was given: list falling noise levels, such as 700, 20, 1")
    _check_steps(len(levels))
    sigmas = torch.tensor(levels, dtype=torch.float32, device="cpu")
    for before, after in pairwise([math.inf, *sigmas.tolist()]):
        if not 0 < after < before:
            raise InputError(f"sigma {after:g} after {before:g}: list finite falling numbers above 0")
    return _ending_in_zero(sigmas)


def check_sigmas(sigmas: Tensor, *, may_rise: bool = False) -> None:
    """Raise InputError, naming the first fault, unless sigmas (n + 1,) are finite, above 0 (the last may be 0) and, if
    not `may_rise`, never rise. Levels may repeat, as they do when a table has fewer levels than there are steps."""
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1 or not len(sigmas):
        given = f"shape {tuple(sigmas.shape)}" if isinstance(sigmas, Tensor) else f"class {type(sigmas).__name__}"
        raise InputError(f"sigmas of {given} are not a tensor (n + 1,): give falling noise levels, as edm_sigmas does")
    fault = _first_fault(sigmas, lambda before, after: may_rise or after <= before)
    if fault:
        raise InputError(f"sigma {fault}: give finite falling numbers, of which the last alone may be 0")


def _first_fault(sigmas: Tensor, follows: Callable[[float, float], bool]) -> str:
    """Describe the first level that is not finite and above 0 (the last may be 0) or does not satisfy
    `follows(before, level)`; "" if there is none."""
    for before, after in pairwise([math.inf, *sigmas.tolist()]):
        if not (0 <= after < math.inf and before > 0 and follows(before, after)):
            return f"{after:g} after {before:g}"
    return ""


def cut_sigmas(sigmas: Tensor, start: int = 0, end: int | None = None) -> Tensor:
    """The part of a schedule for steps start, start + 1, ..., end - 1, shaped (end - start + 1,).

    Leaving out the first steps makes video from video: the given clip is noised to the first remaining sigma, and the
    later that is, the more of the clip is kept. Leaving out the last steps returns a latent that is still noisy. Euler
    and Heun without churn give the same result in two adjoining parts as in one run; DPM++ 2M starts the second part
    without its memory of the first.
    Raises InputError unless 0 <= start < end <= steps.
    """
    steps = len(sigmas) - 1
    last = steps if end is None else end
    if not 0 <= start < last <= steps:
        raise InputError(f"steps {start} to {last} are not a part of {steps} steps: use 0 <= start < end <= {steps}")
    return sigmas[start : last + 1]


def noisy_start(noise: Tensor, sigmas: Tensor, latent: Tensor | None = None) -> Tensor:
    """The state (N, 4, h, w) that sampling starts from: float32, in sampler units.

    noise is unit normal. Without a latent it is scaled by sqrt(1 + sigmas[0]**2), as in the reference (spec 0, row 8).
    With a latent (N, 4, h, w), in sampler units (x 0.18215), it is scaled by sigmas[0] and added to the latent.
    """
    level = sigmas[0].to(noise.device, torch.float32)
    if latent is None:
        return noise.float() * torch.sqrt(1 + level**2)
    return latent.to(noise.device, torch.float32) + level * noise.float()


def _ending_in_zero(levels: Tensor) -> Tensor:
    return torch.nn.functional.pad(levels, (0, 1))


def _check_steps(steps: int) -> None:
    if not is_whole(steps):
        raise InputError(f"{steps!r} steps are not a whole number: 25 are usual")
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"{steps} steps are outside 1 to {MAX_STEPS}: 25 are usual")
