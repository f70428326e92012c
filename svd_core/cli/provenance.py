"""The invisible watermark and the user's content filter on the command line."""

from __future__ import annotations

from argparse import Namespace

import numpy as np

from ..errors import InputError, printable
from ..media.content_filter import ContentFilter, filter_named
from ..media.reading import read_frames
from ..media.watermark import detect, embed, library, obstacle
from ..recipe import Recipe
from .notes import note

MOST_VALUES = 2**28
"""Most values of the frames in which a watermark is looked for: 1 GiB in float32, 151 frames of 1024x576."""


def will_mark(width: int, height: int, recipe: Recipe | None, args: Namespace) -> bool:
    """Whether clips of this size are marked: never with --no-watermark, with a recipe as it says, else whenever
    possible, with a note if not.

    Raises InputError if the recipe's clip is marked and this one cannot be, since its bytes would differ.
    """
    if "no_watermark" in args or (recipe is not None and not recipe.watermark):
        return False
    reason = obstacle(width, height)
    if recipe is None:
        if reason:
            note(f"{reason}; the clip is written without")
        return not reason
    if reason:
        raise InputError(f"the recipe's clip is marked, and {reason}, or give --no-watermark for a clip without")
    if library() != recipe.watermark:
        note(f"the clip was marked by {recipe.watermark}, bytes may differ: here is {library()}")
    return True


def marked(frames: np.ndarray, mark: bool) -> tuple[np.ndarray, str]:
    """The frames to write, and the name of the library that marked them, for the recipe ("" if not marked)."""
    return (embed(frames), library()) if mark else (frames, "")


def watermark(args: Namespace) -> None:
    """Print whether a clip or picture holds the invisible watermark, judged by its first frames."""
    frames = read_frames(args.clip, MOST_VALUES)
    found = detect(frames)
    count = f"{len(frames)} frame" + ("s" if len(frames) > 1 else "")
    print(f"{printable(str(args.clip))}: {found} ({count} looked at)")


def chosen_filter(args: Namespace) -> ContentFilter | None:
    """The filter given by --content-filter, if any. Raises InputError if there is no such function."""
    return filter_named(args.content_filter) if "content_filter" in args else None


def require_clean(chosen: ContentFilter | None, frames: np.ndarray, what: str) -> None:
    """Raise InputError if a filter was chosen and objects to a frame."""
    if chosen is not None:
        chosen.require(frames, what)
