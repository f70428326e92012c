"""Nodes that compare clips of many seeds or settings, and measure the motion in a clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.samplers
import numpy as np
import torch
from comfy_api.latest import io

from ..svd_core.config import PIXELS_PER_LATENT
from ..svd_core.errors import InputError
from ..svd_core.measure import SWEPT, WISHES, Axis, measure, plot_measured, scout, seeds_from, sweep
from ..svd_core.measure.scout import CHEAP_SAMPLER, CHEAP_SCHEDULE, CHEAP_STEPS, MAX_TRIES
from ..svd_core.measure.sweep import check_choice, choices
from .bridge.guider import ClipGuider
from .bridge.methods import require_sampler
from .bridge.preview import Callback, ProgressCallback
from .bridge.variant import model_variant
from .checks import in_widget, require_vae, show, verdict
from .conditioning import flattened, noisy_image
from .decoding import decode_finished
from .inputs import checked
from .sampling import (
    CURVES,
    SCHEDULES,
    guidance,
    guidance_inputs,
    parse_points,
    points_input,
    run,
    schedule_input,
    steps_input,
)

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE
    from torch import Tensor

    from ..svd_core.config import Variant
    from ..svd_core.measure import Measured, Trial
    from ..svd_core.measure.sweep import Choice
    from .bridge.guider import Weights

NO_AXIS = "none"
"""Choice of `y_setting` for a single row."""


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
                _seed_input("The first seed to try; the others follow it. Not the seed of the full clip."),
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
                _sampler_input(
                    CHEAP_SAMPLER,
                    "For the quick clips. That of the full clip ranks best; ancestral and SDE ones add noise of their "
                    "own and tell little about it.",
                ),
                points_input(),
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
        return verdict(lambda: parse_points(guidance_points))

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
        take = Take(model, positive, negative, latent, vae)
        weights = guidance(variant, min_guidance, max_guidance, guidance_curve, guidance_points)
        way = Way(weights, SCHEDULES[schedule](steps or variant.steps), sampler_name)
        frames = take.check([way])
        still = require_still(image, latent["samples"])
        progress = SharedProgress(model, tries * way.steps, frames)
        told = Telling(cls, tries, way.steps)
        seeds = seeds_from(seed, tries)
        found = scout(lambda each: take.render(way, each, progress), seeds, still, WISHES[rank_by], told.trial)
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
                _seed_input("Of every clip, unless seeds are swept; of the noise on the picture too, when that is."),
                steps_input(0, "Of every clip, unless steps are swept. 0 takes the checkpoint's own."),
                *guidance_inputs(),
                schedule_input("edm"),
                _sampler_input("euler", "Of every clip, unless samplers are swept."),
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
        cells = Cells(Take(model, positive, negative, latent, vae), base, image)
        cells.check(x, y)
        told = Telling(cls, len(x.values) * (len(y.values) if y else 1))
        swept = sweep(cells.renderer(x, y), x, y, check=require_choice, told=told.cell)
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
        io.Model.Input("model", tooltip="A Stable Video Diffusion model, from our loader or ComfyUI's."),
        io.Conditioning.Input("positive", tooltip="From Stable Video Conditioning, of one picture."),
        io.Conditioning.Input("negative", tooltip="From Stable Video Conditioning."),
        io.Latent.Input("latent", tooltip="From Stable Video Conditioning: the length and size of each clip."),
        io.Vae.Input("vae", tooltip="From the video checkpoint: clips are measured as frames."),
    ]


def _seed_input(tooltip: str) -> io.Int.Input:
    return io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip=tooltip)


def _sampler_input(default: str, tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(
        "sampler_name", options=comfy.samplers.KSAMPLER_NAMES, default=default, advanced=True, tooltip=tooltip
    )


def _axis_input(name: str, options: list[str], default: str, tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(name, options=options, default=default, tooltip=tooltip)


def _values_input(name: str, default: str, tooltip: str) -> io.String.Input:
    return io.String.Input(name, default=default, tooltip=tooltip)


# Making clips


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """How a clip is sampled: guidance weights, sigmas (n + 1,), and the name of one of ComfyUI's samplers."""

    weights: Weights
    sigmas: Tensor
    sampler: str

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


class SharedProgress:
    """One progress bar for several clips made one after another."""

    def __init__(self, patcher: ModelPatcher, steps: int, num_frames: int) -> None:
        self.shown, self.steps, self.begun = ProgressCallback(patcher, steps, num_frames), steps, 0

    def part(self, steps: int) -> Callback:
        """The callback of the next clip, which takes `steps` steps."""
        start, self.begun = self.begun, self.begun + steps

        def step_done(step: int, x0: Tensor, x: Tensor, _total: int) -> None:
            self.shown(start + step, x0, x, self.steps)

        return step_done


@dataclass(frozen=True, slots=True, eq=False)
class Take:
    """The inputs that all clips of a study share."""

    model: ModelPatcher
    positive: list
    negative: list
    latent: dict[str, Any]
    vae: VAE

    def check(self, ways: Sequence[Way]) -> int:
        """The number of frames of each clip. Raises InputError, before anything is loaded, for inputs that do not go
        together or with one of `ways`, and for a batch of clips."""
        require_vae(self.vae)
        clips = ClipGuider(self.model, self.positive, self.negative, ways[0].weights).clips_of(self.latent)
        if clips.count != 1:
            raise InputError(
                f"the latent holds {clips.count} clips, and one is studied at a time: give Stable Video Conditioning "
                "one picture, or take one with Get Image from Batch"
            )
        if clips.num_frames < 2:
            raise InputError(
                "a clip of 1 frame has no motion to compare: ask Stable Video Conditioning for more frames"
            )
        for way in ways:
            require_sampler(self.model, way.sampler, clips.num_frames)
        return clips.num_frames

    def render(self, way: Way, seed: int, progress: SharedProgress) -> np.ndarray:
        """Frames (T, H, W, 3) in [0, 1]. Can be cancelled between steps, as in the sampler, and before the decode."""
        guider = ClipGuider(self.model, self.positive, self.negative, way.weights)
        sampler = comfy.samplers.sampler_object(way.sampler)
        samples = run(guider, sampler, way.sigmas, self.latent, seed, add_noise=True, callback=progress.part(way.steps))
        comfy.model_management.throw_exception_if_processing_interrupted()
        images, _ = decode_finished(self.vae, samples, len(samples), self.latent, tell=_untold)
        return images.float().cpu().numpy()


def _untold(*_sentences: str) -> None:
    """Discard the plan of each decode, which would hide the study's results so far."""


class Telling:
    """Shows the results so far on the node."""

    def __init__(self, node: type[io.ComfyNode], count: int, steps: int = 0) -> None:
        self.node, self.count, self.lines = node, count, []
        self.cost = f", {count * steps} steps in all" if steps else ""

    def trial(self, trial: Trial) -> None:
        self._say(
            f"seed {trial.seed}: motion {trial.motion:.2f}, camera {trial.camera:.2f}, subject {trial.subject:.2f}"
        )

    def cell(self, choice: Choice, measured: Measured) -> None:
        named = ", ".join(f"{name} {value}" for name, value in choice.items())
        self._say(f"{named}: motion {measured.motion.mean():.2f}")

    def _say(self, line: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.lines.append(line)
        show(self.node, f"{len(self.lines)} of {self.count} clips{self.cost}; pixels a frame", *self.lines)


def require_still(image: Tensor, samples: Tensor) -> np.ndarray:
    """The first picture (H, W, 3) of a batch. Raises InputError unless it has the clip's size."""
    height, width = (side * PIXELS_PER_LATENT for side in samples.shape[-2:])
    if tuple(image.shape[1:3]) != (height, width):
        raise InputError(
            f"the picture is {image.shape[2]}x{image.shape[1]} and the clip {width}x{height}: connect the picture that "
            "Stable Video Conditioning got"
        )
    return flattened(image[:1])[0].cpu().numpy()


# Sweeps


def axes(x_setting: str, x_values: str, y_setting: str, y_values: str) -> tuple[Axis, Axis | None]:
    """The axes of a sweep, y None for a single row. Raises InputError for impossible values."""
    for each in (x_setting, x_values, y_setting, y_values):
        if not isinstance(each, str):  # ComfyUI does not check the inputs that validate_inputs names
            raise InputError(f"{str(each)[:40]!r} is no text: give a setting, and values with commas between")
    x = in_widget("x_values", lambda: axis_of(x_setting, x_values))
    y = None if y_setting == NO_AXIS else in_widget("y_values", lambda: axis_of(y_setting, y_values))
    return x, y


def axis_of(setting: str, values: str) -> Axis:
    axis = Axis.parse(setting, values)
    for value in axis.values:
        require_choice({setting: value})
    return axis


def with_own_guidance(axis: Axis, variant: Variant) -> Axis:
    """The axis with the checkpoint's own guidance for 0, which stands for it. Raises InputError if both are listed."""
    if axis.setting not in ("min_guidance", "max_guidance"):
        return axis
    return Axis(axis.setting, tuple(value or getattr(variant, axis.setting) for value in axis.values))


NAMED = {"sampler": comfy.samplers.KSAMPLER_NAMES, "schedule": list(SCHEDULES), "guidance_curve": list(CURVES)}
"""Settings whose values are names, and their allowed values."""


def require_choice(choice: Choice) -> None:
    """Raise InputError for unknown or out-of-range values; samplers are ComfyUI's."""
    for name, known in NAMED.items():
        if name in choice and choice[name] not in known:
            raise InputError(f"{name} {choice[name]!r} is not known: choose one of {', '.join(known)}")
    check_choice({name: value for name, value in choice.items() if name not in NAMED})


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The clips of a sweep: their shared inputs, and the settings that are not swept."""

    take: Take
    base: dict[str, Any]
    image: Tensor | None

    def check(self, x: Axis, y: Axis | None) -> None:
        """Raise InputError, before the first clip, for inputs and settings that do not go together."""
        self.take.check([self._way(choice) for choice in choices(x, y)])
        if "augmentation" in {axis.setting for axis in (x, y) if axis is not None}:
            if self.image is None:
                raise InputError("augmentation is swept and there is no picture to put noise on: connect image")
            require_still(self.image, self.take.latent["samples"])

    def renderer(self, x: Axis, y: Axis | None) -> Callable[[Choice], np.ndarray]:
        """A function choice -> frames, with one progress bar for all clips."""
        ways = [self._way(choice) for choice in choices(x, y)]
        progress = SharedProgress(self.take.model, sum(way.steps for way in ways), self.take.check(ways))

        def render(choice: Choice) -> np.ndarray:
            return self._take(choice).render(self._way(choice), (self.base | choice)["seed"], progress)

        return render

    def _way(self, choice: Choice) -> Way:
        chosen, variant = self.base | choice, model_variant(self.take.model)
        ends = (chosen["min_guidance"], chosen["max_guidance"])
        weights = guidance(variant, *ends, chosen["guidance_curve"], points="")
        return Way(weights, SCHEDULES[chosen["schedule"]](chosen["steps"] or variant.steps), chosen["sampler"])

    def _take(self, choice: Choice) -> Take:
        """The shared inputs with the cell's motion settings and, if augmentation is swept, its noise on the picture."""
        numbers = {NUMBERS[name]: value for name, value in choice.items() if name in NUMBERS}
        positive, negative = (changed(entries, numbers) for entries in (self.take.positive, self.take.negative))
        if "augmentation" in choice:
            seed = (self.base | choice)["seed"]
            noisy = noisy_image(flattened(self.image[:1]), choice["augmentation"], seed)
            positive = changed(positive, {"concat_latent_image": self.take.vae.encode(noisy).float()})
        return replace(self.take, positive=positive, negative=negative)


NUMBERS = {"motion_bucket": "motion_bucket_id", "fps": "fps", "augmentation": "augmentation_level"}
"""Setting -> its key in ComfyUI's CONDITIONING."""


def changed(entries: list, numbers: dict[str, Any]) -> list:
    """A copy of CONDITIONING with the given numbers replaced."""
    return [[context, {**held, **numbers}] for context, held in entries]
