"""Clips with control over what moves, where and for how long: the pipeline combined with the methods of `motion`.

    clip = render_controlled(svd, picture, Settings(seed=3), Controls(brush=mask, unstick=0.5))

Most controls can be combined; an InputError explains those that cannot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .conditioning import Conditioning
from .config import LATENT_SCALE
from .errors import InputError
from .model.reuse import FeatureReuse
from .motion import (
    Between,
    Brush,
    Brushed,
    ClipDenoiser,
    LongTake,
    Statistics,
    Windows,
    Wrap,
    analytic_start,
    composite,
    curve_values,
    hold_colours,
    lowered_sigmas,
    require_loop,
    sample_in_turns,
    sample_sequential,
    unstuck,
    with_curves,
)
from .pipeline import (
    Clip,
    Progress,
    ProgressFn,
    SamplingPlan,
    StableVideo,
    as_pixels,
    draw,
    plan_sampling,
    reported,
    reuse_for,
    sampler_named,
)
from .sampling import Sampler, noisy_start
from .settings import Settings, is_number, is_whole

Curve = float | Sequence[float] | Sequence[tuple[float, float]]
"""The input of `motion.curve_values`."""


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """What to control; the defaults control nothing.

    brush: mask (H, W) or (T, H, W) in [0, 1] at the clip's size, 0 is still. feather: pixels over which the clip fades
    in next to still regions. end: the picture to end on, of the clip's size. loop: end on the first picture and drop
    its repetition, which leaves one frame less. sequential: alternate between both ends (ViBiDSampler) instead of
    blending (TRF). window: frames per window for clips longer than the model's own, made one window after the other; 0
    is the model's number. fused: instead blend windows that share `overlap` frames (0: half a window) at every step.
    colour_hold: 0 to 1, how firmly windows keep the first frame's colours. continued: a clip (T, H, W, 3) in [0, 1] to
    continue, whose last frame (or last `overlap` frames if fused) begins the new one. unstick: strength 0 to 1.
    guidance, motion_bucket, augmentation: curves.
    """

    brush: Any | None = None
    feather: int = 4
    end: Any | None = None
    loop: bool = False
    sequential: bool = False
    window: int | None = None
    fused: bool = False
    overlap: int = 0
    colour_hold: float = 1.0
    continued: np.ndarray | None = None
    unstick: float = 0.0
    guidance: Curve | None = None
    motion_bucket: Curve | None = None
    augmentation: Curve | None = None

    def __post_init__(self) -> None:
        if self.loop and self.end is not None:
            raise InputError("a loop ends on its first picture and an end picture was given: choose one of them")
        if self.bounded and self.window is not None:
            raise InputError("an end is not known to windows that look forward only: leave out window, or loop and end")
        if self.continued is not None and self.window is None:
            raise InputError("a clip is continued in windows: give a window, 0 for the model's own length")
        if (self.fused or self.overlap) and self.window is None:
            raise InputError("fused and overlap are about windows: give a window, 0 for the model's own length")
        self._check_numbers()
        if self.sequential and not self.bounded:
            raise InputError("sequential is a way to reach an end: give an end picture or loop, or leave it out")
        if not 0 <= self.colour_hold <= 1:
            raise InputError(f"colour hold {self.colour_hold} is outside 0 to 1: 1 is usual")

    def _check_numbers(self) -> None:
        for name in ("feather", "overlap", "window"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not is_whole(value) or value < 0):
                raise InputError(f"{name} {value!r} is not a whole number of 0 or more: give one")
        for name in ("colour_hold", "unstick"):
            if not is_number(getattr(self, name)):
                raise InputError(f"{name} {getattr(self, name)!r} is not a number: give one from 0 to 1")

    @property
    def bounded(self) -> bool:
        return self.loop or self.end is not None


def render_controlled(
    svd: StableVideo,
    image: Any,
    settings: Settings,
    controls: Controls,
    *,
    chunk: int | None = None,
    budget: int | None = None,
    callback: ProgressFn | None = None,
) -> Clip:
    """`StableVideo.render` with controls; without any, the same bits. Raises InputError for controls that do not fit
    the clip, if possible before any network runs."""
    report = callback or (lambda _: None)
    shot = _Shot.of(svd, image, settings, controls)
    size = (shot.settings.frames - controls.loop, shot.settings.height, shot.settings.width)
    svd.check_decode(size, chunk, budget, controls.loop)
    cond = shot.condition(report)
    reuse = reuse_for(shot.settings)
    latents = shot.sample(cond, report, reuse)
    report(Progress("decode", 0, 1))
    kept = latents[:-1] if controls.loop else latents
    frames = svd.decode_latents(kept, chunk=chunk, budget=budget, circular=controls.loop)
    frames = shot.finish(frames)
    report(Progress("decode", 1, 1))
    sigmas = tuple(shot.plan.sigmas.tolist())
    return Clip(frames, kept, shot.settings, sigmas, shot.fit_report, reported(reuse))


@dataclass(frozen=True, slots=True, eq=False)
class _Shot:
    """One clip being made: the request, checked, with every default filled in."""

    svd: StableVideo
    controls: Controls
    settings: Settings
    still: np.ndarray
    end: Tensor | None
    given: Tensor | None
    plan: SamplingPlan
    windows: Windows | None
    fit_report: str

    @classmethod
    def of(cls, svd: StableVideo, image: Any, settings: Settings, controls: Controls) -> _Shot:
        variant = svd.config.variant
        settings = settings.for_variant(variant)
        strength = unstuck(controls.unstick, settings.motion_bucket, settings.augmentation)
        chosen = {"motion_bucket": strength.motion_bucket, "augmentation": strength.augmentation}
        settings = dataclasses.replace(settings, **chosen)
        still, settings, fit_report = svd.fit(image, settings)
        plan = plan_sampling(settings)
        if controls.unstick > 0:
            plan = dataclasses.replace(plan, sigmas=lowered_sigmas(plan.sigmas, strength.sigma_start))
        windows = _windows(controls, variant.frames, settings.frames)
        seen = windows.length if windows else settings.frames
        plan = dataclasses.replace(plan, guidance=_guidance(controls, settings, seen))
        end = _end_pixels(svd, controls, settings)
        given = _given_pixels(svd, controls, settings, windows)
        shot = cls(svd, controls, settings, still, end, given, plan, windows, fit_report)
        shot.check()
        return shot

    @property
    def pixels(self) -> Tensor:
        return as_pixels(self.still)

    def check(self) -> None:
        if self.controls.loop:
            require_loop(self.settings.frames)
        if self.end is not None and self.settings.frames < 2:
            raise InputError("a clip of 1 frame has no end beside its start: ask for at least 2 frames")
        if self.controls.sequential and (self.settings.sampler != "euler" or self.settings.churn):
            raise InputError(
                f"sequential takes Euler steps of its own, and sampler {self.settings.sampler} with churn "
                f"{self.settings.churn:g} was asked for: set sampler to euler and churn to 0, or leave out sequential"
            )
        if self.brush is not None:
            self.brush.check(self.settings.frames, self.settings.height, self.settings.width)
        for curve in (self.controls.motion_bucket, self.controls.augmentation):
            if curve is not None:
                curve_values(curve, self.settings.frames)

    @property
    def brush(self) -> Brush | None:
        mask = self.controls.brush
        return None if mask is None else Brush(torch.as_tensor(np.asarray(mask, np.float32)))

    def condition(self, report: ProgressFn) -> Conditioning:
        settings, frames = self.settings, self.settings.frames
        report(Progress("condition", 0, 1))
        noise = draw(self.pixels, settings)[0]
        cond = self._conditioned(self.pixels, noise)
        curves = [None if each is None else curve_values(each, frames) for each in self._motion_curves]
        report(Progress("condition", 1, 1))
        return with_curves(cond, *curves)

    @property
    def _motion_curves(self) -> tuple[Curve | None, Curve | None]:
        return self.controls.motion_bucket, self.controls.augmentation

    def _conditioned(self, pixels: Tensor, noise: Tensor) -> Conditioning:
        chosen = self.settings
        return self.svd.condition(pixels, chosen.fps, chosen.motion_bucket, chosen.augmentation, noise)

    def sample(self, cond: Conditioning, report: ProgressFn, reuse: FeatureReuse | None) -> Tensor:
        settings, plan, steps = self.settings, self.plan, len(self.plan.sigmas) - 1
        noise = draw(self.pixels, settings)[1]
        report(Progress("sample", 0, steps))

        def step_done(state: dict[str, Any]) -> None:
            report(Progress("sample", state["i"] + 1, steps))

        still = self._encoded(self.pixels)
        latent = analytic_start(still, settings.frames, settings.seed) if self.controls.unstick > 0 else None
        start = noisy_start(noise, plan.sigmas, latent).to("cpu" if self.windows else self.svd.device)
        wrap = _all(self._wraps(cond, still))
        more = {"seed": settings.seed, "interval": plan.interval, "wrap": wrap, "reuse": reuse, **plan.options}
        return self.svd.sample_from(start, cond, plan.sigmas, plan.guidance, self._sampler, step_done, **more).cpu()

    @property
    def _sampler(self) -> str | Sampler:
        if self.windows and not self.controls.fused:
            return partial(sample_in_turns, windows=self.windows, sampler=sampler_named(self.settings.sampler))
        return sample_sequential if self.controls.sequential and self.controls.bounded else self.settings.sampler

    def _encoded(self, pixels: Tensor) -> Tensor:
        """Encode pictures (n, 3, H, W) in [-1, 1] -> clean latents in sampler units, on the CPU."""
        with torch.inference_mode():
            return torch.cat(
                [self.svd.vae.encode(one.to(self.svd.device)).float().cpu() for one in pixels.split(1)]
            ) * (LATENT_SCALE)

    def _wraps(self, cond: Conditioning, still: Tensor) -> list[Wrap]:
        """The denoiser wrappers to apply, innermost first."""
        made = []
        if self.controls.bounded:
            made.append(self._between(cond, still))
        if self.windows:
            made.append(self._long_take(still))
        if self.brush is not None:
            cells, levels = self.brush.cells(), self.plan.sigmas[:-1].tolist()
            made.append(lambda denoise: Brushed(denoise, cells, still, levels[-1], levels[0]))
        return made

    def _between(self, cond: Conditioning, still: Tensor) -> Wrap:
        end, last = cond, still
        if self.end is not None:
            end = self._conditioned(self.end, draw(self.end, self.settings)[0])
            last = self._encoded(self.end)
        held = (still, last) if self.controls.sequential else None
        return lambda denoise: Between(denoise, end, held, self.controls.loop)

    def _long_take(self, still: Tensor) -> Wrap:
        given = None if self.given is None else self._encoded(self.given)
        colour, hold = Statistics.of(still), self.controls.colour_hold
        return lambda denoise: LongTake(denoise, self.windows, self.svd.device, colour, hold, given)

    def finish(self, frames: np.ndarray) -> np.ndarray:
        if self.windows:
            frames = hold_colours(frames, self.controls.colour_hold)
        if self.brush is None:
            return frames
        opacity = self.brush.opacity(self.controls.feather).numpy()
        return composite(frames, self.still, opacity[: len(frames)] if len(opacity) > 1 else opacity)


def _all(wraps: Sequence[Wrap]) -> Wrap:
    def wrap(denoise: ClipDenoiser) -> ClipDenoiser:
        return reduce(lambda inner, method: method(inner), wraps, denoise)

    return wrap


def _windows(controls: Controls, trained: int, frames: int) -> Windows | None:
    """The windows, checked against the clip's length; None without `window`."""
    if controls.window is None:
        return None
    length = controls.window or trained
    windows = Windows.of(length, controls.fused, controls.overlap)
    windows.starts(frames)
    return windows


def _guidance(controls: Controls, settings: Settings, frames: int) -> Tensor:
    """Guidance scales (frames,), where frames is the number that the network sees at once."""
    if controls.guidance is not None:
        return curve_values(controls.guidance, frames)
    return plan_sampling(dataclasses.replace(settings, frames=frames)).guidance


def _end_pixels(svd: StableVideo, controls: Controls, settings: Settings) -> Tensor | None:
    """The end picture (1, 3, H, W), or None. Raises InputError unless it already has the clip's size."""
    return None if controls.end is None else _of_its_size(svd, "the end picture", controls.end, settings)


def _given_pixels(svd: StableVideo, controls: Controls, settings: Settings, windows: Windows | None) -> Tensor | None:
    """The frames (n, 3, H, W) of the clip to continue that the first window starts with, or None."""
    if controls.continued is None:
        return None
    frames = _array("the clip to go on from", controls.continued)
    if frames.ndim != 4 or not len(frames):
        raise InputError(f"the clip to go on from has shape {frames.shape}: give frames (T, H, W, 3)")
    if len(frames) < windows.overlap:
        raise InputError(
            f"the clip to go on from has {len(frames)} frames and windows share {windows.overlap}: give a longer clip, "
            "or a smaller overlap"
        )
    name = "a frame to go on from"
    return torch.cat([_of_its_size(svd, name, frame, settings) for frame in frames[-windows.overlap :]])


def _array(name: str, given: Any) -> np.ndarray:
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a device
        raise InputError(f"{name} is no array ({type(given).__name__}): give one of NumPy") from error


def _of_its_size(svd: StableVideo, name: str, picture: Any, settings: Settings) -> Tensor:
    """A picture (1, 3, H, W) in [-1, 1]. Raises InputError unless it has the clip's size."""
    shape = _array(name, picture).shape
    if shape[:2] != (settings.height, settings.width):
        given = f"{shape[1]}x{shape[0]}" if len(shape) > 1 else f"no picture ({type(picture).__name__})"
        raise InputError(f"{name} is {given} and the clip {settings.width}x{settings.height}: fit it to the same size")
    return as_pixels(svd.fit(picture, settings)[0])
