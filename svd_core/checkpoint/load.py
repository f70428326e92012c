"""Loading a checkpoint into modules, one tensor at a time. Tensors that need no conversion stay on disk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..config import ModelConfig, Variant
from ..errors import CheckpointError, too_old
from ..model.backend import TORCH, Backend
from ..model.clip_vision import CLIPVision
from ..model.layout import laid_out
from ..model.unet import VideoUNet
from ..model.vae import VideoVAE
from .detect import Detection, detect
from .formats import open_source
from .header import AGAIN
from .inventory import require_match
from .keymaps import FIRST_STAGE, UNET, VISUAL
from .source import TensorSource

OfficialKey = Callable[[str], str]
"""A module's own key -> official key."""

Network = TypeVar("Network", bound=nn.Module)

_META = Backend(device="meta")


@dataclass(frozen=True, slots=True)
class LoadedModules:
    """The networks of one checkpoint with their weights, in evaluation mode and without gradients."""

    config: ModelConfig
    detection: Detection
    unet: VideoUNet
    vae: VideoVAE
    clip_vision: CLIPVision


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose required tensors are all present with the right shapes. Weights are read on demand."""

    source: TensorSource
    detection: Detection

    @property
    def config(self) -> ModelConfig:
        return self.detection.config

    def unet(self, backend: Backend) -> VideoUNet:
        """The network without its weights; `backend` chooses device, dtype and layers."""
        return VideoUNet(self.config.unet, backend=backend)

    def vae(self, backend: Backend) -> VideoVAE:
        return VideoVAE(self.config.vae, backend=backend)

    def clip_vision(self, backend: Backend) -> CLIPVision:
        return CLIPVision(self.config.clip_vision, backend=backend)

    def unet_weights(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """A `VideoUNet`'s tensors by its own keys; on the CPU, views of the file unless converted.

        `dtype` None keeps each tensor's stored dtype. Raises CheckpointError for values that are not finite or that
        `dtype` cannot hold.
        """
        return self._read(self.unet(_META), UNET.__add__, device, dtype)

    def vae_weights(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        encoder_dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """`unet_weights` for `VideoVAE`, whose encoder may have another dtype."""
        official = vae_keys(self.detection.encoder_prefix)
        dtypes = {key: encoder_dtype if of_encoder(key) else dtype for key in self.vae(_META).state_dict()}
        return {key: _converted(self.source, official(key), device, own, planes=True) for key, own in dtypes.items()}

    def clip_vision_weights(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """`unet_weights` for `CLIPVision`."""
        return self._read(self.clip_vision(_META), VISUAL.__add__, device, dtype)

    def _read(
        self, network: nn.Module, official: OfficialKey, device: torch.device | str, dtype: torch.dtype | None
    ) -> dict[str, Tensor]:
        return {key: _converted(self.source, official(key), device, dtype) for key in network.state_dict()}


def open_checkpoint(path: str | Path, variant: str | Variant | None = None) -> Checkpoint:
    """Open a .safetensors file or a diffusers folder; reads headers only.

    `variant` overrides what the file says. Raises CheckpointError for anything that cannot be loaded strictly: another
    family or format, damage, and missing, unknown, misshapen or non-float tensors; and for a torch that is too old.
    """
    if old := too_old("torch", torch.__version__):
        raise CheckpointError(f"{path} cannot be used: {old}")
    source = open_source(path)
    detection = detect(source, variant)
    require_match(source, detection)
    return Checkpoint(source, detection)


def load_modules(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    backend: Backend = TORCH,
    variant: str | Variant | None = None,
    unet_device: torch.device | str | None = None,
) -> LoadedModules:
    """Load all networks of a checkpoint on `device`; the UNet on `unet_device` if given.

    `dtype` None keeps each tensor's stored dtype; the VAE's encoder is float32 if `dtype` is a 16-bit one, as in the
    reference. On the CPU, tensors already in their dtype stay views of the mapped file, except for CLIP's q, k, v in
    transformers' naming, which are joined; others are converted one by one. `backend` gives the layers and the
    attention (its dtype and device are not used). Raises CheckpointError as `open_checkpoint` does, and for weights
    that are not finite or that `dtype` cannot hold.
    """
    checkpoint = open_checkpoint(path, variant)
    # The reference always encodes the still in float32 (spec 4, 6).
    encoder_dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    bare = dataclasses.replace(backend, device="meta", dtype=dtype)
    return LoadedModules(
        checkpoint.config,
        checkpoint.detection,
        _filled(checkpoint.unet(bare), checkpoint.unet_weights(unet_device or device, dtype)),
        _filled(checkpoint.vae(bare), checkpoint.vae_weights(device, dtype, encoder_dtype)),
        _filled(checkpoint.clip_vision(bare), checkpoint.clip_vision_weights(device, dtype)),
    )


def vae_keys(encoder_prefix: str) -> OfficialKey:
    """Official keys of a `VideoVAE`: the encoder's under `encoder_prefix`, the decoder's in the first stage."""

    def official(key: str) -> str:
        return (encoder_prefix if of_encoder(key) else FIRST_STAGE) + key

    return official


def of_encoder(key: str) -> bool:
    """Whether a key of `VideoVAE` belongs to its encoding half."""
    return key.startswith(("encoder.", "quant_conv."))


def _filled(network: Network, weights: dict[str, Tensor]) -> Network:
    """Replace a network's meta tensors by weights, strictly, and freeze it for inference."""
    network.requires_grad_(False).eval()
    network.load_state_dict(weights, strict=True, assign=True)
    return network


def _converted(
    source: TensorSource, key: str, device: torch.device | str, dtype: torch.dtype | None, *, planes: bool = False
) -> Tensor:
    stored = source.get(key)
    _check_values(source, key, stored, dtype or stored.dtype)
    converted = stored.to(device=device, dtype=dtype or stored.dtype)
    # Tensors that need no conversion stay on disk.
    return converted if converted is stored else laid_out(converted, planes=planes)


def _check_values(source: TensorSource, key: str, stored: Tensor, dtype: torch.dtype) -> None:
    """Raise CheckpointError for values that are not finite or do not fit `dtype`. `aminmax` allocates no temporary and
    propagates NaN."""
    if not stored.numel():
        return
    # torch has no reductions for 8-bit floats.
    lowest, highest = (bound.item() for bound in torch.aminmax(stored.float() if stored.itemsize == 1 else stored))
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise CheckpointError(f"{source.path}: {key} holds values that are not finite (NaN or infinity): {AGAIN}")
    if max(-lowest, highest) > torch.finfo(dtype).max:
        raise CheckpointError(
            f"{source.path}: {key} reaches {max(-lowest, highest):.3g}, more than {dtype} holds: load it as float32"
        )
