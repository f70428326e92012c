"""One checkpoint file or diffusers folder as native MODEL, CLIP_VISION and VAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...svd_core.checkpoint import open_checkpoint
from .clip_vision import clip_vision_model
from .model import model_patcher
from .vae import StableVideoVAE

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel
    from comfy.model_patcher import ModelPatcher

    from ...svd_core.checkpoint import Checkpoint
    from ...svd_core.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Loaded:
    """The three native objects of a checkpoint, its configuration, and a sentence on its variant if that is a guess."""

    config: ModelConfig
    model: ModelPatcher
    clip_vision: ClipVisionModel
    vae: StableVideoVAE
    variant_note: str


def load(path: Path, variant: str | None = None) -> Loaded:
    """Load a checkpoint. Raises CheckpointError, with a one-line message, if it is not a usable SVD checkpoint; before
    any weight is read if the file's header shows it."""
    checkpoint = open_checkpoint(path, variant)
    config = checkpoint.config
    return Loaded(
        config,
        _model(checkpoint, path, variant),
        clip_vision_model(config.clip_vision, checkpoint.clip_vision_weights()),
        _vae(checkpoint, path, variant),
        checkpoint.detection.variant_note,
    )


def load_model(path: Path, variant: str | None = None, *, disable_dynamic: bool = False) -> ModelPatcher:
    """Load the MODEL alone. ComfyUI calls this to make a copy for another device."""
    return _model(open_checkpoint(path, variant), path, variant, disable_dynamic)


def load_vae_patcher(path: Path, variant: str | None = None, *, disable_dynamic: bool = False) -> ModelPatcher:
    """Load the VAE's patcher alone. ComfyUI calls this to make a copy for another device."""
    return _vae(open_checkpoint(path, variant), path, variant, disable_dynamic).patcher


def _model(checkpoint: Checkpoint, path: Path, variant: str | None, disable_dynamic: bool = False) -> ModelPatcher:
    patcher = model_patcher(checkpoint.config.unet, checkpoint.unet_weights(), disable_dynamic=disable_dynamic)
    patcher.model.variant = checkpoint.config.variant
    patcher.cached_patcher_init = (load_model, (path, variant))
    return patcher


def _vae(checkpoint: Checkpoint, path: Path, variant: str | None, disable_dynamic: bool = False) -> StableVideoVAE:
    config, weights = checkpoint.config, checkpoint.vae_weights()
    vae = StableVideoVAE(config.vae, config.variant, weights, disable_dynamic=disable_dynamic)
    vae.patcher.cached_patcher_init = (load_vae_patcher, (path, variant))
    return vae
