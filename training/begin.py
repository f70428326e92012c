"""Set up the folder of a new run whose video stage starts from the weights of a trained model.

The first two stages are kept unchanged, so the recipe may differ from the file's in the video stage only, and in the
clips on which that stage is trained: `data`, and the frames and size that `model.variant` states of them. The new run's
export names the clips of the first two stages in its history.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svd_core.checkpoint import open_checkpoint
from svd_core.checkpoint.header import read_header
from svd_core.config import ModelConfig
from svd_core.errors import CheckpointError, InputError

from .autoencoder import image_config
from .checkpoint import digest_of, load_tensors, require_same
from .distributed import ALONE
from .export import RECIPE_KEY, STAGES_KEY
from .initialise import new_vae
from .loop import Place, alone
from .randomness import generator_for
from .recipe import Recipe
from .stages import Kept, autoencoder_is, save_kept, temporal_is
from .start import START_KEY, Start, save_start

Tensors = Mapping[str, Tensor]


def begin_from(checkpoint: Path, frame_decoder: Path, recipe: Recipe, folder: Path) -> None:
    """Fill `folder` from the files of `export` and `export_frame_decoder`.

    Raises CheckpointError if these files were not written by training, or differ from the recipe in the networks or
    the first two stages; InputError if the folder already holds a run, or another process begins one there.
    """
    _require_new(folder)
    history = _history(checkpoint, read_header(checkpoint).metadata)
    require_same(checkpoint, _decisive(history["recipe"]), _decisive(json.loads(recipe.to_json())))
    trained = open_checkpoint(checkpoint)
    _require_model(checkpoint, trained.config, recipe.model)
    vae = trained.vae_weights(dtype=torch.float32, encoder_dtype=torch.float32)
    image = _fitting(checkpoint, _image_keys(recipe), vae | load_tensors(frame_decoder)[0])
    parts = {
        "unet": trained.unet_weights(dtype=torch.float32),
        "clip_vision": trained.clip_vision_weights(dtype=torch.float32),
    }
    first = {f"{part}.{key}": tensor for part, weights in parts.items() for key, tensor in weights.items()}
    with alone(Place(folder, "autoencoder"), ALONE):
        _require_new(folder)  # still
        # Saved first: without it, the folder would look like a run from random weights.
        save_start(folder, Start(first, history))
        _save_finished(folder, "autoencoder", image, recipe.autoencoder.optimisation.steps, autoencoder_is(recipe))
        temporal = temporal_is(recipe, digest_of(image))
        _save_finished(folder, "temporal", vae, recipe.temporal.optimisation.steps, temporal)


def _require_new(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} holds a run already: give a new folder, or remove that one")


def _history(checkpoint: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        history = {"recipe": json.loads(metadata[RECIPE_KEY]), "stages": json.loads(metadata[STAGES_KEY])}
        return history | ({"start": json.loads(metadata[START_KEY])} if START_KEY in metadata else {})
    except (KeyError, ValueError) as error:
        message = f"{checkpoint} was not written by training: give a file of python -m training export"
        raise CheckpointError(message) from error


def _decisive(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a recipe (as JSON) that decide all shapes, and what the first two stages learned from their clips.
    The clips are left out: any size and number of frames fits these networks."""
    model = {name: recipe["model"].get(name) for name in ("unet", "vae", "clip_vision")}
    return {"model": model, **{name: recipe.get(name) for name in ("seed", "autoencoder", "temporal")}}


def _require_model(checkpoint: Path, found: ModelConfig, given: ModelConfig) -> None:
    """Raise CheckpointError if a file's tensors do not match the model in its recipe."""
    for part in ("unet", "vae", "clip_vision"):
        if getattr(found, part) != getattr(given, part):
            raise CheckpointError(f"{checkpoint} holds another {part} than its recipe says: export it again")


def _image_keys(recipe: Recipe) -> Tensors:
    return new_vae(image_config(recipe.model.vae), generator_for(recipe.seed)).state_dict()


def _fitting(path: Path, needed: Tensors, found: Tensors) -> dict[str, Tensor]:
    """The needed tensors of `found`, in float32. Raises CheckpointError if one is missing or has the wrong shape."""
    for key, tensor in needed.items():
        if key not in found or found[key].shape != tensor.shape:
            raise CheckpointError(f"{path} and its frame decoder lack a fitting {key}: give both files of one export")
    return {key: found[key].float() for key in needed}


def _save_finished(folder: Path, stage: str, weights: Tensors, steps: int, configuration: Mapping[str, Any]) -> None:
    save_kept(folder, stage, Kept(weights, steps, steps, configuration))
