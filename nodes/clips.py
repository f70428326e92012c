"""Nodes that compare clips of many seeds or settings, and measure the motion in a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..svd_core.measure import SWEPT, WISHES, measure, plot_measured, scout, seeds_from, sweep
from ..svd_core.measure.scout import CHEAP_SAMPLER, CHEAP_SCHEDULE, CHEAP_STEPS, MAX_TRIES
from ..svd_core.sampling import SCHEDULES
from .bridge.variant import model_variant
from .checks import show, verdict
from .curves import GUIDANCE, guidance
from .inputs import checked
from .trials import (
    NO_AXIS,
    Cells,
    ClipInputs,
    ResultsSoFar,
    Sampling,
    SharedProgress,
    axes,
    require_choice,
    require_still,
    with_own_guidance,
)
from .widgets import (
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
    from comfy.sd import VAE
    from torch import Tensor


class StableVideoSeedScout(io.ComfyNode):
    """Tries seeds cheaply, and outputs the best one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoSeedScout",
            display_name="Stable Video Seed Scout",
            category="video/stable video",
            description=(
                "Makes a quick clip of each of several seeds, measures how much moves, how sharp it stays and how much "
                "of the picture it keeps, and ranks them. Connect the seed to Stable Video Sampler for the full clip."
            ),
            search_aliases=["svd seeds", "seed search", "batch seeds", "contact sheet", "best of", "seed lottery"],
            inputs=[
                *_clip_inputs(),
                io.Image.Input("image", tooltip="The picture that Stable Video Conditioning got, to compare with."),
                seed_input("The first seed to try; the others follow it. Not the seed of the full clip."),
                io.Int.Input(
                    "tries",
                    default=8,
                    min=1,
                    max=MAX_TRIES,
                    tooltip="How many seeds. Each costs one quick clip, and only one is in memory at a time.",
                ),
                io.Combo.Input(
                    "rank_by",
                    options=list(WISHES),
                    default="most motion",
                    tooltip=(
                        "What comes first. Motion counts less where the clip blurs or loses the picture. Subject is "
                        "what moves against the rest, camera what moves as a whole."
                    ),
                ),
                steps_input(
                    CHEAP_STEPS,
                    "Of each quick clip. Fewer is cheaper and ranks worse; 0 takes the checkpoint's own full number.",
                ),
                *guidance_inputs(),
                schedule_input(CHEAP_SCHEDULE),
                sampler_input(
                    CHEAP_SAMPLER,
                    "For the quick clips. That of the full clip ranks best; ancestral and SDE ones add noise of their "
                    "own and tell little about it.",
                    advanced=True,
                ),
                guidance_points_input(),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="All quick clips playing together, best first."),
                io.String.Output(display_name="ranking", tooltip="A line for each seed, best first."),
                io.String.Output(display_name="json", tooltip="The same for other programs."),
                io.Int.Output(display_name="seed", tooltip="The best one, for Stable Video Sampler."),
            ],
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
        latent: dict[str, Any],
        vae: VAE,
        image: Tensor,
        seed: int,
        tries: int,
        rank_by: str,
        steps: int,
        min_guidance: float,
        max_guidance: float,
        guidance_curve: str,
        schedule: str,
        sampler_name: str,
        guidance_points: str = "",
    ) -> io.NodeOutput:
        variant = model_variant(model)
        inputs = ClipInputs(model, positive, negative, latent, vae)
        weights = guidance(variant, min_guidance, max_guidance, guidance_curve, guidance_points)
        sampling = Sampling(weights, SCHEDULES[schedule](steps or variant.steps), sampler_name)
        frames = inputs.check([sampling])
        still = require_still(image, latent["samples"])
        progress = SharedProgress(model, tries * sampling.steps, frames)
        results = ResultsSoFar(cls, tries, sampling.steps)
        seeds = seeds_from(seed, tries)
        found = scout(
            lambda each: inputs.render(sampling, each, progress), seeds, still, WISHES[rank_by], results.trial
        )
        show(cls, found.report())
        return io.NodeOutput(torch.from_numpy(found.sheet), found.report(), found.to_json(), found.chosen)


class StableVideoSweep(io.ComfyNode):
    """Every combination of two settings' values in one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoSweep",
            display_name="Stable Video Sweep",
            category="video/stable video",
            description=(
                "Makes a clip for every combination of the values of one or two settings and lays them out in a "
                "labelled grid, as one video and one image, with what moves in each. For finding settings, and for "
                "seeing where the model gives up."
            ),
            search_aliases=["svd xy plot", "xyz plot", "grid", "compare settings", "parameter sweep"],
            inputs=[
                *_clip_inputs(),
                _axis_input("x_setting", list(SWEPT), "motion_bucket", "Runs from left to right."),
                _values_input("x_values", "40, 127, 200", "Of the setting from left to right, with commas between."),
                _axis_input("y_setting", [NO_AXIS, *SWEPT], "seed", "Runs from top to bottom."),
                _values_input("y_values", "1, 2", "Of the setting from top to bottom, with commas between."),
                seed_input("Of every clip, unless seeds are swept; of the noise on the picture too, when that is."),
                steps_input(0, "Of every clip, unless steps are swept. 0 takes the checkpoint's own."),
                *guidance_inputs(),
                schedule_input("edm"),
                sampler_input("euler", "Of every clip, unless samplers are swept.", advanced=True),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture that Stable Video Conditioning got. Only needed to sweep augmentation.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="video", tooltip="The grid, all clips playing together."),
                io.Image.Output(display_name="image", tooltip="The grid at the last frame."),
                io.String.Output(display_name="report", tooltip="A line for each clip: what moves in it."),
                io.String.Output(display_name="json", tooltip="Every measurement of every clip."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        x_setting: str | None = None,
        x_values: str | None = None,
        y_setting: str | None = None,
        y_values: str | None = None,
    ) -> bool | str:
        if None in (x_setting, x_values, y_setting, y_values):  # linked, so not known yet
            return True
        return verdict(lambda: axes(x_setting, x_values, y_setting, y_values))

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        latent: dict[str, Any],
        vae: VAE,
        x_setting: str,
        x_values: str,
        y_setting: str,
        y_values: str,
        seed: int,
        steps: int,
        min_guidance: float,
        max_guidance: float,
        guidance_curve: str,
        schedule: str,
        sampler_name: str,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        x, y = axes(x_setting, x_values, y_setting, y_values)
        variant = model_variant(model)
        x, y = with_own_guidance(x, variant), y and with_own_guidance(y, variant)
        base = {"seed": seed, "steps": steps, "min_guidance": min_guidance, "max_guidance": max_guidance}
        base |= {"guidance_curve": guidance_curve, "schedule": schedule, "sampler": sampler_name}
        cells = Cells(ClipInputs(model, positive, negative, latent, vae), base, image)
        cells.check(x, y)
        results = ResultsSoFar(cls, len(x.values) * (len(y.values) if y else 1))
        swept = sweep(cells.renderer(x, y), x, y, check=require_choice, callback=results.cell)
        show(cls, swept.report())
        video = torch.from_numpy(swept.frames)
        return io.NodeOutput(video, video[-1:].clone(), swept.report(), swept.to_json())


class StableVideoMotionMeter(io.ComfyNode):
    """Measures motion and defects of a clip, as numbers and curves."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        figures = (
            ("motion", "Pixels a frame, averaged over the picture: all that is seen to move."),
            ("camera", "Pixels a frame: what most of the picture does together."),
            ("subject", "Pixels a frame: what moves against that."),
            ("flicker", "Percent of white: brightness that changes without moving."),
            ("drift", "Percent of white: worst departure from the first frame's colours."),
            ("sharpness", "Of the first frame's: below 1 the clip blurs."),
            ("seam", "Last to first frame against a usual step: near 1 it loops."),
        )
        return io.Schema(
            node_id="StableVideoMotionMeter",
            display_name="Stable Video Motion Meter",
            category="video/stable video",
            description=(
                "Measures the frames of a clip, of any model: how much moves, how much of it is the camera's, how much "
                "the clip flickers, drifts in colour and blurs, and how well it loops."
            ),
            search_aliases=["optical flow", "motion score", "flicker", "video quality", "loop seam", "measure video"],
            inputs=[io.Image.Input("images", tooltip="The frames of one clip, two at least.")],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The numbers, and their curves over the clip."),
                io.String.Output(display_name="report", tooltip="A line for each number, with its unit."),
                io.String.Output(display_name="json", tooltip="The numbers and the curves for other programs."),
                *(io.Float.Output(display_name=name, tooltip=tooltip) for name, tooltip in figures),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(cls, images: Tensor) -> io.NodeOutput:
        measured = measure(images[..., :3].float().cpu().numpy())
        show(cls, measured.report())
        values = {each.name: each.value for each in measured.readings}
        names = ("motion", "camera", "subject", "flicker", "drift", "sharpness", "seam")
        plot = torch.from_numpy(plot_measured(measured))[None]
        return io.NodeOutput(plot, measured.report(), measured.to_json(), *(values[name] for name in names))


# Widgets


def _clip_inputs() -> list[io.Input]:
    """The inputs of Stable Video Sampler that define the clip, and the VAE."""
    return [
        model_input(),
        io.Conditioning.Input("positive", tooltip="From Stable Video Conditioning, of one picture."),
        io.Conditioning.Input("negative", tooltip="From Stable Video Conditioning."),
        io.Latent.Input("latent", tooltip="From Stable Video Conditioning: the length and size of each clip."),
        io.Vae.Input("vae", tooltip="From the video checkpoint: clips are measured as frames."),
    ]


def _axis_input(name: str, options: list[str], default: str, tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(name, options=options, default=default, tooltip=tooltip)


def _values_input(name: str, default: str, tooltip: str) -> io.String.Input:
    return io.String.Input(name, default=default, tooltip=tooltip)
