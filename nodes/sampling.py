"""Sampling nodes: one that does it all, and separate sigmas and guider for ComfyUI's SamplerCustomAdvanced."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io

from ..svd_core.errors import InputError
from ..svd_core.sampling import SCHEDULES, cut_sigmas, edm_sigmas
from ..svd_core.sampling.schedule import RHO, SIGMA_MAX, SIGMA_MIN
from ..svd_core.settings import MAX_STEPS
from .bridge.guider import ClipGuider, replaced_guidance, require_sampled
from .bridge.plan import sampling_in_words
from .bridge.preview import Callback, ProgressCallback
from .bridge.variant import model_variant
from .checks import damaged_frames, show, verdict
from .curves import GUIDANCE, guidance
from .inputs import checked
from .schedules import denoised_part, parse_levels, require_order
from .widgets import (
    conditioning_inputs,
    guidance_inputs,
    guidance_points_input,
    model_input,
    sampler_input,
    schedule_input,
    seed_input,
    steps_input,
)

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor


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
                model_input(),
                *conditioning_inputs(),
                io.Latent.Input(
                    "latent",
                    tooltip="Empty for a new clip, or an encoded video to rework. A noise mask says where.",
                ),
                seed_input("Another seed moves another way. The same seed gives the same clip on every machine."),
                steps_input(),
                *guidance_inputs(),
                schedule_input(),
                sampler_input(
                    "euler", "euler is what the model was released with. Ancestral and SDE ones move more and flicker."
                ),
                _denoise_input(),
                *_part_inputs(),
                io.Boolean.Input(
                    "add_noise",
                    default=True,
                    advanced=True,
                    tooltip="Turn off to go on with a latent that is still noisy, from a sampler with an end step.",
                ),
                guidance_points_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The clip, for Stable Video Decode.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, guidance_points: str | None = "", start_step: int | None = 0, end_step: int | None = 0
    ) -> bool | str:
        return verdict(lambda: (GUIDANCE.points(guidance_points), require_order(start_step, end_step)))

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
                model_input(),
                *conditioning_inputs(),
                *guidance_inputs(),
                guidance_points_input(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, guidance_points: str | None = "") -> bool | str:
        return verdict(lambda: GUIDANCE.points(guidance_points))

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


# Widgets


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
        _step_input(
            "start_step",
            "Leave out the steps before this one. With a given video it keeps more of it, as denoise does.",
        ),
        _step_input("end_step", "Stop before this step and hand on a latent that is still noisy. 0 runs to the end."),
    ]


def _step_input(name: str, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=0, min=0, max=MAX_STEPS, advanced=True, tooltip=tooltip)


def _level_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=0.0001, max=10000.0, step=0.001, round=0.0001, advanced=True, tooltip=tooltip
    )


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
