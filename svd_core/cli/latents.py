"""Latents in a safetensors file: `latent` (T, 4, h, w) float32 in sampler units, with the clip's recipe as metadata."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import LATENT_CHANNELS, PIXELS_PER_LATENT
from ..errors import InputError, OutputError
from ..media import check_target, replacing
from ..media.metadata import TEXT_KEY
from ..recipe import Recipe
from ..settings import MAX_FRAMES, MAX_SIDE

KEY = "latent"
SUFFIX = ".safetensors"
MAX_CELLS = MAX_SIDE // PIXELS_PER_LATENT


def check_latents_output(path: str | Path) -> None:
    """Raise OutputError if latents could not be written to `path`; called before rendering."""
    target = Path(path)
    if target.suffix.lower() != SUFFIX:
        raise OutputError(f"latents output {target} ends in {target.suffix or 'nothing'}: needed {SUFFIX}")
    check_target(target)


def save_latents(latents: Tensor, path: str | Path, recipe: Recipe) -> None:
    """Write latents (T, 4, h, w) atomically. Raises OutputError."""
    with replacing(Path(path)) as scratch:
        try:
            scratch.touch()
            mode = scratch.stat().st_mode
            save_file({KEY: latents.float().contiguous()}, scratch, metadata={TEXT_KEY: recipe.to_json()})
            scratch.chmod(mode)  # default permissions: safetensors makes the file readable only by its owner
        except SafetensorError as error:  # raised for a full disk, for example
            raise OutputError(f"latents output {path} cannot be written ({error}): choose another place") from error


def load_latents(path: str | Path) -> tuple[Tensor, Recipe | None]:
    """The latents (T, 4, h, w) float32 of a file and the recipe they were made with, if any. Raises InputError."""
    path = Path(path)
    if not path.is_file():
        why = "are not a regular file" if path.exists() else "do not exist"
        raise InputError(f"latents {path} {why}: give a file made by animate --save-latents")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if KEY not in names:
                raise InputError(
                    f"latents {path} hold {', '.join(names[:3]) or 'nothing'}: needed a tensor named {KEY}"
                )
            _check_shape(path, tuple(file.get_slice(KEY).get_shape()))
            text = (file.metadata() or {}).get(TEXT_KEY)
            return file.get_tensor(KEY).to(torch.float32), Recipe.from_json(text) if text else None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"latents {path} cannot be read ({error}): give a file made by animate --save-latents"
        ) from error


def _check_shape(path: Path, shape: tuple[int, ...]) -> None:
    fits = len(shape) == 4 and shape[1] == LATENT_CHANNELS and 1 <= shape[0] <= MAX_FRAMES
    if not fits or not all(1 <= side <= MAX_CELLS for side in shape[2:]):
        raise InputError(
            f"latents {path} have shape {shape}: needed (1 to {MAX_FRAMES} frames, {LATENT_CHANNELS}, height, width), "
            f"sides of 1 to {MAX_CELLS}"
        )
