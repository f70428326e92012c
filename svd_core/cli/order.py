"""What to render, from flags or from the recipe of an earlier clip."""

from __future__ import annotations

import dataclasses
import os
from argparse import Namespace
from dataclasses import dataclass

import torch

from ..conditioning import MicroConditioning
from ..config import VARIANTS, ModelConfig
from ..demo import DEMO_MODEL
from ..errors import InputError
from ..loading import known_device
from ..media import read_recipe
from ..planning import Job
from ..recipe import UNCONTROLLED, DType, Recipe, RecordedControls, Source, Versions
from ..sampling import plan_sampling
from ..settings import AttentionName, Settings, WeightsName
from ..shot import Shot
from .controls import FILES as CONTROL_FILES
from .controls import check_controls, controls_from_flags, controls_from_recipe
from .files import recorded_path
from .notes import note

DTYPES: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_SETTINGS = {field.name for field in dataclasses.fields(Settings)}

_BESIDE_RECIPE = {
    "run",
    "recipe",
    "image",
    "checkpoint",
    "output",
    "ignore_hash",
    *CONTROL_FILES,
    "save_latents",
    "device",
    "chunk",
    "budget",
    "memory",
    "no_watermark",
    "content_filter",
}
"""Flags that may be combined with --recipe: paths, the machine, what changes no pixel, and provenance."""


@dataclass(frozen=True, slots=True)
class Order:
    """One clip to render; `recipe` is the recipe that it repeats, if any. The files of `controls` have the paths that
    they are read from."""

    image: str
    checkpoint: str
    settings: Settings
    playback_fps: int
    device: str
    dtype: DType
    variant: str | None = None
    attention: AttentionName = "auto"
    weights: WeightsName = "whole"
    controls: RecordedControls = UNCONTROLLED
    recipe: Recipe | None = None

    @property
    def micro_conditioning(self) -> MicroConditioning:
        return MicroConditioning(self.settings.fps, self.settings.motion_bucket, self.settings.augmentation)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The paths of all files that the clip is made from."""
        return self.image, self.checkpoint, *(source.path for source in self.controls.files.values())

    def job(self, shot: Shot, config: ModelConfig) -> Job:
        """The render as the memory planner sees it."""
        place = {"dtype": DTYPES[self.dtype], "device": torch.device(self.device), "weights": self.weights}
        return shot.job(config, **place)

    def check_settings(self) -> None:
        """Raise InputError for settings and controls that the pipeline would only reject after loading gigabytes. Uses
        the defaults of an arbitrary variant."""
        plan_sampling(self.settings.for_variant(VARIANTS["svd"]))
        _ = self.micro_conditioning  # checked when made
        check_controls(self.controls)


def order_of(args: Namespace) -> Order:
    return _order_from_recipe(args) if "recipe" in args else order_from_flags(args)


def order_from_flags(args: Namespace) -> Order:
    given = vars(args)
    if "image" not in given:
        raise InputError(
            "no picture was given: name one, as in animate picture.png --checkpoint FILE --output clip.mp4"
        )
    chosen = {name: given[name] for name in _SETTINGS & given.keys()}
    if "size" in given:
        chosen["width"], chosen["height"] = given["size"]
    if "guidance_interval" in given:
        chosen["guidance_interval"] = tuple(given["guidance_interval"])
    settings = Settings(**chosen)
    return Order(
        image=args.image,
        checkpoint=given.get("checkpoint", str(DEMO_MODEL)),
        settings=settings,
        playback_fps=given.get("playback_fps", settings.fps),
        device=chosen_device(args),
        dtype=given.get("dtype", "float32"),
        variant=given.get("variant"),
        attention=given.get("attention", "auto"),
        weights=given.get("weights", "whole"),
        controls=controls_from_flags(given),
    )


def _order_from_recipe(args: Namespace) -> Order:
    others = sorted(vars(args).keys() - _BESIDE_RECIPE)
    if others:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise InputError(f"{names} beside --recipe, which settles it: leave out either")
    recipe = read_recipe(args.recipe)
    changed = recipe.versions.differences(Versions.here())
    if changed:
        note(f"the recipe was made with other versions, bytes may differ: {changed}")
    device = existing_device(getattr(args, "device", recipe.device))
    use_threads(recipe, device)
    return Order(
        image=args.image if "image" in args else _recorded_picture(recipe.image),
        checkpoint=args.checkpoint if "checkpoint" in args else _recorded_checkpoint(recipe.checkpoint),
        settings=recipe.settings,
        playback_fps=recipe.playback_fps,
        device=device,
        dtype=recipe.dtype,
        attention=recipe.attention,
        weights=recipe.weights,
        controls=controls_from_recipe(recipe.controls, args),
        recipe=recipe,
    )


def _recorded_picture(source: Source) -> str:
    return recorded_path(source, "picture", "give its own path before --recipe")


def _recorded_checkpoint(source: Source) -> str:
    """The recorded checkpoint. The demo model is found by its hash if the package has moved. Raises InputError."""
    if not os.path.exists(source.path) and source.sha256 == Source.of(DEMO_MODEL).sha256:
        return str(DEMO_MODEL)
    return recorded_path(source, "checkpoint", "name it with --checkpoint")


def memory_limits(args: Namespace) -> dict[str, int | None]:
    """The decoder's chunk and budget and the render's memory, which change no bit. Raises InputError below 1."""
    limits = {name: getattr(args, name, None) for name in ("chunk", "budget", "memory")}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise InputError(f"{name} {value} is less than 1: leave it out for no limit")
    return limits


def use_threads(recipe: Recipe | None, device: str) -> None:
    """On the CPU, use the recipe's number of threads, on which the last bits depend."""
    if recipe is not None and torch.device(device).type == "cpu":
        torch.set_num_threads(recipe.threads)


def chosen_device(args: Namespace) -> str:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return existing_device(getattr(args, "device", default))


def existing_device(name: str) -> str:
    """The given device name. Raises InputError if there is no such device."""
    known_device(name)
    return name
