"""What the commands do: flags in, svd_core, files out. Whatever can be refused is refused before the long work."""

from __future__ import annotations

import dataclasses
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..checkpoint import inspect_checkpoint
from ..conditioning import MicroConditioning
from ..config import VARIANTS
from ..errors import InputError
from ..media import check_output, load_image, read_recipe, write_clip
from ..pipeline import Clip, StableVideo, guidance_for, load_checkpoint, sigmas_for
from ..recipe import DType, Recipe, Source, Versions
from ..sampling import SAMPLERS, GuidanceInterval
from ..settings import MAX_FRAMES, Settings
from .latents import check_latents_output, load_latents, save_latents
from .progress import Bars

_DTYPES: dict[DType, torch.dtype] = {
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
    "save_latents",
    "device",
    "chunk",
    "budget",
}
"""What may be given with --recipe: places, the machine, and what changes no pixel."""

_NO_CHECKPOINT = (
    "--checkpoint was not given and no demo model ships with svd_core yet: "
    "download svd_xt.safetensors from stabilityai/stable-video-diffusion-img2vid-xt and name it"
)


@dataclass(frozen=True, slots=True)
class _Order:
    """One clip to render; `recipe` is what it repeats, if anything."""

    image: str
    checkpoint: str
    settings: Settings
    playback_fps: int
    device: str
    dtype: DType
    variant: str | None = None
    recipe: Recipe | None = None


def animate(args: Namespace) -> None:
    """Render a picture, from flags or from a recipe, and write the clip with its recipe inside."""
    began = time.monotonic()
    order = _order_from_recipe(args) if "recipe" in args else _order_from_flags(args)
    memory = _memory(args)
    _check_settings(order.settings)
    check_output(args.output, order.playback_fps)
    if "save_latents" in args:
        check_latents_output(args.save_latents)
    image_source, image = _picture(order, args)
    svd = _open(order.checkpoint, order.device, order.dtype, order.variant)
    checkpoint_source = _same_source(order.checkpoint, order.recipe and order.recipe.checkpoint, args)
    with Bars() as bars:
        clip = svd.render(image, order.settings, **memory, callback=bars)
    recipe = _recipe(order, clip, image_source, checkpoint_source)
    if "save_latents" in args:
        save_latents(clip.latents, args.save_latents, recipe)
    path = write_clip(clip.frames, args.output, order.playback_fps, recipe)
    _say(f"{order.image}: {clip.fit_report}{_rounding(order.settings, clip.settings)}")
    _say_done(path, clip.frames, began)


def inspect(args: Namespace) -> None:
    """Print what a checkpoint holds."""
    _say(inspect_checkpoint(args.checkpoint).report())


def decode(args: Namespace) -> None:
    """Decode latents that `animate --save-latents` wrote; exact whatever the chunk."""
    began = time.monotonic()
    memory = _memory(args)
    latents, recipe = load_latents(args.latents)
    fps = getattr(args, "playback_fps", recipe.playback_fps if recipe else Settings().fps)
    check_output(args.output, fps)
    checkpoint = _checkpoint_flag(args)
    device, dtype = _device(args), getattr(args, "dtype", recipe.dtype if recipe else "float32")
    svd = _open(checkpoint, device, dtype, getattr(args, "variant", None))
    frames = svd.decode_latents(latents, **memory)
    path = write_clip(frames, args.output, fps, _still_true(recipe, checkpoint, device, dtype, fps))
    _say_done(path, frames, began)


def _order_from_flags(args: Namespace) -> _Order:
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
    return _Order(
        image=args.image,
        checkpoint=_checkpoint_flag(args),
        settings=settings,
        playback_fps=given.get("playback_fps", settings.fps),
        device=_device(args),
        dtype=given.get("dtype", "float32"),
        variant=given.get("variant"),
    )


def _order_from_recipe(args: Namespace) -> _Order:
    others = sorted(vars(args).keys() - _BESIDE_RECIPE)
    if others:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise InputError(f"{names} beside --recipe, which settles it: leave out either")
    recipe = read_recipe(args.recipe)
    changed = recipe.versions.differences(Versions.here())
    if changed:
        sys.stderr.write(f"note: the recipe was made with other versions, bytes may differ: {changed}\n")
    return _Order(
        image=getattr(args, "image", recipe.image.path),
        checkpoint=getattr(args, "checkpoint", recipe.checkpoint.path),
        settings=recipe.settings,
        playback_fps=recipe.playback_fps,
        device=_known_device(getattr(args, "device", recipe.device)),
        dtype=recipe.dtype,
        recipe=recipe,
    )


def _check_settings(settings: Settings) -> None:
    """What the pipeline would refuse too, but only after gigabytes have been read. Any variant's defaults will do."""
    resolved = settings.for_variant(VARIANTS["svd"])
    sigmas_for(resolved)
    guidance_for(resolved)
    if settings.guidance_interval:
        GuidanceInterval(*settings.guidance_interval)
    MicroConditioning(settings.fps, settings.motion_bucket, settings.augmentation)
    if settings.sampler not in SAMPLERS:
        raise InputError(f"sampler {settings.sampler!r} is not known: choose one of {', '.join(SAMPLERS)}")


def _picture(order: _Order, args: Namespace) -> tuple[Source, np.ndarray]:
    image = load_image(order.image, order.settings.background)
    return _same_source(order.image, order.recipe and order.recipe.image, args), image


def _same_source(path: str, recorded: Source | None, args: Namespace) -> Source:
    """The source to record. One that a recipe recorded keeps its path though the file has moved, because its hash says
    which file it is; a file of another hash is refused unless asked for."""
    found = Source.of(path)
    if recorded is None:
        return found
    if recorded.sha256 == found.sha256:
        return recorded
    if "ignore_hash" in args:
        return found
    raise InputError(
        f"{path} has SHA-256 {found.sha256[:12]}, the recipe was made with {recorded.sha256[:12]} ({recorded.path}): "
        "give that file, or --ignore-hash for a clip that will differ"
    )


def _recipe(order: _Order, clip: Clip, image: Source, checkpoint: Source) -> Recipe:
    return Recipe(
        settings=clip.settings,
        playback_fps=order.playback_fps,
        sigmas=clip.sigmas,
        checkpoint=checkpoint,
        image=image,
        device=order.device,
        dtype=order.dtype,
    )


def _still_true(recipe: Recipe | None, checkpoint: str, device: str, dtype: DType, fps: int) -> Recipe | None:
    """The recipe of decoded latents, where rendering it would give these frames."""
    if recipe is None or (recipe.device, recipe.dtype) != (device, dtype):
        return None
    if recipe.checkpoint.sha256 != Source.of(checkpoint).sha256:
        return None
    return dataclasses.replace(recipe, playback_fps=fps)


def _open(checkpoint: str, device: str, dtype: DType, variant: str | None) -> StableVideo:
    return load_checkpoint(checkpoint, device=device, dtype=_DTYPES[dtype], variant=variant)


def _checkpoint_flag(args: Namespace) -> str:
    if "checkpoint" not in args:
        raise InputError(_NO_CHECKPOINT)
    return args.checkpoint


def _memory(args: Namespace) -> dict[str, int | None]:
    """Chunk and budget for the decoder. Never neither: the streamed decoder gives the same bits for every chunk, the
    plain one equals it only to rounding, and a recipe promises bytes."""
    limits = {name: getattr(args, name, None) for name in ("chunk", "budget")}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise InputError(f"{name} {value} is less than 1: leave it out for no limit")
    return limits if any(limits.values()) else {"chunk": MAX_FRAMES, "budget": None}


def _device(args: Namespace) -> str:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return _known_device(getattr(args, "device", default))


def _known_device(name: str) -> str:
    """The name of a device that is there. Raises InputError."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is not known: give cpu, cuda, cuda:1 or mps") from error
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts.get(device.type, 0):
        raise InputError(
            f"device {name!r} is not on this machine: give --device cpu, or cuda or mps where there is one"
        )
    return name


def _rounding(asked: Settings, made: Settings) -> str:
    if asked.width in (None, made.width) and asked.height in (None, made.height):
        return ""
    return f" ({asked.width}x{asked.height} was asked for; sides are multiples of 64)"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _say_done(path: Path, frames: np.ndarray, began: float) -> None:
    count, height, width = frames.shape[:3]
    _say(f"{path}: {width}x{height}, {count} frames, {time.monotonic() - began:.1f} s")
