"""Runs a decode as planned, or leaner if the planned memory is no longer free."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..device_memory import has_own_memory, leaner_if_full
from .places import MODES, Mode
from .plan import DecodePlan
from .stream import Stage, stream


def run_plan(stages: Sequence[Stage], latents: Tensor, plan: DecodePlan) -> Tensor:
    """Decode one clip (T, 4, h, w) -> (T, 3, H, W). If memory runs out because another program took some since
    planning, the next leaner settings are tried, with the same bits."""
    return leaner_if_full(lambda how: stream(stages, latents, *how), _from(plan, latents.device))


def _from(plan: DecodePlan, device: torch.device) -> list[tuple[Mode, int]]:
    """The plan's own mode and keep, then leaner ones."""
    settings = [(plan.mode, plan.keep)]
    if plan.keep > 1:
        settings.append((plan.mode, 1))
    if has_own_memory(device):
        settings += [(mode, 1) for mode in MODES[MODES.index(plan.mode) + 1 :]]
    return settings
