"""Making the clips that Seed Scout and Sweep compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.samplers
import numpy as np
from comfy_api.latest import io

from ..svd_core.config import PIXELS_PER_LATENT
from ..svd_core.errors import InputError
from ..svd_core.measure import Axis
from ..svd_core.measure.sweep import check_choice, choices
from ..svd_core.sampling import CURVES, SCHEDULES
from .bridge.guider import ClipGuider
from .bridge.motion.combined import require_sampler
from .bridge.preview import Callback, ProgressCallback
from .bridge.variant import model_variant
from .checks import in_widget, require_vae, show
from .conditioning import flattened, noisy_image
from .curves import guidance
from .decoding import decode_finished
from .sampling import run

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


@dataclass(frozen=True, slots=True, eq=False)
class Sampling:
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
class ClipInputs:
    """The inputs that all clips of a study share."""

    model: ModelPatcher
    positive: list
    negative: list
    latent: dict[str, Any]
    vae: VAE

    def check(self, samplings: Sequence[Sampling]) -> int:
        """The number of frames of each clip. Raises InputError, before anything is loaded, for inputs that do not go
        together or with one of `samplings`, and for a batch of clips."""
        require_vae(self.vae)
        clips = ClipGuider(self.model, self.positive, self.negative, samplings[0].weights).clips_of(self.latent)
        if clips.count != 1:
            raise InputError(
                f"the latent holds {clips.count} clips, and one is studied at a time: give Stable Video Conditioning "
                "one picture, or take one with Get Image from Batch"
            )
        if clips.num_frames < 2:
            raise InputError(
                "a clip of 1 frame has no motion to compare: ask Stable Video Conditioning for more frames"
            )
        for sampling in samplings:
            require_sampler(self.model, sampling.sampler, clips.num_frames)
        return clips.num_frames

    def render(self, sampling: Sampling, seed: int, progress: SharedProgress) -> np.ndarray:
        """Frames (T, H, W, 3) in [0, 1]. Can be cancelled between steps, as in the sampler, and before the decode."""
        guider = ClipGuider(self.model, self.positive, self.negative, sampling.weights)
        sampler = comfy.samplers.sampler_object(sampling.sampler)
        samples = run(
            guider, sampler, sampling.sigmas, self.latent, seed, add_noise=True, callback=progress.part(sampling.steps)
        )
        comfy.model_management.throw_exception_if_processing_interrupted()
        images, _ = decode_finished(self.vae, samples, len(samples), self.latent, tell=_no_plan)
        return images.float().cpu().numpy()


def _no_plan(*_sentences: str) -> None:
    """Discard the plan of each decode, which would hide the study's results so far."""


class ResultsSoFar:
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


def require_one_view(positive: list) -> None:
    """Raise InputError if positive shows each frame a picture of its own, which new noise would replace."""
    if any(len(held.get("concat_latent_image", ())) > 1 for _, held in positive):
        raise InputError(
            "augmentation is swept and positive shows views of Stable Video Camera or Drag: sweep another setting, or "
            "connect positive before those"
        )


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

    inputs: ClipInputs
    base: dict[str, Any]
    image: Tensor | None

    def check(self, x: Axis, y: Axis | None) -> None:
        """Raise InputError, before the first clip, for inputs and settings that do not go together."""
        self.inputs.check([self._sampling(choice) for choice in choices(x, y)])
        if "augmentation" in {axis.setting for axis in (x, y) if axis is not None}:
            if self.image is None:
                raise InputError("augmentation is swept and there is no picture to put noise on: connect image")
            require_one_view(self.inputs.positive)
            require_still(self.image, self.inputs.latent["samples"])

    def renderer(self, x: Axis, y: Axis | None) -> Callable[[Choice], np.ndarray]:
        """A function choice -> frames, with one progress bar for all clips."""
        samplings = [self._sampling(choice) for choice in choices(x, y)]
        progress = SharedProgress(
            self.inputs.model, sum(sampling.steps for sampling in samplings), self.inputs.check(samplings)
        )

        def render(choice: Choice) -> np.ndarray:
            return self._clip_inputs(choice).render(self._sampling(choice), (self.base | choice)["seed"], progress)

        return render

    def _sampling(self, choice: Choice) -> Sampling:
        chosen, variant = self.base | choice, model_variant(self.inputs.model)
        ends = (chosen["min_guidance"], chosen["max_guidance"])
        weights = guidance(variant, *ends, chosen["guidance_curve"], points="")
        return Sampling(weights, SCHEDULES[chosen["schedule"]](chosen["steps"] or variant.steps), chosen["sampler"])

    def _clip_inputs(self, choice: Choice) -> ClipInputs:
        """The shared inputs with the cell's motion settings and, if augmentation is swept, its noise on the picture."""
        numbers = {NUMBERS[name]: value for name, value in choice.items() if name in NUMBERS}
        positive, negative = (changed(entries, numbers) for entries in (self.inputs.positive, self.inputs.negative))
        if "augmentation" in choice:
            seed = (self.base | choice)["seed"]
            noisy = noisy_image(flattened(self.image[:1]), choice["augmentation"], seed)
            positive = changed(positive, {"concat_latent_image": self.inputs.vae.encode(noisy).float()})
        return replace(self.inputs, positive=positive, negative=negative)


NUMBERS = {"motion_bucket": "motion_bucket_id", "fps": "fps", "augmentation": "augmentation_level"}
"""Setting -> its key in ComfyUI's CONDITIONING."""


def changed(entries: list, numbers: dict[str, Any]) -> list:
    """A copy of CONDITIONING with the given numbers replaced."""
    return [[context, {**held, **numbers}] for context, held in entries]
