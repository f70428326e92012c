"""The released model variant of a ComfyUI object: stored in our objects, assumed to be "svd" for native ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...svd_core.config import VARIANTS
from .model import StableVideoModel
from .vae import StableVideoVAE

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

    from ...svd_core.config import Variant

UNKNOWN = VARIANTS["svd"]
"""Assumed for native objects, which do not store a variant; ComfyUI's own nodes also default to it."""


def vae_variant(vae: VAE) -> Variant:
    return vae.variant if isinstance(vae, StableVideoVAE) else UNKNOWN


def model_variant(patcher: ModelPatcher | None) -> Variant:
    model = None if patcher is None else patcher.model
    return model.variant if isinstance(model, StableVideoModel) else UNKNOWN
