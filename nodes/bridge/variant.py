"""Which released model an object of ComfyUI's stands for: ours know, native ones are taken for the first."""

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
"""Native objects do not say; ComfyUI's own nodes default to this one too."""


def vae_variant(vae: VAE) -> Variant:
    return vae.variant if isinstance(vae, StableVideoVAE) else UNKNOWN


def model_variant(patcher: ModelPatcher | None) -> Variant:
    model = None if patcher is None else patcher.model
    return model.variant if isinstance(model, StableVideoModel) else UNKNOWN
