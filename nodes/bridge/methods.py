"""Methods of `svd_core.motion` on a native MODEL, for every sampler and guider of ComfyUI.

Every method wraps a guided denoiser, and ComfyUI's guiders let a MODEL wrap exactly that (PREDICT_NOISE). Changes that
a method makes to the conditioning are applied to the run's own conditioning for one evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, Protocol

import comfy.conds
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ...svd_core.conditioning import Conditioning
from ...svd_core.config import LATENT_SCALE
from ...svd_core.errors import InputError
from ...svd_core.motion import (
    Between,
    Brush,
    Brushed,
    ClipDenoiser,
    LongTake,
    Part,
    Statistics,
    Windows,
    analytic_start,
    curve_values,
    lowered_sigmas,
    sample_in_turns,
    sample_sequential,
    with_curves,
)
from ..checks import whole_clips

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor

KEY = "stable_video_motion"
WAY = "stable_video_way"
"""Key in the options of one evaluation: "forward" or "backward" if a sampler asks for one direction only, or the `Part`
of the clip that it asks for."""

Change = Callable[[Conditioning], Conditioning]
Values = float | list
"""Input of `svd_core.motion.curve_values`."""


@dataclass(frozen=True, slots=True, eq=False)
class HostDenoiser:
    """The wrapped evaluation of a ComfyUI run as `model(x, sigma) -> denoised`, with optional conditioning changes.

    clip_frames is the length of one clip of the run, num_frames how many of its frames the network sees at a time.
    """

    executor: Callable[..., Tensor]
    options: dict[str, Any]
    seed: int | None
    clip_frames: int
    num_frames: int
    changes: tuple[Change, ...] = field(default=())

    def told(self, change: Change) -> HostDenoiser:
        return replace(self, changes=(*self.changes, change))

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        guider = self.executor.class_obj
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        before = guider.conds
        guider.conds = self._changed(before)
        try:
            return self.executor(x, sigma, self.options, self.seed)
        finally:
            guider.conds = before

    @property
    def conditioning(self) -> Conditioning:
        """The first positive entry, one row per clip, without the methods' changes."""
        return read_conditioning(self.executor.class_obj.conds["positive"][0], self.clip_frames)

    def _changed(self, conds: dict[str, list]) -> dict[str, list]:
        if not self.changes and self.num_frames == self.clip_frames:
            return conds
        return {
            role: [self._entry(role, entry) for entry in given] if given else given for role, given in conds.items()
        }

    def _entry(self, role: str, entry: dict[str, Any]) -> dict[str, Any]:
        """A copy of one entry of the run's conditioning, changed from its own values."""
        own = read_conditioning(entry, self.clip_frames)
        told = reduce(lambda given, change: change(given), self.changes, own).repeat_frames(self.num_frames)
        return write_conditioning(entry, told, self.num_frames, pictured=_is_pictured(role, own))


def _is_pictured(role: str, told: Conditioning) -> bool:
    """Whether an entry shows the model a picture. Dual CFG has a middle one, which may or may not."""
    return role == "positive" or (role != "negative" and bool(told.first.any()))


def read_conditioning(entry: dict[str, Any], clip_frames: int) -> Conditioning:
    """An entry of a run's conditioning as prepared by ComfyUI, one row per clip."""
    made = entry["model_conds"]
    context, first, vector = (made[name].cond for name in ("c_crossattn", "c_concat", "y"))
    first = first[::clip_frames]
    rows = [each if len(each) in (1, len(first)) else each[::clip_frames] for each in (context, vector)]
    context, vector = (each.expand(len(first), *each.shape[1:]) for each in rows)
    return Conditioning(context, first, vector)


def write_conditioning(entry: dict[str, Any], told: Conditioning, num_frames: int, *, pictured: bool) -> dict[str, Any]:
    """A copy of the entry with the rows (N, ...) of `told`: only the vector if it is not `pictured`."""
    made = {"y": comfy.conds.CONDRegular(told.vector), "num_video_frames": comfy.conds.CONDConstant(num_frames)}
    if pictured:
        made["c_crossattn"] = comfy.conds.CONDCrossAttn(told.context)
        made["c_concat"] = comfy.conds.CONDNoiseShape(told.first)
    return {**entry, "model_conds": {**entry["model_conds"], **made}}


# Methods


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
        return denoise.told(lambda told: with_curves(told, *curves))


@dataclass(frozen=True, slots=True, eq=False)
class BetweenMethod:
    """A clip between two pictures. end is the conditioning of the last one, None for the first again, a loop;
    sequential as set by `both_ways_in_turns`."""

    end: Conditioning | None
    sequential: bool
    order = 1

    def wrap(self, denoise: ClipDenoiser, host: HostDenoiser) -> ClipDenoiser:
        if self.end is None or self.sequential:
            require_one_start(host)
        start = host.conditioning
        end = start if self.end is None else self.end
        held = (start.first * LATENT_SCALE, end.first.to(start.first) * LATENT_SCALE) if self.sequential else None
        return Between(denoise, end, held, loop=self.end is None)


def require_one_start(host: HostDenoiser) -> None:
    """Raise InputError if the entries of positive show different pictures."""
    told = [read_conditioning(entry, host.clip_frames) for entry in host.executor.class_obj.conds["positive"]]
    if any(not torch.equal(getattr(each, name), getattr(told[0], name)) for each in told[1:] for name in _PICTURE):
        raise InputError(
            f"positive holds {len(told)} entries of different pictures, and Loop and in turns start from one: connect "
            "positive of one Stable Video Conditioning, or choose fusion on In-Between"
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
        colour = Statistics.of(host.conditioning.first * LATENT_SCALE)
        device = host.executor.class_obj.model_patcher.load_device
        return LongTake(denoise, self.windows, device, colour, self.colour_hold, self.continued)


@dataclass(frozen=True, slots=True, eq=False)
class BrushMethod:
    """Motion only under the brush; still (1, 4, h, w), in sampler units, is held elsewhere."""

    brush: Brush
    still: Tensor
    order = 3

    def wrap(self, denoise: ClipDenoiser, host: HostDenoiser) -> ClipDenoiser:
        sigmas = host.options["transformer_options"]["sample_sigmas"]
        levels = sigmas[sigmas > 0]
        return Brushed(denoise, self.brush.cells(), self.still, float(levels[-1]), float(levels[0]))


@dataclass(frozen=True, slots=True, eq=False)
class Methods:
    """All methods of a MODEL. ComfyUI calls it in place of the guider's own evaluation."""

    methods: tuple[Method, ...]

    def __call__(
        self, executor: Callable[..., Tensor], x: Tensor, sigma: Tensor, options: dict[str, Any], seed: int | None
    ) -> Tensor:
        positive, way = executor.class_obj.conds["positive"][0], options.get(WAY)
        clip_frames = positive.get("num_video_frames", x.shape[0])
        total = way.total if isinstance(way, Part) else x.shape[0]
        if self.windows and positive.get("num_video_frames", total) != total:
            raise InputError(
                f"the latent holds {total} frames and the conditioning is for {clip_frames}: take positive, negative "
                "and latent from Stable Video Long Take"
            )
        self.require_one_clip(total // clip_frames)
        if way is None and _catches_guidance(executor.class_obj.model_options, options):
            self.require_one_answer(total)
        seen = self.windows.length if self.windows else clip_frames
        host = HostDenoiser(executor, options, seed, clip_frames, seen)
        denoise = reduce(lambda inner, method: method.wrap(inner, host), self.methods, host)
        return _asked(denoise, way)(x, sigma)

    def require_one_answer(self, frames: int) -> None:
        """Raise InputError if a clip of this many frames takes more than one model evaluation per step."""
        if any(_asks_again(each, frames) for each in self.methods):
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


def _catches_guidance(own: dict[str, Any], options: dict[str, Any]) -> bool:
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


def _asks_again(method: Method, frames: int) -> bool:
    """Whether each step takes more than one evaluation: two directions, or several windows if the clip is longer than
    one."""
    if isinstance(method, LongTakeMethod):
        return frames > method.windows.length
    return isinstance(method, BetweenMethod)


def _asked(denoise: ClipDenoiser, way: str | Part | None) -> Callable[..., Tensor]:
    if way is None:
        return denoise
    return denoise.part(way) if isinstance(way, Part) else getattr(denoise, way)


def methods_of(patcher: ModelPatcher) -> tuple[Method, ...]:
    carried = patcher.get_wrappers(WrappersMP.PREDICT_NOISE, KEY)
    return carried[0].methods if carried else ()


def windows_of(patcher: ModelPatcher) -> Windows | None:
    """The windows of a MODEL set up for a Long Take, else None."""
    return Methods(methods_of(patcher)).windows


def require_one_clip(patcher: ModelPatcher, clips: int) -> None:
    """Raise InputError, before anything is loaded, if a MODEL's methods were set up for one clip and get several."""
    Methods(methods_of(patcher)).require_one_clip(clips)


def require_sampler(patcher: ModelPatcher, name: str, frames: int) -> None:
    """Raise InputError, before anything is loaded, for a ComfyUI sampler that a MODEL's methods do not support on a
    clip of this many frames. With "in turns" each sampler run takes one evaluation per step."""
    if name.endswith("_cfg_pp") and not patcher.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        Methods(methods_of(patcher)).require_one_answer(frames)


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
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, Methods(methods))
    return patched


# Wrappers around a run


def both_ways_in_turns(patched: ModelPatcher) -> None:
    """Patch the MODEL to run ViBiDSampler in place of the chosen sampler."""
    _sample_with(patched, lambda chosen: _sample_both_ways)


def windows_in_turns(patched: ModelPatcher, windows: Windows) -> None:
    """Patch the MODEL so that the chosen sampler makes one window after the other."""
    _sample_with(patched, lambda chosen: partial(_sample_windows, windows=windows, sampler=_repeatable(chosen)))


def at_once(patched: ModelPatcher) -> None:
    """Undo `both_ways_in_turns` and `windows_in_turns`: run the chosen sampler unchanged."""
    patched.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)


def _sample_with(patched: ModelPatcher, instead: Callable[[Any], Callable[..., Tensor]]) -> None:
    """Replace the sampler by `instead(sampler)`, a function with k-diffusion's signature."""

    def sample(executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        chosen = executor.class_obj
        replaced = comfy.samplers.KSAMPLER(instead(chosen), {}, getattr(chosen, "inpaint_options", {}))
        return replaced.sample(*args, **kwargs)

    at_once(patched)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, sample)


def _sample_both_ways(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
) -> Tensor:
    return sample_sequential(_BothWays(model, extra_args), x, sigmas, extra_args, callback, disable)


@dataclass(frozen=True, slots=True, eq=False)
class _BothWays:
    """ComfyUI's model of a run, evaluated in one direction at a time."""

    model: Callable[..., Tensor]
    extra_args: dict[str, Any]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._ask("forward", x, sigma)

    def backward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._ask("backward", x, sigma)

    def _ask(self, way: str, x: Tensor, sigma: Tensor) -> Tensor:
        options = {**self.extra_args["model_options"], WAY: way}
        return self.model(x, sigma, **{**self.extra_args, "model_options": options})


def _sample_windows(
    model: comfy.samplers.KSamplerX0Inpaint,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    windows: Windows,
    sampler: Callable[..., Tensor],
) -> Tensor:
    return sample_in_turns(_InParts(model), x, sigmas, extra_args, callback, disable, windows=windows, sampler=sampler)


def _repeatable(chosen: Any) -> Callable[..., Tensor]:
    """A ComfyUI sampler as a function with k-diffusion's signature. Raises InputError if it is not a KSAMPLER."""
    if not isinstance(chosen, comfy.samplers.KSAMPLER):
        raise InputError(
            f"a Long Take in turns runs a sampler once for each window, and {type(chosen).__name__} is not made for "
            "that: choose another sampler, or fusion on Stable Video Long Take"
        )
    return partial(chosen.sampler_function, **chosen.extra_options)


@dataclass(frozen=True, slots=True, eq=False)
class _InParts:
    """ComfyUI's model of a run, split into windows."""

    model: comfy.samplers.KSamplerX0Inpaint

    def part(self, part: Part) -> _OfPart:
        return _OfPart(self.model, part)


class _OfPart(comfy.samplers.KSamplerX0Inpaint):
    """ComfyUI's model of a run, restricted to one window, for the sampler of that window."""

    def __init__(self, whole: comfy.samplers.KSamplerX0Inpaint, part: Part) -> None:
        super().__init__(whole.inner_model, whole.sigmas)
        self.latent_image, self.noise = whole.latent_image[part.frames], whole.noise[part.frames]
        self.asked = part

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        denoise_mask: Tensor | None,
        model_options: dict[str, Any],
        seed: int | None = None,
    ) -> Tensor:
        mask = denoise_mask if denoise_mask is None or len(denoise_mask) == 1 else denoise_mask[self.asked.frames]
        return super().__call__(x, sigma, mask, {**model_options, WAY: self.asked}, seed)


def in_windows(patched: ModelPatcher, length: int) -> None:
    """Patch the MODEL so that ComfyUI reserves memory for one window, not for the whole clip."""

    def prepare(executor: Callable[..., Any], model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        shown = [min(noise_shape[0], length), *noise_shape[1:]]
        return executor(model, shown, *args, **kwargs)

    patched.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, KEY)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, prepare)


def from_lower(patched: ModelPatcher, sigma_start: float) -> None:
    """Patch the MODEL so that runs start at a lower noise level, and a new clip from its picture (Analytic-Init)."""

    def sample(
        executor: Callable[..., Tensor],
        noise: Tensor,
        latent: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callable[..., Any] | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
        **more: Any,
    ) -> Tensor:
        begun = bool(latent.any())
        if begun and sigmas[0] > sigma_start and not bool(noise.any()):
            raise InputError(
                "un-stick starts a whole run lower, and this one goes on from a latent without adding noise: sample in "
                "one part, or set un-stick to 0"
            )
        if sigmas[0] > sigma_start and not begun:
            latent = _picture_start(executor.class_obj.conds["positive"][0], latent, seed or 0)
        lowered = lowered_sigmas(sigmas, sigma_start)
        return executor(noise, latent, sampler, lowered, denoise_mask, callback, disable_pbar, seed, **more)

    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample)


def _picture_start(positive: dict[str, Any], latent: Tensor, seed: int) -> Tensor:
    """Starting latents from the picture, unscaled, shaped like the given ones."""
    frames = positive.get("num_video_frames", latent.shape[0])
    first = positive["concat_latent_image"].float()
    clips = whole_clips(latent.shape[0], frames)
    first = first[::frames] if len(first) > 1 else first.expand(clips, -1, -1, -1)
    return (analytic_start(first * LATENT_SCALE, frames, seed) / LATENT_SCALE).to(latent)
