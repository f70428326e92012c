"""Sampling nodes: one that does it all, and separate sigmas and guider for ComfyUI's SamplerCustomAdvanced."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io

from ..svd_core.errors import InputError
from ..svd_core.sampling import (
    align_your_steps_sigmas,
    constant_guidance,
    curve_guidance,
    cut_sigmas,
    edm_sigmas,
    linear_guidance,
    sigmas_from_list,
    trapezoid_guidance,
    triangle_guidance,
)
from ..svd_core.sampling.schedule import RHO, SIGMA_MAX, SIGMA_MIN
from ..svd_core.settings import MAX_STEPS
from .bridge.guider import ClipGuider, Weights, replaced_guidance, require_sampled
from .bridge.plan import sampling_in_words
from .bridge.preview import Callback, ProgressCallback
from .bridge.variant import model_variant
from .checks import damaged_frames, in_widget, show, verdict
from .inputs import checked

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor

    from ..svd_core.config import Variant

MAX_GUIDANCE = 100.0

SCHEDULES: dict[str, Callable[[int], Tensor]] = {"edm": edm_sigmas, "align_your_steps": align_your_steps_sigmas}
"""User-facing names of the functions number of steps -> sigmas (steps + 1,)."""


def _constant(num_frames: int, minimum: float, maximum: float) -> Tensor:
    return constant_guidance(num_frames, maximum)


CURVES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": linear_guidance,
    "constant": _constant,
    "triangle": triangle_guidance,
    "trapezoid": trapezoid_guidance,
}
"""User-facing names of the functions (number of frames, minimum, maximum) -> weights (T,)."""


class StableVideoSampler(io.ComfyNode):
    """Samples a clip: everything between conditioning and decoding."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoSampler",
            display_name="Stable Video Sampler",
            category="video/stable video",
            description=(
                "Makes the clip. Left alone it runs as the checkpoint was released. Shows all frames moving while it "
                "works. Give it an encoded video and a denoise below 1 to rework that video."
            ),
            search_aliases=["svd sampler", "ksampler video", "image to video", "video to video", "linear cfg"],
            inputs=[
                io.Model.Input("model", tooltip="A Stable Video Diffusion model, from our loader or ComfyUI's."),
                io.Conditioning.Input("positive", tooltip="From Stable Video Conditioning."),
                io.Conditioning.Input("negative", tooltip="From Stable Video Conditioning."),
                io.Latent.Input(
                    "latent",
                    tooltip="Empty for a new clip, or an encoded video to rework. A noise mask says where.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Another seed moves another way. The same seed gives the same clip on every machine.",
                ),
                steps_input(),
                *guidance_inputs(),
                schedule_input(),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSAMPLER_NAMES,
                    default="euler",
                    tooltip="euler is what the model was released with. Ancestral and SDE ones move more and flicker.",
                ),
                _denoise_input(),
                *_part_inputs(),
                io.Boolean.Input(
                    "add_noise",
                    default=True,
                    advanced=True,
                    tooltip="Turn off to go on with a latent that is still noisy, from a sampler with an end step.",
                ),
                points_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The clip, for Stable Video Decode.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, guidance_points: str | None = "", start_step: int | None = 0, end_step: int | None = 0
    ) -> bool | str:
        return verdict(lambda: (parse_points(guidance_points), require_order(start_step, end_step)))

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        min_guidance: float,
        max_guidance: float,
        guidance_curve: str,
        schedule: str,
        sampler_name: str,
        denoise: float,
        start_step: int,
        end_step: int,
        add_noise: bool,
        guidance_points: str = "",
    ) -> io.NodeOutput:
        variant = model_variant(model)
        weights = guidance(variant, min_guidance, max_guidance, guidance_curve, guidance_points)
        guider = ClipGuider(model, positive, negative, weights)
        clips = guider.clips_of(latent)  # report mismatched inputs before showing anything
        sampler = comfy.samplers.sampler_object(sampler_name)
        guider.require(sampler, clips)
        show(cls, *sampling_in_words(model, latent["samples"]), replaced_guidance(model))
        whole = denoised_part(SCHEDULES[schedule], steps or variant.steps, denoise)
        samples = run(guider, sampler, cut_sigmas(whole, start_step, end_step or None), latent, seed, add_noise)
        return io.NodeOutput({**latent, "samples": samples, "num_video_frames": clips.num_frames})


class StableVideoSigmas(io.ComfyNode):
    """Noise levels for ComfyUI's advanced sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoSigmas",
            display_name="Stable Video Sigmas",
            category="video/stable video",
            description="The noise levels that Stable Video Diffusion steps through, for SamplerCustomAdvanced.",
            search_aliases=["svd scheduler", "edm sigmas", "karras", "align your steps", "custom sigmas"],
            inputs=[
                io.Model.Input("model", optional=True, tooltip="Only asked for its own number of steps."),
                steps_input(),
                schedule_input(),
                _denoise_input(),
                *_part_inputs(),
                _level_input("sigma_min", SIGMA_MIN, "Last level before 0 of the edm schedule. Higher leaves grain."),
                _level_input(
                    "sigma_max",
                    SIGMA_MAX,
                    "First level of the edm schedule. Lower keeps more of the picture and moves less.",
                ),
                _level_input("rho", RHO, "Of the edm schedule: higher spends more steps on detail, fewer on motion."),
                io.String.Input(
                    "levels",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Falling noise levels of your own, such as 700, 54, 16, 4, 1, 0.2. Replaces all of the above "
                        "but start and end step."
                    ),
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(
        cls, levels: str | None = "", start_step: int | None = 0, end_step: int | None = 0
    ) -> bool | str:
        return verdict(lambda: (parse_levels(levels), require_order(start_step, end_step)))

    @classmethod
    @checked
    def execute(
        cls,
        steps: int,
        schedule: str,
        denoise: float,
        start_step: int,
        end_step: int,
        sigma_min: float,
        sigma_max: float,
        rho: float,
        model: ModelPatcher | None = None,
        levels: str = "",
    ) -> io.NodeOutput:
        schedules = SCHEDULES | {"edm": partial(edm_sigmas, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)}
        given = parse_levels(levels)
        if given is None:
            given = denoised_part(schedules[schedule], steps or model_variant(model).steps, denoise)
        return io.NodeOutput(cut_sigmas(given, start_step, end_step or None))


class StableVideoGuider(io.ComfyNode):
    """Guidance that follows the frames, for ComfyUI's advanced sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoGuider",
            display_name="Stable Video Guider",
            category="video/stable video",
            description=(
                "Guidance with a weight for each frame, for SamplerCustomAdvanced. Batches of clips are told apart, on "
                "ComfyUI's own model too."
            ),
            search_aliases=["svd guider", "linear cfg", "video cfg guidance", "triangle cfg"],
            inputs=[
                io.Model.Input("model", tooltip="A Stable Video Diffusion model, from our loader or ComfyUI's."),
                io.Conditioning.Input("positive", tooltip="From Stable Video Conditioning."),
                io.Conditioning.Input("negative", tooltip="From Stable Video Conditioning."),
                *guidance_inputs(),
                points_input(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, guidance_points: str | None = "") -> bool | str:
        return verdict(lambda: parse_points(guidance_points))

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        min_guidance: float,
        max_guidance: float,
        guidance_curve: str,
        guidance_points: str = "",
    ) -> io.NodeOutput:
        weights = guidance(model_variant(model), min_guidance, max_guidance, guidance_curve, guidance_points)
        guider = ClipGuider(model, positive, negative, weights)
        show(cls, replaced_guidance(model))
        return io.NodeOutput(guider)


# Widgets shared by several nodes


OWN_STEPS = "More is slower and cleaner. 0 takes the checkpoint's own: 25 for SVD, 30 for SVD-XT."


def steps_input(default: int = 0, tooltip: str = OWN_STEPS) -> io.Int.Input:
    return io.Int.Input("steps", default=default, min=0, max=MAX_STEPS, tooltip=tooltip)


def guidance_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "min_guidance",
            default=0.0,
            min=0.0,
            max=MAX_GUIDANCE,
            step=0.1,
            round=0.01,
            tooltip=(
                "Weight of the first frame. 0 takes the checkpoint's own: 1 for SVD, 1.5 for SVD-XT. Higher holds "
                "closer to the picture."
            ),
        ),
        io.Float.Input(
            "max_guidance",
            default=0.0,
            min=0.0,
            max=MAX_GUIDANCE,
            step=0.1,
            round=0.01,
            tooltip=(
                "Weight of the last frame. 0 takes the checkpoint's own: 2.5 for SVD, 3 for SVD-XT. Lower lets the end "
                "of the clip drift off, higher makes it harsh and over-saturated."
            ),
        ),
        io.Combo.Input(
            "guidance_curve",
            options=list(CURVES),
            default="linear",
            tooltip=(
                "linear rises from first to last frame; constant is the maximum throughout; triangle is highest in the "
                "middle, for clips that return to the picture; trapezoid is highest but for the ends."
            ),
        ),
    ]


def points_input() -> io.String.Input:
    return io.String.Input(
        "guidance_points",
        default="",
        optional=True,
        advanced=True,
        tooltip=(
            "A curve of your own, as position:weight with position 0 the first frame and 1 the last, such as "
            "0:1, 0.5:3, 1:2. Replaces minimum, maximum and curve."
        ),
    )


def schedule_input(default: str = "edm") -> io.Combo.Input:
    return io.Combo.Input(
        "schedule",
        options=list(SCHEDULES),
        default=default,
        tooltip="edm is what the model was released with; align_your_steps looks better at 10 to 15 steps.",
    )


def _denoise_input() -> io.Float.Input:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="How much of a given video is made anew. 1 starts from noise alone; 0.5 keeps its shapes and motion.",
    )


def _part_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "start_step",
            default=0,
            min=0,
            max=MAX_STEPS,
            advanced=True,
            tooltip="Leave out the steps before this one. With a given video it keeps more of it, as denoise does.",
        ),
        io.Int.Input(
            "end_step",
            default=0,
            min=0,
            max=MAX_STEPS,
            advanced=True,
            tooltip="Stop before this step and hand on a latent that is still noisy. 0 runs to the end.",
        ),
    ]


def _level_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=0.0001, max=10000.0, step=0.001, round=0.0001, advanced=True, tooltip=tooltip
    )


# Schedules


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
    words = _words(text)
    return in_widget("levels", lambda: sigmas_from_list([_number(word, "levels") for word in words])) if words else None


def require_order(start_step: int | None, end_step: int | None) -> None:
    """Raise InputError if the start and end steps select no steps; None means not known before the run."""
    if not all(isinstance(step, int | None) for step in (start_step, end_step)):
        return  # not integers, which ComfyUI has already reported
    start, end = start_step or 0, end_step or 0
    if start < 0 or end < 0 or (end_step and start >= end):
        raise InputError(
            f"start step {start} to end step {end} leaves nothing to do: give an end after the start, or 0"
        )


# Guidance


def guidance(variant: Variant, minimum: float, maximum: float, curve: str, points: str) -> Weights:
    """Function from a clip's length to its weights; 0 takes the checkpoint's own. Raises InputError."""
    drawn = parse_points(points)
    if drawn:
        return lambda num_frames: curve_guidance(num_frames, drawn)
    ends = (minimum or variant.min_guidance, maximum or variant.max_guidance)
    return lambda num_frames: CURVES[curve](num_frames, *ends)


def parse_points(text: str | None) -> list[tuple[float, float]]:
    """Points (position, weight) from `0:1, 1:3`, weights within 0 to MAX_GUIDANCE. Raises InputError."""
    points = curve_points(text, "guidance")
    for _, weight in points:
        if not 0 <= weight <= MAX_GUIDANCE:
            raise InputError(f"guidance_points: weight {weight:g} is outside 0 to {MAX_GUIDANCE:g}: 1 to 3 is usual")
    return points


def curve_points(text: str | None, setting: str) -> list[tuple[float, float]]:
    """Points (position, value) from the widget of a setting's curve. Raises InputError if they do not form one."""

    def points() -> list[tuple[float, float]]:
        found = [_point(word, setting) for word in _words(text)]
        if found:
            curve_guidance(2, found)
        return found

    return in_widget(f"{setting}_points", points)


def _point(word: str, setting: str) -> tuple[float, float]:
    said = setting.replace("_", " ")
    position, colon, value = word.partition(":")
    if not colon:
        kind = "weight" if setting == "guidance" else "value"
        raise InputError(f"{said} point {word!r} is not position:{kind}: write a curve as 0:1, 0.5:3, 1:2")
    return _number(position, f"{said} points"), _number(value, f"{said} points")


def _words(text: str | None) -> list[str]:
    """The words separated by commas or spaces. Raises InputError for a list, which ComfyUI lets a widget hold."""
    if not isinstance(text, str | None):
        raise InputError(f"{str(text)[:40]!r} is no text: write numbers with commas between")
    return (text or "").replace(",", " ").split()


def _number(word: str, name: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise InputError(f"{word!r} in {name} is not a number: write numbers such as 0.5") from error


# Running


def run(
    guider: ClipGuider,
    sampler: comfy.samplers.KSAMPLER,
    sigmas: Tensor,
    latent: dict[str, Any],
    seed: int,
    add_noise: bool,
    callback: Callback | None = None,
) -> Tensor:
    """Sample a LATENT into latents (B * T, 4, h, w), unscaled. Noise is drawn on the CPU. `callback` replaces the
    progress bar of this run. Raises InputError."""
    samples = latent["samples"]
    clips = guider.clips_of(latent)
    require_start(samples, add_noise)
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    require_noise(noise, samples)
    sampled = guider.sample(
        noise if add_noise else torch.zeros_like(noise),
        samples,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=callback or ProgressCallback(guider.model_patcher, len(sigmas) - 1, clips.num_frames),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    require_sampled(sampled, guider.model_patcher)
    return sampled.to(comfy.model_management.intermediate_device())


def require_noise(noise: Tensor, samples: Tensor) -> None:
    """Raise InputError if the latent's batch_index does not match its number of frames."""
    if noise.shape != samples.shape:
        raise InputError(
            f"the latent's batch_index numbers {len(noise)} of {len(samples)} frames: take the frames again, or start "
            "from the latent of Stable Video Conditioning"
        )


def require_start(samples: Tensor, add_noise: bool) -> None:
    """Raise InputError for a latent that holds NaN or infinity, or is empty with no noise to add."""
    bad = damaged_frames(samples)
    if bad:
        raise InputError(f"the latent's frames {bad} hold NaN or infinity: make it again, or start from an empty one")
    if not add_noise and not bool(samples.any()):
        raise InputError("the latent is empty and add_noise is off, so there is nothing to denoise: turn add_noise on")
