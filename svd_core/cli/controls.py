"""Controls on the command line: from flags or a recipe, with their pictures and clips read from files."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..config import Variant
from ..controls import Controls
from ..errors import InputError
from ..media import fit_image, load_image
from ..media.reading import read_last_frames
from ..motion import CameraMove, ObjectMove, Windows
from ..recipe import FRAME_FILES, RecordedControls, Source
from ..settings import Fit, Settings, check_count
from ..shot import clip_size
from .files import recorded_path, source_to_record

FILES = {"brush": "--brush", "end": "--end", "continued": "--continue", "depth": "--depth", "drag": "--drag"}
"""Controls that are read from a file, and their flags."""

_CURVES = ("motion_bucket", "augmentation")
_MOVES = ("camera", "drag_move")
_MADE = (*FILES, *_CURVES, *_MOVES)
_PLAIN = [field.name for field in dataclasses.fields(RecordedControls) if field.name not in _MADE]
_ABOUT = {"feather": "brush", "colour_hold": "window"}
"""Flags that do nothing without another."""

_PAINTED = {
    "brush": ("mask", "paint it on the picture"),
    "drag": ("mask", "paint it on the picture"),
    "depth": ("depth map", "make it from the picture"),
}
"""Controls that are a grey picture over the still, what they are called, and how they get its size."""

_BLACK = (0, 0, 0)


def controls_from_flags(given: Mapping[str, Any]) -> RecordedControls:
    """The controls among the flags. Raises InputError for a file that cannot be read, and for a flag without the one
    that it is about."""
    for name, other in _ABOUT.items():
        if name in given and other not in given:
            raise InputError(
                f"--{name.replace('_', '-')} is about --{other}, which was not given: give both, or neither"
            )
    plain = {name: given[name] for name in _PLAIN if name in given}
    curves = {name: given.get(f"{name}_points") for name in _CURVES}
    files = {name: Source.of(given[name], FRAME_FILES) for name in FILES if name in given}
    return RecordedControls(**plain, **curves, **files, camera=_camera(given), drag_move=_drag_move(given))


def _camera(given: Mapping[str, Any]) -> CameraMove | None:
    """The camera among the flags; None without any. Raises InputError for --ease or --depth without what moves."""
    moves = {name: given[name] for name in ("zoom", "roll") if name in given}
    moves |= dict(zip(("pan_x", "pan_y"), given.get("pan", ()), strict=False))
    if "depth" in given and not moves:
        raise InputError("--depth is about --pan, --zoom or --roll, and none was given: give one, or leave it out")
    if "ease" in given and not moves and "drag" not in given:
        raise InputError("--ease is about --pan, --zoom, --roll or --drag, and none was given: give one")
    return CameraMove(**moves, ease=given.get("ease", False)) if moves else None


def _drag_move(given: Mapping[str, Any]) -> ObjectMove | None:
    """Where the thing of --drag goes; None without it. Raises InputError for a way without a thing."""
    moves = {name: given[f"drag_{name}"] for name in ("scale", "turn") if f"drag_{name}" in given}
    moves |= dict(zip(("right", "down"), given.get("drag_by", ()), strict=False))
    if moves and "drag" not in given:
        raise InputError("--drag-by, --drag-scale and --drag-turn move what --drag shows, which was not given: give it")
    if "drag" in given and not moves:
        raise InputError("--drag says what moves and not where to: give --drag-by, --drag-scale or --drag-turn")
    return ObjectMove(**moves, ease=given.get("ease", False)) if moves else None


def check_controls(chosen: RecordedControls) -> Controls:
    """The controls with the names of their files in place of what these hold. Raises InputError for controls that
    exclude each other, whatever their files hold."""
    controls = Controls(**{field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)})
    for name in _CURVES:
        check_count(f"{name}_points", getattr(chosen, name))
    return controls


def controls_from_recipe(recorded: RecordedControls, args: Namespace) -> RecordedControls:
    """The recorded controls, with the paths that their files have now. Raises InputError for a file that is not there
    or that the recipe has no use for."""
    given = {name: getattr(args, name) for name in FILES if name in args}
    for name in given.keys() - recorded.files.keys():
        raise InputError(f"{FILES[name]} beside --recipe, whose clip was made without: leave it out")
    moved = {}
    for name, source in recorded.files.items():
        path = given.get(name) or recorded_path(source, f"{name} file", f"give its own path with {FILES[name]}")
        moved[name] = dataclasses.replace(source, path=path)
    return dataclasses.replace(recorded, **moved)


def controls_to_record(chosen: RecordedControls, made: RecordedControls | None, args: Namespace) -> RecordedControls:
    """The controls for a clip's recipe; `made` are those of the recipe that it repeats. Raises InputError for files
    with another hash: see `source_to_record`."""
    if made is None:
        return chosen
    found = {name: Source.of(source.path, FRAME_FILES) for name, source in chosen.files.items()}
    kept = {name: source_to_record(source, made.files[name], args) for name, source in found.items()}
    return dataclasses.replace(chosen, **kept)


def read_controls(chosen: RecordedControls, picture: np.ndarray, settings: Settings, variant: Variant) -> Controls:
    """The controls with their files read, and fitted as the picture (H, W, 3) is. Raises InputError."""
    width, height = clip_size(picture, settings, variant)
    fields = {name: getattr(chosen, name) for name in (*_PLAIN, *_CURVES, *_MOVES)}
    for name in _PAINTED:
        if getattr(chosen, name) is not None:
            fields[name] = _painted(name, getattr(chosen, name).path, picture, (width, height), settings.fit)
    if chosen.end is not None:
        end = load_image(chosen.end.path, settings.background)
        fields["end"] = fit_image(end, width, height, settings.fit, settings.background).image
    if chosen.continued is not None:
        fields["continued"] = read_last_frames(chosen.continued.path, _shared_frames(chosen, settings, variant))
    return Controls(**fields)


def _painted(name: str, path: str | Path, picture: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """A mask or depth map (H, W) of the clip's size, from one of the picture's or of the clip's. Transparent parts and
    what a padded picture leaves free are black: still, or far."""
    mask = load_image(path, _BLACK)
    if mask.shape[:2] not in (picture.shape[:2], size[::-1]):
        called, remedy = _PAINTED[name]
        painted, needed = (f"{each.shape[1]}x{each.shape[0]}" for each in (mask, picture))
        raise InputError(f"{called} {path} is {painted} and the picture {needed}: {remedy}, at its size")
    # Bilinear, because a filter that overshoots would set parts free beside the painted ones.
    return fit_image(mask, *size, fit, _BLACK, Image.Resampling.BILINEAR).image.mean(axis=-1)


def _shared_frames(chosen: RecordedControls, settings: Settings, variant: Variant) -> int:
    """Frames of the clip to continue that the first window begins with. Raises InputError for windows that do not fit
    the new clip, of which there could be more than memory holds."""
    windows = Windows.of(chosen.window or variant.frames, chosen.fused, chosen.overlap)
    windows.starts(settings.frames or variant.frames)
    return windows.overlap
