"""The commands `animate`, `inspect`, `plan` and `decode`. All input is validated before long work begins."""

from __future__ import annotations

import dataclasses
import io
import os
import time
from argparse import Namespace
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stderr, redirect_stdout

import torch

from ..checkpoint import inspect_checkpoint
from ..checkpoint.load import open_checkpoint
from ..config import PIXELS_PER_LATENT, VARIANTS, ModelConfig, VAEConfig
from ..errors import InputError
from ..media import check_output, round_size, write_clip
from ..planning import Job, plan_render
from ..recipe import DType, Recipe, RecordedControls, Source
from ..sampling import GuidanceSplit, split_guidance
from ..settings import Settings
from ..shot import job_of
from ..verdicts import verdicts
from .controls import check_controls, controls_from_flags
from .files import refuse_overwriting
from .latents import load_latents
from .notes import note
from .order import DTYPES, chosen_device, existing_device, memory_limits, order_of, use_threads
from .progress import Bars
from .provenance import chosen_filter, marked, require_clean, will_mark
from .render import open_model, print_written, render_order


def animate(args: Namespace) -> None:
    """Render a picture, from flags or from a recipe, and write the clip with its recipe inside."""
    order = order_of(args)
    if "split_guidance" not in args:
        render_order(order, args)
        return
    order = dataclasses.replace(order, device=_device_of_this_process(order.device))
    with split_guidance(torch.device(order.device)) as split, _silent_unless_leading(split):
        render_order(order, args, split=split)


def inspect(args: Namespace) -> None:
    """Print what a checkpoint holds."""
    print(inspect_checkpoint(args.checkpoint).report())


def plan(args: Namespace) -> None:
    """Print how a clip would run in a given memory, without loading weights or rendering."""
    config = _model_config(args)
    width, height = round_size(*getattr(args, "size", (config.variant.width, config.variant.height)))
    frames = getattr(args, "frames", None)
    settings = Settings(frames=frames, width=width, height=height).for_variant(config.variant)
    dtype = getattr(args, "dtype", "float16")
    controls = check_controls(controls_from_flags(vars(args)))
    job = job_of(config, settings, controls, dtype=DTYPES[dtype])
    report = plan_render(job, args.memory).report()
    print(f"clip:     {job.frames} frames of {width}x{height}{_way(job)}, {dtype}\n{report}")


def _way(job: Job) -> str:
    """In words, how a planned clip is more than one pass from its picture."""
    if job.loop:
        return " as a loop, which drops the last"
    if job.both_ends:
        return " to an end picture"
    return f" in windows of {job.window}" if job.window else ""


def decode(args: Namespace) -> None:
    """Decode latents written by `animate --save-latents`; the frames do not depend on the chunk."""
    start = time.monotonic()
    limits = {name: value for name, value in memory_limits(args).items() if name != "memory"}
    if "checkpoint" not in args:
        raise InputError("--checkpoint was not given: name the one that the latents were made with")
    refuse_overwriting(args.output, [args.latents, args.checkpoint])
    latents, recipe = load_latents(args.latents)
    fps = getattr(args, "playback_fps", recipe.playback_fps if recipe else Settings().fps)
    check_output(args.output, fps)
    device, dtype = chosen_device(args), getattr(args, "dtype", recipe.dtype if recipe else "float32")
    use_threads(recipe, device)
    verdicts().begin(recipe.verdicts if recipe else ())
    svd = open_model(args.checkpoint, device, dtype, getattr(args, "variant", None))
    content_filter = chosen_filter(args)
    height, width = (cells * PIXELS_PER_LATENT for cells in latents.shape[2:])
    mark = will_mark(width, height, recipe, args)
    circular = recipe is not None and recipe.controls.loop
    recipe_to_keep = _recipe_if_it_repeats(recipe, args.checkpoint, device, dtype)
    with Bars() as bars:
        frames = svd.decode_latents(latents, **limits, circular=circular, callback=bars)
    require_clean(content_filter, frames, f"the clip of {args.latents}")
    frames, watermark = marked(frames, mark)
    if recipe_to_keep is not None:
        recipe_to_keep = dataclasses.replace(recipe_to_keep, playback_fps=fps, watermark=watermark)
    path = write_clip(frames, args.output, fps, recipe_to_keep)
    print_written(path, frames, start)


def _device_of_this_process(device: str) -> str:
    """The device of this process: for "cuda", the GPU with the process's local rank; else as given."""
    return existing_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}") if device == "cuda" else device


def _silent_unless_leading(split: GuidanceSplit) -> AbstractContextManager[object]:
    """Silence the process that does not lead, since both print the same. Errors are reported by either, outside this
    context."""
    if split.leads:
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(redirect_stdout(io.StringIO()))
    stack.enter_context(redirect_stderr(io.StringIO()))
    return stack


def _model_config(args: Namespace) -> ModelConfig:
    """The sizes of a checkpoint's networks, or of a released variant (svd_xt by default)."""
    variant = getattr(args, "variant", None)
    if "checkpoint" in args:
        detection = open_checkpoint(args.checkpoint, variant).detection
        if variant and detection.variant_note:
            note(detection.variant_note)
        return detection.config
    name = variant or "svd_xt"
    vae = VAEConfig(temporal="image" not in name, decoder_quant="image" in name)
    return ModelConfig(vae=vae, variant=VARIANTS[name])


def _finished_after_decoding(controls: RecordedControls) -> str:
    """The flag by which a render changes decoded pixels, which decoding alone does not ("" for none)."""
    if controls.brush:
        return "--brush keeps pixels of its picture"
    return "--colour-hold changes pixels" if controls.window is not None and controls.colour_hold else ""


def _recipe_if_it_repeats(recipe: Recipe | None, checkpoint: str, device: str, dtype: DType) -> Recipe | None:
    """The recipe of decoded latents if rendering it would give the same frames; otherwise None, with a note."""
    if recipe is None:
        return None
    here = {"device": device, "dtype": dtype, "checkpoint": Source.of(checkpoint).sha256[:12]}
    made = {"device": recipe.device, "dtype": recipe.dtype, "checkpoint": recipe.checkpoint.sha256[:12]}
    others = ", ".join(f"{name} {made[name]} -> {here[name]}" for name in made if made[name] != here[name])
    others = others or _finished_after_decoding(recipe.controls)
    if others:
        note(f"the clip will carry no recipe, for rendering it would give other frames: {others}")
    return None if others else recipe
