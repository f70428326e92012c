"""The contestants of `benchmarks.decode`: the same decoder and weights in every implementation, called as each project
calls its own.

`build` takes weights under official names (`decoder.conv_in.weight`), or none on the meta device, where only memory is
counted. It imports what it needs, so that a process loads a single implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from svd_core.checkpoint.keymaps import FIRST_STAGE, diffusers_vae
from svd_core.config import PIXELS_PER_LATENT, VAEConfig
from svd_core.decode import places
from svd_core.decode.places import Mode
from svd_core.model.backend import Backend
from svd_core.model.layout import laid_out
from svd_core.model.vae import VideoVAE
from tools.random_weights import random_like

from .peers import Weights, import_comfyui

GIB = 2**30
CONFIG = VAEConfig(encoder_quant=False)
"""The temporal first stage of the released files."""

Decode = Callable[[Tensor], Tensor]
"""Unscaled latents (T, 4, h, w) of one clip -> pixels (T, 3, 8h, 8w) in about [-1, 1], unclamped."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """`build` takes weights, or None for the meta device, and a dtype; the network it returns has a `decoder`."""

    name: str
    build: Callable[[Weights | None, torch.dtype], tuple[nn.Module, Decode]]


def random_weights(seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """Every weight of the autoencoder in float32, scaled so that activations keep their size."""
    generator = torch.Generator(device).manual_seed(seed)
    state = VideoVAE(CONFIG, backend=Backend(device="meta")).state_dict()
    return {name: random_like(name, like, generator) for name, like in state.items()}


# Ours


def plain() -> Contestant:
    """The whole clip at once, layer by layer; the reference for the others."""
    return _ours("plain full clip", lambda vae, z: vae.decode_whole(z, len(z)))


def exact(name: str, mode: Mode, chunk: int | None = None) -> Contestant:
    return _ours(f"exact, {name}", lambda vae, z: vae.decode(z, len(z), chunk=chunk, mode=mode))


def _ours(name: str, decode: Callable[[VideoVAE, Tensor], Tensor]) -> Contestant:
    def build(weights: Weights | None, dtype: torch.dtype) -> tuple[nn.Module, Decode]:
        vae = VideoVAE(CONFIG, backend=Backend(device="meta", dtype=dtype)).eval()
        if weights is not None:
            own = {name: laid_out(value, planes=True) for name, value in _cast(weights, dtype).items()}
            vae.load_state_dict(own, strict=True, assign=True)
        return vae, lambda z: decode(vae, z)

    return Contestant(name, build)


def _cast(weights: Weights, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in weights.items()}


# diffusers


def diffusers(chunk: int | None) -> Contestant:
    """diffusers, by its pipeline's own method, whose default `decode_chunk_size` is the whole clip."""

    def build(weights: Weights | None, dtype: torch.dtype) -> tuple[nn.Module, Decode]:
        from diffusers import StableVideoDiffusionPipeline

        vae = _diffusers_vae(weights, dtype)
        pipeline = SimpleNamespace(vae=vae)

        def decode(z: Tensor) -> Tensor:
            frames = StableVideoDiffusionPipeline.decode_latents(pipeline, z[None], len(z), chunk or len(z))
            return frames[0].transpose(0, 1)

        return vae, decode

    return Contestant(f"diffusers, decode_chunk_size {chunk or 'left out: all frames'}", build)


def _diffusers_vae(weights: Weights | None, dtype: torch.dtype) -> nn.Module:
    """diffusers' VAE. Its encoder stays on the meta device: nothing is encoded, and its quant_conv has no counterpart
    here."""
    from diffusers import AutoencoderKLTemporalDecoder

    with torch.device("meta"):
        vae = AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * len(CONFIG.channel_mult),
            block_out_channels=CONFIG.level_channels,
            layers_per_block=CONFIG.res_blocks,
            scaling_factor=1.0,  # latents are unscaled
        )
    if weights is not None:
        vae.decoder.load_state_dict(_diffusers_names(vae, _cast(weights, dtype)), strict=True, assign=True)
        return vae.to(dtype).eval()
    return vae.to("meta", dtype).eval()  # some parameters are created on the CPU despite the device context


def _diffusers_names(vae: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """The decoder's weights under diffusers' names, by inverting the map that reads diffusers' folders. Its attention
    has linear layers in place of our 1x1 convolutions."""
    shapes = {name: value.shape for name, value in vae.state_dict().items()}
    renamed = {}
    for key, origin in diffusers_vae(shapes).items():
        if key.startswith(FIRST_STAGE + "decoder."):
            (name,) = origin.names
            renamed[name.removeprefix("decoder.")] = weights[key.removeprefix(FIRST_STAGE)].reshape(shapes[name])
    return renamed


# ComfyUI


def comfyui() -> Contestant:
    """ComfyUI's VAE object, called as by its node VAE Decode: as many frames at a time as it estimates to fit."""

    def build(weights: Weights | None, dtype: torch.dtype) -> tuple[nn.Module, Decode]:
        vae = _comfyui_vae(weights, dtype)
        vae.process_output = lambda pixels: pixels  # it clamps to [0, 1], which would hide differences
        return vae.first_stage_model, lambda z: vae.decode(z).movedim(-1, 1)

    return Contestant("ComfyUI, VAE Decode", build)


def comfyui_on_card(free_gib: int) -> Contestant:
    """ComfyUI's network with the batches that its VAE object would choose with this much free GPU memory. Results move
    to the host batch by batch."""

    def build(weights: Weights | None, dtype: torch.dtype) -> tuple[nn.Module, Decode]:
        vae = _comfyui_vae(weights, dtype)

        def decode(z: Tensor) -> Tensor:
            vae.first_stage_model.to(z.device)
            batch = max(1, int(free_gib * GIB / vae.memory_used_decode(z.shape, dtype)))
            height, width = (PIXELS_PER_LATENT * side for side in z.shape[2:])
            pixels = places.host_memory((len(z), 3, height, width), dtype, z.device)
            for part, out in zip(z.split(batch), pixels.split(batch), strict=True):
                out.copy_(vae.first_stage_model.decode(part))
            return pixels

        return vae.first_stage_model, decode

    return Contestant(f"ComfyUI, {free_gib} GiB free", build)


def _comfyui_vae(weights: Weights | None, dtype: torch.dtype) -> Any:
    """comfy.sd.VAE, which detects its kind from names. It cannot be created on the meta device, only moved there."""
    import_comfyui()
    import comfy.sd

    vae = comfy.sd.VAE(sd=_cast(weights if weights is not None else random_weights(), dtype), dtype=dtype)
    if weights is None:
        vae.first_stage_model.to("meta")
    return vae


COUNTED = (
    exact("device, one frame kept", "device", 1),
    exact("device, all kept", "device"),
    exact("host", "host"),
    exact("bands", "bands"),
    plain(),
    diffusers(None),
    diffusers(14),
    diffusers(8),
    comfyui_on_card(80),
    comfyui_on_card(24),
    comfyui_on_card(8),
)
MEASURED = (
    plain(),
    exact("all kept", "device"),
    exact("one frame kept", "device", 1),
    diffusers(None),
    diffusers(8),
    comfyui(),
)
"""Contestants on a CPU, so without plans that need both device and host memory."""
