"""Rendering one order, from the picture's file to the clip's."""

from __future__ import annotations

import dataclasses
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint.load import open_checkpoint
from ..clip import Clip, ProgressFn
from ..config import ModelConfig
from ..controls import Controls
from ..device_memory import free_bytes
from ..errors import printable
from ..loading import load_checkpoint
from ..media import write_clip
from ..media.content_filter import ContentFilter
from ..pipeline import StableVideo
from ..planning import Plan, plan_or_leanest, plan_render
from ..recipe import DType, Recipe, RecordedControls, Source
from ..sampling import GuidanceSplit
from ..settings import Settings
from ..shot import Shot
from ..strict_json import MAX_ITEMS
from ..verdicts import verdicts
from .advice import advice
from .controls import controls_to_record, read_controls
from .files import check_outputs, read_picture, source_to_record
from .latents import save_latents
from .notes import note
from .order import DTYPES, Order, memory_limits
from .progress import Bars
from .provenance import chosen_filter, marked, require_clean, will_mark


def open_model(checkpoint: str, device: str, dtype: DType, variant: str | None, **options: Any) -> StableVideo:
    """Load a checkpoint; `options` are passed to `load_checkpoint`."""
    return load_checkpoint(checkpoint, device=device, dtype=DTYPES[dtype], variant=variant, **options)


def load_model(order: Order, source: Source | None, stream_weights: bool) -> tuple[StableVideo, Source]:
    """Load the model; also returns its file, which is `source` if that is known already."""
    options = {"stream_weights": stream_weights, "attention": order.attention, "weights": order.weights}
    svd = open_model(order.checkpoint, order.device, order.dtype, order.variant, **options)
    return svd, source or Source.of(order.checkpoint)


def render_order(
    order: Order,
    args: Namespace,
    load: Callable[[Order, Source | None, bool], tuple[StableVideo, Source]] = load_model,
    progress: Callable[[], AbstractContextManager[ProgressFn]] = Bars,
    split: GuidanceSplit | None = None,
) -> None:
    """Render one clip and write it. All input is validated before long work begins.

    load: gives the model. progress: makes the callback of the render. split: set if guidance runs in two processes, of
    which only the leading one writes.
    """
    start = time.monotonic()
    limits = memory_limits(args)
    order.check_settings()
    check_outputs(order, args)
    content_filter = chosen_filter(args)
    read = _read(order, args, content_filter)
    shot = Shot.of(read.config.variant, read.image, order.settings, read.controls)
    plan = _memory_plan(order, shot, read.config, limits["memory"])
    verdicts().begin(order.recipe.verdicts if order.recipe else ())
    svd, checkpoint_source = load(order, read.checkpoint, plan is not None and plan.stream_weights)
    for text in advice(order, svd, shot):
        note(text)
    mark = will_mark(shot.settings.width, shot.settings.height, order.recipe, args)
    with progress() as callback:
        how = limits | _guidance_options(order, split)
        clip = svd.render_shot(shot, **how, callback=callback)
    if split is not None and not split.leads:
        return
    require_clean(content_filter, clip.frames, f"the clip of {order.image}")
    frames, watermark = marked(clip.frames, mark)
    recipe = _recipe(order, clip, read, checkpoint_source)
    recipe = dataclasses.replace(recipe, watermark=watermark, split_guidance=_splits_guidance(order, split))
    if "save_latents" in args:
        save_latents(clip.latents, args.save_latents, recipe)
    path = write_clip(frames, args.output, order.playback_fps, recipe)
    _print_reports(order, clip)
    print_written(path, frames, start)


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What an order's files hold: the picture (H, W, 3) in [0, 1], the controls and the model's sizes; and what to
    record of them. The checkpoint is None without a recipe: hashing it waits until it has proved to be one."""

    image: np.ndarray
    image_source: Source
    checkpoint: Source | None
    config: ModelConfig
    controls: Controls
    recorded: RecordedControls


def _read(order: Order, args: Namespace, content_filter: ContentFilter | None) -> _Read:
    image, source = read_picture(order, args)
    require_clean(content_filter, image[None], order.image)
    checkpoint = order.recipe and source_to_record(Source.of(order.checkpoint), order.recipe.checkpoint, args)
    config = open_checkpoint(order.checkpoint, order.variant).config
    recorded = controls_to_record(order.controls, order.recipe and order.recipe.controls, args)
    controls = read_controls(order.controls, image, order.settings, config.variant)
    for name, shown in (("end", controls.end), ("continued", controls.continued)):
        if shown is not None:
            require_clean(content_filter, np.reshape(shown, (-1, *shown.shape[-3:])), order.controls.files[name].path)
    return _Read(image, source, checkpoint, config, controls, recorded.for_variant(config.variant))


def _memory_plan(order: Order, shot: Shot, config: ModelConfig, memory: int | None) -> Plan | None:
    """The plan for limited memory, made before any weight is read; printed if `memory` is given. None without a
    limit on a device other than CUDA."""
    job, free = order.job(shot, config), free_bytes(torch.device(order.device))
    if memory is None:
        return None if free is None else plan_or_leanest(job, free)
    plan = plan_render(job, memory)
    sys.stderr.write(f"plan for {printable(order.image)}:\n{plan.report()}\n")
    return plan


def _splits_guidance(order: Order, split: GuidanceSplit | None) -> bool:
    return split is not None or (order.recipe is not None and order.recipe.split_guidance)


def _guidance_options(order: Order, split: GuidanceSplit | None) -> dict[str, object]:
    """Options of `render` for the two guidance passes. A single process repeats a split clip with the passes one after
    the other, which gives the same bits."""
    if split is not None:
        return {"split": split}
    return {"joint": False} if _splits_guidance(order, split) else {}


def _recipe(order: Order, clip: Clip, read: _Read, checkpoint: Source) -> Recipe:
    asked = {name: getattr(order.settings, name) for name in ("motion_bucket", "augmentation")}
    return Recipe(
        settings=dataclasses.replace(clip.settings, **asked),  # Un-stick would raise them twice
        playback_fps=order.playback_fps,
        sigmas=clip.sigmas,
        checkpoint=checkpoint,
        image=read.image_source,
        device=order.device,
        dtype=order.dtype,
        threads=torch.get_num_threads(),
        attention=order.attention,
        weights=order.weights,
        controls=read.recorded,
        verdicts=verdicts().recorded(MAX_ITEMS),
    )


def _print_reports(order: Order, clip: Clip) -> None:
    _print_line(f"{order.image}: {clip.fit_report}{_rounding_report(order.settings, clip.settings)}")
    if clip.reuse_report:
        _print_line(f"{order.image}: {clip.reuse_report}")


def _rounding_report(asked: Settings, made: Settings) -> str:
    if asked.width in (None, made.width) and asked.height in (None, made.height):
        return ""
    return f" ({asked.width}x{asked.height} was asked for; sides are multiples of 64)"


def print_written(path: Path, frames: np.ndarray, start: float) -> None:
    """Print a clip's path, its size and the seconds since `start`."""
    count, height, width = frames.shape[:3]
    _print_line(f"{path}: {width}x{height}, {count} frames, {time.monotonic() - start:.1f} s")


def _print_line(text: str) -> None:
    """Print one line, whatever a path in it contains."""
    print(printable(text))
