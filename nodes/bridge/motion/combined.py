"""All methods of a MODEL together: how they wrap its evaluations, what they allow, and how one more is added.

Every method wraps a guided denoiser, and ComfyUI's guiders let a MODEL wrap exactly that (PREDICT_NOISE).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrappersMP

from ....svd_core.errors import InputError
from ....svd_core.motion import ClipDenoiser, Part, Windows
from .denoiser import HostDenoiser
from .methods import BetweenMethod, BrushMethod, CurveMethod, LongTakeMethod, Method, Values

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor

KEY = "stable_video_motion"
"""Key of all wrappers that the methods put on a MODEL."""

ASKED = "stable_video_asked"
"""Key in the options of one evaluation: "forward" or "backward" if a sampler asks for one direction only, or the `Part`
of the clip that it asks for."""


@dataclass(frozen=True, slots=True, eq=False)
class CombinedMethods:
    """All methods of a MODEL. ComfyUI calls it in place of the guider's own evaluation."""

    methods: tuple[Method, ...]

    def __call__(
        self, executor: Callable[..., Tensor], x: Tensor, sigma: Tensor, options: dict[str, Any], seed: int | None
    ) -> Tensor:
        positive, asked = executor.class_obj.conds["positive"][0], options.get(ASKED)
        clip_frames = positive.get("num_video_frames", x.shape[0])
        total = asked.total if isinstance(asked, Part) else x.shape[0]
        if self.windows and positive.get("num_video_frames", total) != total:
            raise InputError(
                f"the latent holds {total} frames and the conditioning is for {clip_frames}: take positive, negative "
                "and latent from Stable Video Long Take"
            )
        self.require_one_clip(total // clip_frames)
        if asked is None and _adds_post_guidance(executor.class_obj.model_options, options):
            self.require_one_evaluation(total)
        seen = self.windows.length if self.windows else clip_frames
        host = HostDenoiser(executor, options, seed, clip_frames, seen)
        denoise = reduce(lambda inner, method: method.wrap(inner, host), self.methods, host)
        return _evaluation(denoise, asked)(x, sigma)

    def require_one_evaluation(self, frames: int) -> None:
        """Raise InputError if a clip of this many frames takes more than one model evaluation per step."""
        if any(_evaluates_repeatedly(each, frames) for each in self.methods):
            raise InputError(
                "a CFG++ sampler wants one answer of the model for each step, and In-between, Loop and Long Take by "
                "fusion ask for several: choose a sampler without cfg_pp, or in turns on that node"
            )

    def require_one_clip(self, clips: int) -> None:
        """Raise InputError if several clips are given to a method that was set up for one."""
        wanted = [name for name in map(_made_for_one_clip, self.methods) if name]
        if clips > 1 and wanted:
            raise InputError(f"the latent holds {clips} clips and the model is set up for {wanted[0]}: give one clip")

    @property
    def windows(self) -> Windows | None:
        return next((method.windows for method in self.methods if isinstance(method, LongTakeMethod)), None)


def _adds_post_guidance(own: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether the sampler of a run added a post-guidance function, as CFG++ does, to those of the MODEL."""
    before, now = (len(each.get("sampler_post_cfg_function", ())) for each in (own, options))
    return now > before


def _made_for_one_clip(method: Method) -> str:
    """What a method does to one clip only, empty if it does the same to each of several."""
    if isinstance(method, LongTakeMethod):
        return "one Long Take"
    if isinstance(method, BetweenMethod) and method.end is not None:
        return "one In-Between, to one end picture"
    if isinstance(method, BrushMethod) and len(method.brush.cells()) > 1:
        return "one Motion Brush, with a mask for each frame"
    return ""


def _evaluates_repeatedly(method: Method, frames: int) -> bool:
    """Whether each step takes more than one evaluation: two directions, or several windows if the clip is longer than
    one."""
    if isinstance(method, LongTakeMethod):
        return frames > method.windows.length
    return isinstance(method, BetweenMethod)


def _evaluation(denoise: ClipDenoiser, asked: str | Part | None) -> Callable[..., Tensor]:
    """The part of a wrapped denoiser that a sampler asks for."""
    if asked is None:
        return denoise
    return denoise.part(asked) if isinstance(asked, Part) else getattr(denoise, asked)


def methods_of(patcher: ModelPatcher) -> tuple[Method, ...]:
    carried = patcher.get_wrappers(WrappersMP.PREDICT_NOISE, KEY)
    return carried[0].methods if carried else ()


def windows_of(patcher: ModelPatcher) -> Windows | None:
    """The windows of a MODEL set up for a Long Take, else None."""
    return CombinedMethods(methods_of(patcher)).windows


def require_one_clip(patcher: ModelPatcher, clips: int) -> None:
    """Raise InputError, before anything is loaded, if a MODEL's methods were set up for one clip and get several."""
    CombinedMethods(methods_of(patcher)).require_one_clip(clips)


def require_sampler(patcher: ModelPatcher, name: str, frames: int) -> None:
    """Raise InputError, before anything is loaded, for a ComfyUI sampler that a MODEL's methods do not support on a
    clip of this many frames. With "in turns" each sampler run takes one evaluation per step."""
    if name.endswith("_cfg_pp") and not patcher.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        CombinedMethods(methods_of(patcher)).require_one_evaluation(frames)


def guidance_of(patcher: ModelPatcher) -> Values | None:
    """The guidance curve of a MODEL, else None."""
    curves = (method.guidance for method in methods_of(patcher) if isinstance(method, CurveMethod))
    return next(curves, None)


def with_method(patcher: ModelPatcher, method: Method) -> ModelPatcher:
    """A copy of the MODEL with one more method, which replaces one of the same kind.

    Raises InputError for methods that cannot be combined.
    """
    others = [each for each in methods_of(patcher) if type(each) is not type(method)]
    methods = tuple(sorted([*others, method], key=lambda each: each.order))
    kinds = {type(each) for each in methods}
    if {BetweenMethod, LongTakeMethod} <= kinds:
        raise InputError(
            "Long Take looks forward only and In-between or Loop needs the end: put only one of them on a model"
        )
    patched = patcher.clone()
    patched.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, KEY)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, CombinedMethods(methods))
    return patched
