"""The files of a command: inputs, which are never overwritten, with their hashes for the recipe, and outputs."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, OutputError
from ..media import check_output, load_image
from ..recipe import Source
from .latents import check_latents_output

if TYPE_CHECKING:
    from .order import Order


def check_outputs(order: Order, args: Namespace) -> None:
    """Raise OutputError if the clip or the latents could not be written, or would overwrite an input."""
    refuse_overwriting(args.output, order.inputs)
    check_output(args.output, order.playback_fps)
    if "save_latents" in args:
        refuse_overwriting(args.save_latents, [*order.inputs, args.output])
        check_latents_output(args.save_latents)


def refuse_overwriting(output: str, inputs: Sequence[str]) -> None:
    """Raise OutputError if an output is one of the inputs, or is inside a folder among them."""
    target = Path(output)
    places = (target.resolve(), target.parent.resolve() / target.name)  # a link's target, and the link itself
    for name in inputs:
        path = Path(name)
        same = target.exists() and path.exists() and os.path.samefile(target, path)
        inside = path.is_dir() and any(path.resolve() in place.parents for place in places)
        if same or inside or path.resolve() in places:
            raise OutputError(f"output {output} would overwrite {name} or change what is in it: choose another path")


def read_picture(order: Order, args: Namespace) -> tuple[np.ndarray, Source]:
    """The picture (H, W, 3) in [0, 1], and the source to record for it."""
    image = load_image(order.image, order.settings.background)
    return image, source_to_record(Source.of(order.image), order.recipe and order.recipe.image, args)


def source_to_record(found: Source, recorded: Source | None, args: Namespace) -> Source:
    """The source for a clip's recipe. If the hash is that of the repeated recipe, the path recorded there is kept, even
    if the file has moved. Raises InputError for another hash unless --ignore-hash was given."""
    if recorded is None:
        return found
    if recorded.sha256 == found.sha256:
        return recorded
    if "ignore_hash" in args:
        return found
    raise InputError(
        f"{found.path} has SHA-256 {found.sha256[:12]}, the recipe was made with {recorded.sha256[:12]} "
        f"({recorded.path}): give that file, or --ignore-hash for a clip that will differ"
    )


def recorded_path(source: Source, name: str, remedy: str) -> str:
    """The path that a recipe recorded. Raises InputError if it does not exist."""
    if not os.path.exists(source.path):  # unlike Path.exists, tolerates invalid names
        raise InputError(
            f"the recipe's {name} {source.path} does not exist, seen from the folder {Path.cwd()}: {remedy} or change "
            "to the folder that the clip was made in"
        )
    return source.path
