"""Runs a decode as planned, or leaner if the planned memory is no longer free."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import out_of_memory
from .places import MODES, Mode, has_own_memory
from .plan import DecodePlan
from .stream import Stage, stream


def run_plan(stages: Sequence[Stage], latents: Tensor, plan: DecodePlan) -> Tensor:
    """Decode one clip (T, 4, h, w) -> (T, 3, H, W). If memory runs out because another program took some since
    planning, the next leaner settings are tried, with the same bits."""
    *quicker, leanest = _from(plan, latents.device)
    for mode, keep in quicker:
        try:
            return stream(stages, latents, mode, keep)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # Outside the handler, what the failed attempt held is free.
    return stream(stages, latents, *leanest)


def _from(plan: DecodePlan, device: torch.device) -> list[tuple[Mode, int]]:
    """The plan's own mode and keep, then leaner ones."""
    ways = [(plan.mode, plan.keep)]
    if plan.keep > 1:
        ways.append((plan.mode, 1))
    if has_own_memory(device):
        ways += [(mode, 1) for mode in MODES[MODES.index(plan.mode) + 1 :]]
    return ways
