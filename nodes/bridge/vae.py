"""`svd_core`'s autoencoder as a native VAE that encodes and decodes exactly, whatever memory is free."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import comfy.ldm.models.autoencoder
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch

from ...svd_core.device_memory import USABLE
from ...svd_core.model.backend import Backend
from ...svd_core.model.vae import VideoVAE
from .attention import host_attention
from .weights import host_weights

if TYPE_CHECKING:
    from torch import Tensor

    from ...svd_core.config import VAEConfig, Variant
    from ...svd_core.decode.plan import DecodePlan

_PLACEHOLDER = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 8,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}
"""Config of a tiny model for ComfyUI's constructor, so that it sets every attribute that its version has; our network
then replaces the model."""


class StableVideoVAE(comfy.sd.VAE):
    """A native VAE around `VideoVAE`. Tiled decoding and encoding run the exact methods: tiles would only add seams."""

    def __init__(
        self, config: VAEConfig, variant: Variant, weights: Mapping[str, Tensor], *, disable_dynamic: bool = False
    ) -> None:
        """`disable_dynamic` selects a patcher without dynamic loading, as for the MODEL."""
        stand_in = comfy.ldm.models.autoencoder.AutoencoderKL(**_PLACEHOLDER)
        super().__init__(sd=stand_in.state_dict(), config={"params": _PLACEHOLDER})
        self.variant = variant
        backend = Backend(comfy.ops.disable_weight_init, host_attention, self.vae_dtype, weights=host_weights)
        self.first_stage_model = VideoVAE(config, backend=backend).requires_grad_(False).eval()
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        offload = comfy.model_management.vae_offload_device()
        kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        self.patcher = kind(self.first_stage_model, load_device=self.device, offload_device=offload)
        self.first_stage_model.load_state_dict(dict(weights), strict=True, assign=self.patcher.is_dynamic())
        self.size = None
        self.model_size()

    def decode(self, samples_in: Tensor, vae_options: dict[str, Any] | None = None) -> Tensor:
        """Latents (T, 4, h, w) of one clip, or (B, 4, T, h, w) of several, unscaled -> (B * T, H, W, 3) in [0, 1]."""
        return self.decode_clips(*_clips(samples_in))

    def decode_clips(
        self,
        latents: Tensor,
        num_frames: int,
        planned: Callable[[DecodePlan], None] | None = None,
        *,
        circular: bool = False,
    ) -> Tensor:
        """Latents (B * T, 4, h, w) unscaled -> images (B * T, H, W, 3) in [0, 1]; set `circular` if each clip loops.
        Free memory decides where activations are kept, without changing a bit of the result; `planned` is called with
        the plan before the work."""
        network, latents = self.first_stage_model, latents.to(self.vae_dtype)
        shape = (num_frames, *latents.shape[1:])
        quick = network.decode_plan(shape, num_frames, self.device, chunk=1, circular=circular)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=int(quick.device_bytes / USABLE))
        free = int(USABLE * self.patcher.get_free_memory(self.device))
        # ComfyUI's estimate may be too low, so the budget never drops below the leanest plan.
        budget = max(free, network.least_plan(shape, num_frames, self.device, circular=circular).device_bytes)
        if planned is not None:
            planned(network.decode_plan(shape, num_frames, self.device, budget=budget, circular=circular))
        pixels = network.decode(latents.to(self.device), num_frames, budget=budget, circular=circular)
        return self.process_output(pixels.to(self.output_device).float()).movedim(1, -1)

    def decode_tiled(self, samples: Tensor, *_tiling: Any, **_more: Any) -> Tensor:
        """Exact decode: no tiles are needed to fit."""
        return self.decode(samples)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Images (n, H, W, 3) in [0, 1] -> latents (n, 4, H/8, W/8) unscaled, one picture at a time. Free memory
        decides where activations are kept, without changing a bit of the result."""
        network, pictures = self.first_stage_model, self.vae_encode_crop_pixels(pixel_samples).movedim(-1, 1)
        shape = (1, *pictures.shape[1:])
        pixels = math.prod(shape) * self.vae_dtype.itemsize
        quick = network.encode_plan(shape, self.device)
        needed = int(quick.device_bytes / USABLE) + pixels
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)
        free = int(USABLE * self.patcher.get_free_memory(self.device)) - pixels
        # ComfyUI's estimate may be too low, so the budget never drops below the leanest plan.
        budget = max(free, network.least_encode_plan(shape, self.device).device_bytes)
        latents = [
            network.encode(self.process_input(one).to(self.device, self.vae_dtype), budget=budget)
            .to(self.output_device)
            .float()
            for one in pictures.split(1)
        ]
        return torch.cat(latents)

    def encode_tiled(self, pixel_samples: Tensor, *_tiling: Any, **_more: Any) -> Tensor:
        """Exact encode: no tiles are needed to fit."""
        return self.encode(pixel_samples)

    def get_sd(self) -> dict[str, Tensor]:
        """The state dict that ComfyUI saves. Its temporal VAE has no `quant_conv`, so that is folded into the encoder,
        which is the same function (spec 2.1)."""
        tensors = self.first_stage_model.state_dict()
        config = self.first_stage_model.config
        return fold_quant(tensors) if config.encoder_quant and not config.decoder_quant else tensors


def fold_quant(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold the 1x1 `quant_conv` into the preceding `encoder.conv_out`: W' = Q W, b' = Q b + q. On the CPU, because
    Apple's GPUs have no float64."""
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("quant_conv.")}
    weight, bias = tensors["encoder.conv_out.weight"], tensors["encoder.conv_out.bias"]
    names = ("quant_conv.weight", "quant_conv.bias", "encoder.conv_out.weight", "encoder.conv_out.bias")
    mix, shift, wide, short = (tensors[name].cpu().double() for name in names)
    mix = mix.flatten(1)
    kept["encoder.conv_out.weight"] = torch.einsum("oi,ihwk->ohwk", mix, wide).to(weight)
    kept["encoder.conv_out.bias"] = (mix @ short + shift).to(bias)
    return kept


def _clips(samples: Tensor) -> tuple[Tensor, int]:
    """Latents (T, 4, h, w) of one clip or (B, 4, T, h, w) of B clips -> (B * T, 4, h, w) and T."""
    if samples.ndim == 5:
        return samples.movedim(2, 1).flatten(0, 1), samples.shape[2]
    return samples, samples.shape[0]
