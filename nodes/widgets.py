"""Sockets and widgets that several nodes have in common. Those of one node are in that node's file."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from ..svd_core.conditioning import MAX_AUGMENTATION, MAX_MOTION_BUCKET
from ..svd_core.sampling import CURVES, SCHEDULES
from ..svd_core.settings import MAX_STEPS
from .curves import MAX_GUIDANCE

# Sockets


def model_input() -> io.Model.Input:
    return io.Model.Input("model", tooltip="A Stable Video Diffusion model, from our loader or ComfyUI's.")


def patched_model_output() -> io.Model.Output:
    """The MODEL of a node that patches one."""
    return io.Model.Output(display_name="model", tooltip="For a sampler, or another node of this kind.")


def conditioning_inputs() -> list[io.Input]:
    return [
        io.Conditioning.Input("positive", tooltip="From Stable Video Conditioning."),
        io.Conditioning.Input("negative", tooltip="From Stable Video Conditioning."),
    ]


def vae_input() -> io.Vae.Input:
    return io.Vae.Input("vae", tooltip="From the video checkpoint.")


# Conditioning


def motion_bucket_input(tooltip: str) -> io.Int.Input:
    return io.Int.Input("motion_bucket", default=127, min=0, max=MAX_MOTION_BUCKET, tooltip=tooltip)


def augmentation_input(tooltip: str, rounded_to: float) -> io.Float.Input:
    return io.Float.Input(
        "augmentation", default=0.02, min=0.0, max=MAX_AUGMENTATION, step=0.01, round=rounded_to, tooltip=tooltip
    )


# Sampling

OWN_STEPS = "More is slower and cleaner. 0 takes the checkpoint's own: 25 for SVD, 30 for SVD-XT."


def seed_input(tooltip: str) -> io.Int.Input:
    return io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip=tooltip)


def steps_input(default: int = 0, tooltip: str = OWN_STEPS) -> io.Int.Input:
    return io.Int.Input("steps", default=default, min=0, max=MAX_STEPS, tooltip=tooltip)


def guidance_inputs() -> list[io.Input]:
    return [
        _guidance_weight_input(
            "min_guidance",
            "Weight of the first frame. 0 takes the checkpoint's own: 1 for SVD, 1.5 for SVD-XT. Higher holds "
            "closer to the picture.",
        ),
        _guidance_weight_input(
            "max_guidance",
            "Weight of the last frame. 0 takes the checkpoint's own: 2.5 for SVD, 3 for SVD-XT. Lower lets the end "
            "of the clip drift off, higher makes it harsh and over-saturated.",
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


def _guidance_weight_input(name: str, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=0.0, min=0.0, max=MAX_GUIDANCE, step=0.1, round=0.01, tooltip=tooltip)


def guidance_points_input() -> io.String.Input:
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


def sampler_input(default: str, tooltip: str, *, advanced: bool | None = None) -> io.Combo.Input:
    return io.Combo.Input(
        "sampler_name", options=comfy.samplers.KSAMPLER_NAMES, default=default, advanced=advanced, tooltip=tooltip
    )
