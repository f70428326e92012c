"""The commands' implementations. All input is validated as early as possible, before long work begins."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint import inspect_checkpoint
from ..checkpoint.load import open_checkpoint
from ..clip import Clip, ProgressFn
from ..conditioning import MicroConditioning, warnings_for
from ..config import PIXELS_PER_LATENT, VARIANTS, ModelConfig, VAEConfig, Variant
from ..demo import DEMO_MODEL, DEMO_NOTE
from ..device_memory import free_bytes, has_own_memory, spare_bytes
from ..errors import InputError, OutputError, printable
from ..loading import known_device, load_checkpoint
from ..media import check_output, default_size, load_image, read_recipe, round_size, write_clip
from ..pipeline import StableVideo
from ..planning import Job, Plan, gibibytes, least_beside_weights, plan_or_leanest, plan_render
from ..recipe import DType, Recipe, Source, Versions
from ..sampling import GuidanceSplit, plan_sampling, sigmas_from_list, split_guidance
from ..settings import AttentionName, Settings, WeightsName
from .latents import check_latents_output, load_latents, save_latents
from .notes import note
from .progress import Bars
from .provenance import chosen_filter, marked, require_clean, will_mark

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
    "memory",
    "no_watermark",
    "content_filter",
}
"""Flags that may be combined with --recipe: paths, the machine, what changes no pixel, and provenance."""

_SAGE_NOTE = "attention sage sums in 8 bits: frames will differ a little from those of auto"
_INTERVAL_NOTE = "guidance runs between noise levels {:g} and {:g} alone: frames will differ from those of all steps"
_REUSE_NOTE = "reuse {:g} approximates: frames will differ from those of --reuse 0"
_STEPS_NOTE = "steps {} is not used: the noise levels of --sigmas are the steps"
_WEIGHTS_NOTES = {
    "int8": "weights int8 are rounded to 8 bits: frames will differ from those of whole",
    "fp8": "weights fp8 and what they multiply are rounded to 8 bits: frames will differ from those of whole; it is "
    "meant for NVIDIA GPUs from Ada on and slower elsewhere",
}
_NO_CHECKPOINT = "--checkpoint was not given: name the one that the latents were made with"


@dataclass(frozen=True, slots=True)
class Order:
    """One clip to render; `recipe` is the recipe that it repeats, if any."""

    image: str
    checkpoint: str
    settings: Settings
    playback_fps: int
    device: str
    dtype: DType
    variant: str | None = None
    attention: AttentionName = "auto"
    weights: WeightsName = "whole"
    recipe: Recipe | None = None


def animate(args: Namespace) -> None:
    """Render a picture, from flags or from a recipe, and write the clip with its recipe inside."""
    order = _order_from_recipe(args) if "recipe" in args else order_from_flags(args)
    if "split_guidance" not in args:
        render_order(order, args)
        return
    order = dataclasses.replace(order, device=_device_of_this_process(order.device))
    with split_guidance(torch.device(order.device)) as split, _heard_once(split):
        render_order(order, args, Means(split=split))


def render_order(order: Order, args: Namespace, means: Means | None = None) -> None:
    """Render one clip and write it; with split guidance, only the leading process writes."""
    began = time.monotonic()
    means = means or Means()
    limits = _limits(args)
    check_settings(order.settings)
    _check_outputs(order, args)
    image_source, image = _picture(order, args)
    checker = chosen_filter(args)
    require_clean(checker, image[None], order.image)
    way = _way(order, image, limits["memory"])
    svd, checkpoint_source = means.load(order, args, way is not None and way.stream_weights)
    _say_notes(order, svd, image)
    mark = will_mark(*_clip_size(order.settings, image, svd.config.variant), order.recipe, args)
    with means.bars() as bars:
        clip = svd.render(image, order.settings, **limits, **_branches(order, means.split), callback=bars)
    if means.split is not None and not means.split.leads:
        return
    require_clean(checker, clip.frames, f"the clip of {order.image}")
    frames, watermark = marked(clip.frames, mark)
    recipe = _recipe(order, clip, image_source, checkpoint_source)
    recipe = dataclasses.replace(recipe, watermark=watermark, split_guidance=_is_split(order, means.split))
    if "save_latents" in args:
        save_latents(clip.latents, args.save_latents, recipe)
    path = write_clip(frames, args.output, order.playback_fps, recipe)
    _say(f"{order.image}: {clip.fit_report}{_rounding(order.settings, clip.settings)}")
    if clip.reuse_report:
        _say(f"{order.image}: {clip.reuse_report}")
    _say_done(path, clip.frames, began)


def inspect(args: Namespace) -> None:
    """Print what a checkpoint holds."""
    print(inspect_checkpoint(args.checkpoint).report())


def plan(args: Namespace) -> None:
    """Print how a clip would run in a given memory, without loading weights or rendering."""
    given = vars(args)
    variant = given.get("variant")
    if "checkpoint" in given:
        detection = open_checkpoint(args.checkpoint, variant).detection
        config = detection.config
        if variant and detection.variant_note:
            note(detection.variant_note)
    else:
        name = variant or "svd_xt"
        vae = VAEConfig(temporal="image" not in name, decoder_quant="image" in name)
        config = ModelConfig(vae=vae, variant=VARIANTS[name])
    width, height = round_size(*given.get("size", (config.variant.width, config.variant.height)))
    settings = Settings(frames=given.get("frames"), width=width, height=height).for_variant(config.variant)
    dtype = _DTYPES[given.get("dtype", "float16")]
    report = plan_render(Job(config, settings.frames, width, height, dtype), args.memory).report()
    print(f"clip:     {settings.frames} frames of {width}x{height}, {str(dtype).removeprefix('torch.')}\n{report}")


def decode(args: Namespace) -> None:
    """Decode latents written by `animate --save-latents`; the frames do not depend on the chunk."""
    began = time.monotonic()
    limits = {name: value for name, value in _limits(args).items() if name != "memory"}
    if "checkpoint" not in args:
        raise InputError(_NO_CHECKPOINT)
    checkpoint = args.checkpoint
    _refuse_overwriting(args.output, [args.latents, checkpoint])
    latents, recipe = load_latents(args.latents)
    fps = getattr(args, "playback_fps", recipe.playback_fps if recipe else Settings().fps)
    check_output(args.output, fps)
    device, dtype = _device(args), getattr(args, "dtype", recipe.dtype if recipe else "float32")
    _use_threads(recipe, device)
    svd = _open(checkpoint, device, dtype, getattr(args, "variant", None))
    checker = chosen_filter(args)
    height, width = (cells * PIXELS_PER_LATENT for cells in latents.shape[2:])
    mark = will_mark(width, height, recipe, args)
    true_recipe = _still_true(recipe, checkpoint, device, dtype)
    with Bars() as bars:
        frames = svd.decode_latents(latents, **limits, callback=bars)
    require_clean(checker, frames, f"the clip of {args.latents}")
    frames, watermark = marked(frames, mark)
    if true_recipe is not None:
        true_recipe = dataclasses.replace(true_recipe, playback_fps=fps, watermark=watermark)
    path = write_clip(frames, args.output, fps, true_recipe)
    _say_done(path, frames, began)


@dataclass(frozen=True, slots=True)
class Means:
    """What a render uses but does not own: the function that loads its model, its progress callback, and the split if
    guidance runs in two processes."""

    load: Callable[[Order, Namespace, bool], tuple[StableVideo, Source]] = field(default_factory=lambda: load_model)
    bars: Callable[[], AbstractContextManager[ProgressFn]] = Bars
    split: GuidanceSplit | None = None


def _is_split(order: Order, split: GuidanceSplit | None) -> bool:
    return split is not None or (order.recipe is not None and order.recipe.split_guidance)


def _branches(order: Order, split: GuidanceSplit | None) -> dict[str, object]:
    """Options of `render` for the two guidance passes. A single process repeats a split clip with the passes one after
    the other, which gives the same bits."""
    if split is not None:
        return {"split": split}
    return {"joint": False} if _is_split(order, split) else {}


def _device_of_this_process(device: str) -> str:
    """The device of this process: for "cuda", the GPU with the process's local rank; else as given."""
    return _known_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}") if device == "cuda" else device


def _heard_once(split: GuidanceSplit) -> AbstractContextManager[object]:
    """Silence the process that does not lead, since both print the same. Errors are reported by either, outside this
    context."""
    if split.leads:
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(redirect_stdout(io.StringIO()))
    stack.enter_context(redirect_stderr(io.StringIO()))
    return stack


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
        device=_device(args),
        dtype=given.get("dtype", "float32"),
        variant=given.get("variant"),
        attention=given.get("attention", "auto"),
        weights=given.get("weights", "whole"),
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
    device = _known_device(getattr(args, "device", recipe.device))
    _use_threads(recipe, device)
    return Order(
        image=args.image if "image" in args else _recorded_picture(recipe.image),
        checkpoint=args.checkpoint if "checkpoint" in args else _recorded_checkpoint(recipe.checkpoint),
        settings=recipe.settings,
        playback_fps=recipe.playback_fps,
        device=device,
        dtype=recipe.dtype,
        attention=recipe.attention,
        weights=recipe.weights,
        recipe=recipe,
    )


def _recorded(source: Source, name: str, remedy: str) -> str:
    """The path that a recipe recorded. Raises InputError if it does not exist."""
    if not os.path.exists(source.path):  # unlike Path.exists, tolerates invalid names
        raise InputError(
            f"the recipe's {name} {source.path} does not exist, seen from the folder {Path.cwd()}: {remedy} or change "
            "to the folder that the clip was made in"
        )
    return source.path


def _recorded_picture(source: Source) -> str:
    return _recorded(source, "picture", "give its own path before --recipe")


def _recorded_checkpoint(source: Source) -> str:
    """The recorded checkpoint. The demo model is found by its hash if the package has moved. Raises InputError."""
    if not os.path.exists(source.path) and source.sha256 == Source.of(DEMO_MODEL).sha256:
        return str(DEMO_MODEL)
    return _recorded(source, "checkpoint", "name it with --checkpoint")


def check_settings(settings: Settings) -> None:
    """Raise InputError for settings that the pipeline would only reject after loading gigabytes. Uses the defaults of
    an arbitrary variant."""
    plan_sampling(settings.for_variant(VARIANTS["svd"]))
    _micro(settings)


def _micro(settings: Settings) -> MicroConditioning:
    return MicroConditioning(settings.fps, settings.motion_bucket, settings.augmentation)


def _check_outputs(order: Order, args: Namespace) -> None:
    inputs = [order.image, order.checkpoint]
    _refuse_overwriting(args.output, inputs)
    check_output(args.output, order.playback_fps)
    if "save_latents" in args:
        _refuse_overwriting(args.save_latents, [*inputs, args.output])
        check_latents_output(args.save_latents)


def _refuse_overwriting(output: str, kept: Sequence[str]) -> None:
    """Raise OutputError if an output is one of the inputs `kept`, or is inside a folder among them."""
    target = Path(output)
    places = (target.resolve(), target.parent.resolve() / target.name)  # a link's target, and the link itself
    for name in kept:
        path = Path(name)
        same = target.exists() and path.exists() and os.path.samefile(target, path)
        inside = path.is_dir() and any(path.resolve() in place.parents for place in places)
        if same or inside or path.resolve() in places:
            raise OutputError(f"output {output} would overwrite {name} or change what is in it: choose another path")


def _picture(order: Order, args: Namespace) -> tuple[Source, np.ndarray]:
    image = load_image(order.image, order.settings.background)
    return _same_source(order.image, order.recipe and order.recipe.image, args), image


def _way(order: Order, image: np.ndarray, memory: int | None) -> Plan | None:
    """The plan for limited memory, made before any weight is read; printed if `memory` is given. None without a
    limit on a device other than CUDA."""
    device = torch.device(order.device)
    free = free_bytes(device)
    if memory is None and free is None:
        return None
    job = _job(order, image, open_checkpoint(order.checkpoint, order.variant).config)
    if memory is None:
        return plan_or_leanest(job, free)
    way = plan_render(job, memory)
    sys.stderr.write(f"plan for {printable(order.image)}:\n{way.report()}\n")
    return way


def _job(order: Order, image: np.ndarray, config: ModelConfig) -> Job:
    width, height = _clip_size(order.settings, image, config.variant)
    settings = order.settings.for_variant(config.variant)
    how = {"reuse": settings.reuse > 0, "weights": order.weights}
    return Job(config, settings.frames, width, height, _DTYPES[order.dtype], torch.device(order.device), **how)


def _cramped(order: Order, image: np.ndarray, config: ModelConfig) -> list[str]:
    """A note, if a clip may not fit in the host's memory (on devices that use it), where the system may kill a process
    without a message. Free memory is only an estimate, so nothing is rejected."""
    job = _job(order, image, config)
    spare = None if has_own_memory(job.device) else spare_bytes(job.device)
    if spare is None or (needed := least_beside_weights(job, spare)) <= spare:
        return []
    size = f"{job.frames} frames of {job.width}x{job.height} in {order.dtype}"
    return [
        f"{size} need about {gibibytes(needed)} of memory beside the weights, and some {gibibytes(spare)} are free: "
        "a smaller --size, fewer --frames"
        f"{' or --dtype bfloat16' if order.dtype == 'float32' else ''} need less"
    ]


def _clip_size(settings: Settings, image: np.ndarray, variant: Variant) -> tuple[int, int]:
    width, height = default_size(image, variant)
    return round_size(settings.width or width, settings.height or height)


def load_model(order: Order, args: Namespace, stream_weights: bool) -> tuple[StableVideo, Source]:
    """Load the model; also returns its file. With a recipe, the file's hash is compared before loading; without one,
    hashing waits until the file has proved to be a checkpoint."""
    known = _same_source(order.checkpoint, order.recipe.checkpoint, args) if order.recipe else None
    more = {"stream_weights": stream_weights, "attention": order.attention, "weights": order.weights}
    svd = _open(order.checkpoint, order.device, order.dtype, order.variant, **more)
    return svd, known or Source.of(order.checkpoint)


def _say_notes(order: Order, svd: StableVideo, image: np.ndarray) -> None:
    """Print advice before the long work, except on the variant with a recipe, which settles all that it decides."""
    width, height = _clip_size(order.settings, image, svd.config.variant)
    notes = warnings_for(_micro(order.settings), height, width, svd.config.variant)
    notes += _cramped(order, image, svd.config)
    if Path(order.checkpoint) == DEMO_MODEL:
        notes = [DEMO_NOTE, *notes]
    if order.attention == "sage":
        notes = [_SAGE_NOTE, *notes]
    if order.weights in _WEIGHTS_NOTES:
        notes = [_WEIGHTS_NOTES[order.weights], *notes]
    if _unused_steps(order):
        notes = [_STEPS_NOTE.format(order.settings.steps), *notes]
    if order.settings.guidance_interval is not None:
        notes = [_INTERVAL_NOTE.format(*order.settings.guidance_interval), *notes]
    if order.settings.reuse > 0:
        notes = [_REUSE_NOTE.format(order.settings.reuse), *notes]
    if svd.variant_note and not order.recipe:
        notes = [svd.variant_note, *notes]
    for each in notes:
        note(each)


def _unused_steps(order: Order) -> bool:
    """Whether both steps and sigmas were given and disagree. Recipes are exempt, because they store both."""
    settings = order.settings
    if order.recipe or settings.steps is None or settings.sigmas is None:
        return False
    return settings.steps != len(sigmas_from_list(settings.sigmas)) - 1


def _use_threads(recipe: Recipe | None, device: str) -> None:
    """On the CPU, use the recipe's number of threads, on which the last bits depend."""
    if recipe is not None and torch.device(device).type == "cpu":
        torch.set_num_threads(recipe.threads)


def _same_source(path: str, recorded: Source | None, args: Namespace) -> Source:
    """The source to record. If the hash is the recipe's, the recorded path is kept even if the file has moved. Raises
    InputError for another hash unless --ignore-hash was given."""
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


def _recipe(order: Order, clip: Clip, image: Source, checkpoint: Source) -> Recipe:
    return Recipe(
        settings=clip.settings,
        playback_fps=order.playback_fps,
        sigmas=clip.sigmas,
        checkpoint=checkpoint,
        image=image,
        device=order.device,
        dtype=order.dtype,
        threads=torch.get_num_threads(),
        attention=order.attention,
        weights=order.weights,
    )


def _still_true(recipe: Recipe | None, checkpoint: str, device: str, dtype: DType) -> Recipe | None:
    """The recipe of decoded latents if rendering it would give the same frames; otherwise None, with a note."""
    if recipe is None:
        return None
    here = {"device": device, "dtype": dtype, "checkpoint": Source.of(checkpoint).sha256[:12]}
    made = {"device": recipe.device, "dtype": recipe.dtype, "checkpoint": recipe.checkpoint.sha256[:12]}
    others = ", ".join(f"{name} {made[name]} -> {here[name]}" for name in made if made[name] != here[name])
    if others:
        note(f"the clip will carry no recipe, for rendering it would give other frames: {others}")
    return None if others else recipe


def _open(checkpoint: str, device: str, dtype: DType, variant: str | None, **more: Any) -> StableVideo:
    """Load a checkpoint; `more` is passed to `load_checkpoint`."""
    return load_checkpoint(checkpoint, device=device, dtype=_DTYPES[dtype], variant=variant, **more)


def _limits(args: Namespace) -> dict[str, int | None]:
    """The decoder's chunk and budget and the render's memory, which change no bit. Raises InputError below 1."""
    limits = {name: getattr(args, name, None) for name in ("chunk", "budget", "memory")}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise InputError(f"{name} {value} is less than 1: leave it out for no limit")
    return limits


def _device(args: Namespace) -> str:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return _known_device(getattr(args, "device", default))


def _known_device(name: str) -> str:
    """The given device name. Raises InputError if there is no such device."""
    known_device(name)
    return name


def _rounding(asked: Settings, made: Settings) -> str:
    if asked.width in (None, made.width) and asked.height in (None, made.height):
        return ""
    return f" ({asked.width}x{asked.height} was asked for; sides are multiples of 64)"


def _say(text: str) -> None:
    """Print one line, whatever a path in it contains."""
    print(printable(text))


def _say_done(path: Path, frames: np.ndarray, began: float) -> None:
    count, height, width = frames.shape[:3]
    _say(f"{path}: {width}x{height}, {count} frames, {time.monotonic() - began:.1f} s")
