"""From a checkpoint to filled modules, one tensor at a time. What needs no conversion stays on disk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import ModelConfig, Variant
from ..errors import CheckpointError
from ..model.backend import TORCH, Backend
from ..model.clip_vision import CLIPVision
from ..model.unet import VideoUNet
from ..model.vae import VideoVAE
from .detect import Detection, detect
from .formats import open_source
from .header import AGAIN
from .inventory import require_match
from .keymaps import FIRST_STAGE, UNET, VISUAL
from .source import TensorSource

OfficialKey = Callable[[str], str]
"""A module's own key -> the official key."""


@dataclass(frozen=True, slots=True)
class LoadedModules:
    """The filled networks of one checkpoint, in evaluation mode and without gradients, and what it is."""

    config: ModelConfig
    detection: Detection
    unet: VideoUNet
    vae: VideoVAE
    clip_vision: CLIPVision


def load_modules(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    backend: Backend = TORCH,
    variant: str | Variant | None = None,
) -> LoadedModules:
    """Load a .safetensors file or a diffusers folder.

    `dtype` None keeps every tensor as it is stored. On the CPU, tensors already in `dtype` stay views of the mapped
    file, but for CLIP's q, k, v in transformers' naming, which are joined; others are converted one by one. `backend`
    gives the layers and the attention (its dtype and device are not used); `variant` overrides what the file says or
    leaves open.

    Raises CheckpointError for what cannot be loaded strictly and whole: another family or format, damage, missing,
    unknown or misshapen tensors, weights that are not finite or that `dtype` cannot hold.
    """
    source = open_source(path)
    detection = detect(source, variant)
    require_match(source, detection)
    config = detection.config
    bare = dataclasses.replace(backend, device="meta", dtype=dtype)
    unet, vae, clip_vision = (
        VideoUNet(config.unet, backend=bare),
        VideoVAE(config.vae, backend=bare),
        CLIPVision(config.clip_vision, backend=bare),
    )
    fill(unet, source, UNET.__add__, device=device, dtype=dtype)
    fill(vae, source, vae_keys(detection.encoder_prefix), device=device, dtype=dtype)
    fill(clip_vision, source, VISUAL.__add__, device=device, dtype=dtype)
    return LoadedModules(config, detection, unet, vae, clip_vision)


def vae_keys(encoder_prefix: str) -> OfficialKey:
    """`VideoVAE` takes its encoder from one home and its decoder from the first stage."""

    def official(key: str) -> str:
        return (encoder_prefix if key.startswith(("encoder.", "quant_conv.")) else FIRST_STAGE) + key

    return official


def fill(
    module: nn.Module,
    source: TensorSource,
    official: OfficialKey,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> None:
    """Replace the (usually meta) tensors of a module by those of a checkpoint, strictly. Freezes it for inference."""
    module.requires_grad_(False).eval()
    tensors = {key: _converted(source, official(key), device, dtype) for key in module.state_dict()}
    module.load_state_dict(tensors, strict=True, assign=True)


def _converted(source: TensorSource, key: str, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    stored = source.get(key)
    if not stored.dtype.is_floating_point:
        raise CheckpointError(f"{source.path}: {key} is stored as {stored.dtype}, needs a float: use a float16 file")
    _check_values(source, key, stored, dtype or stored.dtype)
    return stored.to(device=device, dtype=dtype or stored.dtype)


def _check_values(source: TensorSource, key: str, stored: Tensor, dtype: torch.dtype) -> None:
    """`aminmax` makes no temporary, and both ends are NaN where any value is."""
    if not stored.numel():
        return
    # Eight-bit floats have no reductions of their own.
    lowest, highest = (bound.item() for bound in torch.aminmax(stored.float() if stored.itemsize == 1 else stored))
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise CheckpointError(f"{source.path}: {key} holds values that are not finite (NaN or infinity): {AGAIN}")
    if max(-lowest, highest) > torch.finfo(dtype).max:
        raise CheckpointError(
            f"{source.path}: {key} reaches {max(-lowest, highest):.3g}, more than {dtype} holds: load it as float32"
        )
