"""Export a run's folder to one file with the official key names, which every Stable Video Diffusion loader reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from svd_core.checkpoint.hints import CONFIG_KEY
from svd_core.checkpoint.inventory import inventory
from svd_core.checkpoint.keymaps import CONDITIONER_VAE, FIRST_STAGE, UNET, VISUAL
from svd_core.config import ModelConfig
from svd_core.errors import CheckpointError, OutputError

from .checkpoint import as_half, require_same, save_tensors
from .loop import Place
from .recipe import Recipe
from .stages import Kept, read_kept, temporal_is, video_is
from .start import START_KEY, Start, read_start

MEBIBYTE = 2**20
SHIPPED_LIMIT = 16 * MEBIBYTE
"""Maximum bytes of the model that ships with the pack."""

RECIPE_KEY, STAGES_KEY, LICENCE_KEY = "training.recipe", "training.stages", "license"


def export(recipe: Recipe, folder: Path, output: Path, limit: int = SHIPPED_LIMIT) -> Path:
    """Write the averaged weights of all stages as float16 safetensors of at most `limit` bytes.

    The metadata hold the configuration that shapes do not show, the recipe, how far each stage was trained, and the
    licence. Tensors that inference never reads are left out. Raises CheckpointError if a stage is missing or of another
    model, OutputError if the file would be too large.
    """
    start = read_start(folder)
    kept = {stage: read_kept(folder, stage) for stage in ("temporal", "video")}
    _require_one_autoencoder(folder, kept)
    _require_recipe(recipe, folder, kept, start)
    tensors = official_tensors(recipe.model, kept["temporal"].weights, kept["video"].weights)
    half = {name: as_half(name, tensor) for name, tensor in tensors.items()}
    metadata = metadata_of(recipe, kept, start)
    size = sum(2 * tensor.numel() for tensor in half.values()) + _header_bytes(half, metadata)
    if size > limit:
        raise OutputError(
            f"the model needs {size / MEBIBYTE:.1f} MiB, at most {limit / MEBIBYTE:.1f} are allowed: make it smaller, "
            "or raise the limit"
        )
    save_tensors(output, half, metadata)
    return output


def export_frame_decoder(folder: Path, output: Path) -> Path:
    """Write stage 1's frame-wise decoder as float16, for comparison with the temporal one."""
    weights = read_kept(folder, "autoencoder").weights
    decoder = {name: as_half(name, tensor) for name, tensor in weights.items() if name.startswith("decoder.")}
    save_tensors(output, decoder, {"format": "pt"})
    return output


def _require_one_autoencoder(folder: Path, kept: Mapping[str, Kept]) -> None:
    digests = {stage: each.configuration.get("autoencoder_weights") for stage, each in kept.items()}
    if len(set(digests.values())) > 1:
        raise CheckpointError(
            f"the stages in {folder} were trained on different autoencoders ({digests}): train both on the present one"
        )


def _require_recipe(recipe: Recipe, folder: Path, kept: Mapping[str, Kept], start: Start | None) -> None:
    """Raise CheckpointError unless the stages were trained by this recipe, which the file will name; shapes alone do
    not identify a recipe."""
    digest = str(kept["video"].configuration.get("autoencoder_weights"))  # of stage 1, the same for both stages
    given = {"temporal": temporal_is(recipe, digest), "video": video_is(recipe, digest, start)}
    for stage, configuration in given.items():
        require_same(Place(folder, stage).weights, kept[stage].configuration, configuration)


def official_tensors(config: ModelConfig, vae: Mapping[str, Tensor], video: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official key -> tensor, for exactly the tensors that inference reads. `vae` has a `VideoVAE`'s keys, `video` has
    the keys of the UNet and the image encoder after "unet." and "clip_vision.". Raises CheckpointError on a mismatch.
    """
    home = CONDITIONER_VAE if config.vae.encoder_quant else FIRST_STAGE
    prefixes = {"encoder.": home, "quant_conv.": home, "decoder.": FIRST_STAGE, "post_quant_conv.": FIRST_STAGE}
    tensors = {_prefix(prefixes, key) + key: tensor for key, tensor in vae.items()}
    for part, prefix in (("unet.", UNET), ("clip_vision.", VISUAL)):
        own = {key.removeprefix(part): tensor for key, tensor in video.items() if key.startswith(part)}
        tensors |= {prefix + key: tensor for key, tensor in own.items()}
    _require_shapes(config, home, tensors)
    return tensors


def _prefix(prefixes: Mapping[str, str], key: str) -> str:
    return next(prefix for start, prefix in prefixes.items() if key.startswith(start))


def _require_shapes(config: ModelConfig, home: str, tensors: Mapping[str, Tensor]) -> None:
    needed = {key: each.shape for key, each in inventory(config, home).items() if each.required}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    wrong = sorted(key for key in needed.keys() | found.keys() if needed.get(key) != found.get(key))
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} trained tensors do not fit the recipe's model ({wrong[0]}): give the recipe of the run"
        )


def metadata_of(recipe: Recipe, kept: Mapping[str, Kept], start: Start | None = None) -> dict[str, str]:
    """The file's metadata, including what the video stage started from; all values are strings."""
    model = recipe.model
    hints = {
        "unet": {"head_channels": model.unet.head_channels},
        "clip_vision": {"head_channels": model.clip_vision.head_channels},
        "variant": dataclasses.asdict(model.variant),
    }
    return {
        "format": "pt",
        CONFIG_KEY: json.dumps(hints),
        RECIPE_KEY: json.dumps(dataclasses.asdict(recipe)),
        STAGES_KEY: json.dumps({stage: f"step {each.step} of {each.steps}" for stage, each in kept.items()}),
        LICENCE_KEY: recipe.licence,
        **({START_KEY: json.dumps(start.history)} if start is not None else {}),
    }


def _header_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Upper bound on safetensors' header: its length, names, shapes, offsets and metadata."""
    entries = sum(len(name) + 80 + 8 * tensor.ndim for name, tensor in tensors.items())
    return 16 + entries + len(json.dumps(dict(metadata)))
