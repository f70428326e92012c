"""Approximate speed-ups on a native MODEL that skip part of the computation; feature reuse logs what it skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_patcher
from comfy.patcher_extension import WrappersMP

from ...svd_core.errors import InputError
from ...svd_core.model.reuse import FeatureReuse
from .model import REUSE, StableVideoModel

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor

    from ...svd_core.sampling import GuidanceInterval

KEY = "stable_video_shortcuts"

logger = logging.getLogger(__name__)


def require_reusable(patcher: ModelPatcher) -> None:
    """Raise InputError for a MODEL whose network does not support feature reuse."""
    if not isinstance(patcher.model, StableVideoModel):
        raise InputError(
            "reuse needs the MODEL of Load Stable Video, and this one is ComfyUI's own: load it there, or set reuse "
            "to 0"
        )


def with_reuse(patched: ModelPatcher, threshold: float) -> None:
    """Patch the MODEL so that every run reuses deep features from step to step."""
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _Reusing(threshold))


def with_interval(patched: ModelPatcher, interval: GuidanceInterval) -> None:
    """Patch the MODEL so that every run is guided within the interval only; a step outside takes one pass."""
    patched.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, KEY)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, _GuidedWithin(interval))


@dataclass(frozen=True, slots=True)
class _Reusing:
    """Wrapper around a run, whose cached features are its own and freed at its end."""

    threshold: float

    def __call__(self, executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        guider = executor.class_obj
        given = guider.model_options
        if "multigpu_clones" in given:
            logger.info("reuse %g: left out, because several devices share the run", self.threshold)
            return executor(*args, **kwargs)
        reuse = FeatureReuse(self.threshold)
        guider.model_options = comfy.model_patcher.create_model_options_clone(given)
        guider.model_options["transformer_options"][REUSE] = reuse
        try:
            return executor(*args, **kwargs)
        finally:
            guider.model_options = given
            reuse.forget()
            logger.info("%s", reuse.report())


@dataclass(frozen=True, slots=True)
class _GuidedWithin:
    """Wrapper around one evaluation: outside the interval the guider's scale is 1."""

    interval: GuidanceInterval

    def __call__(
        self, executor: Callable[..., Tensor], x: Tensor, sigma: Tensor, options: dict[str, Any], seed: int | None
    ) -> Tensor:
        if bool(self.interval.holds(sigma.cpu()).all()):
            return executor(x, sigma, options, seed)
        guider = executor.class_obj
        scale = guider.cfg
        guider.cfg = 1.0
        try:
            return executor(x, sigma, _unguided(options), seed)
        finally:
            guider.cfg = scale


_GUIDING = ("sampler_cfg_function", "disable_cfg1_optimization")
"""Options that cause guidance whatever the scale."""


def _unguided(options: dict[str, Any]) -> dict[str, Any]:
    """The model's options for an evaluation of the conditional branch alone. Its result also stands for the other
    branch, which CFG++ samplers step with and for which ComfyUI would hand out zeros."""
    kept = {key: value for key, value in options.items() if key not in _GUIDING}
    return kept | {_BEFORE_GUIDANCE: [_both_conditional, *options.get(_BEFORE_GUIDANCE, [])]}


_BEFORE_GUIDANCE = "sampler_pre_cfg_function"


def _both_conditional(args: dict[str, Any]) -> list[Tensor]:
    conditional, _, *more = args["conds_out"]
    return [conditional, conditional, *more]
