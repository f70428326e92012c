"""Noise schedules from the values of widgets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..svd_core.errors import InputError
from ..svd_core.sampling import sigmas_from_list
from ..svd_core.settings import MAX_STEPS
from .checks import in_widget, number_from, words_of

if TYPE_CHECKING:
    from torch import Tensor


def denoised_part(schedule: Callable[[int], Tensor], steps: int, denoise: float) -> Tensor:
    """The last `steps` steps of a schedule of steps / denoise steps, as in ComfyUI's KSampler. Raises InputError for a
    schedule of more than MAX_STEPS."""
    whole = int(steps / denoise)
    if whole > MAX_STEPS >= steps:
        least, most = math.ceil(100 * steps / MAX_STEPS) / 100, int(MAX_STEPS * denoise)
        raise InputError(
            f"denoise {denoise:g} takes the last {steps} of {whole} steps, and {MAX_STEPS} are the most: raise denoise "
            f"to {least:g}, or lower steps to {most}"
        )
    return schedule(whole)[-(steps + 1) :]


def parse_levels(text: str | None) -> Tensor | None:
    """A schedule from numbers separated by commas or spaces; None for empty text. Raises InputError."""
    words = words_of(text)
    return in_widget("levels", lambda: sigmas_from_list([number_from(w, "levels") for w in words])) if words else None


def require_order(start_step: int | None, end_step: int | None) -> None:
    """Raise InputError if the start and end steps select no steps; None means not known before the run."""
    if not all(isinstance(step, int | None) for step in (start_step, end_step)):
        return  # not integers, which ComfyUI has already reported
    start, end = start_step or 0, end_step or 0
    if start < 0 or end < 0 or (end_step and start >= end):
        raise InputError(
            f"start step {start} to end step {end} leaves nothing to do: give an end after the start, or 0"
        )
