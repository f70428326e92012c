"""The contestants of `benchmarks.forward`: one video UNet with the same weights in every implementation.

All run in one process and share the storage of the weights, so that the full size fits in memory; convolution weights
are copied for contestants that need them channels last. Each is called as in its own project, with torch's attention
and the same rounding as the others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from svd_core.checkpoint.keymaps import UNET, diffusers_unet
from svd_core.config import UNetConfig
from svd_core.model.backend import Backend
from svd_core.model.layout import laid_out
from svd_core.model.step import NO_HOOKS, StepContext
from svd_core.model.unet import VideoUNet
from svd_core.sinusoid import sinusoid
from tools.random_weights import random_like

from .peers import Weights, import_comfyui


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one forward: x (T, 8, h, w), c_noise (1,), context (1, 1, D), ids (1, 3): fps - 1, bucket, noise."""

    x: Tensor
    c_noise: Tensor
    context: Tensor
    ids: Tensor

    @classmethod
    def random(cls, config: UNetConfig, frames: int, height: int, width: int, seed: int = 1) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(frames, config.in_channels, height, width, generator=generator)
        context = torch.randn(1, 1, config.context_dim, generator=generator)
        return cls(x, torch.tensor([0.3]), context, torch.tensor([[6.0, 127.0, 0.02]]))

    def to(self, dtype: torch.dtype) -> Batch:
        """Cast latents and context to the network's dtype; noise level and ids are embedded in float32."""
        return replace(self, x=self.x.to(dtype), context=self.context.to(dtype))

    def vector(self, width: int) -> Tensor:
        """The embedded ids (1, V)."""
        return sinusoid(self.ids, width // self.ids.shape[1]).flatten(1)

    def rows(self, tensor: Tensor) -> Tensor:
        """The tensor repeated to one row per frame."""
        return tensor.expand(len(self.x), *tensor.shape[1:])


class Network(Protocol):
    """One implementation, filled with weights."""

    def forward(self, batch: Batch) -> Tensor:
        """The output (T, 4, h, w)."""

    def level(self, images: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """The first residual block and transformer: images (T, C, h, w), emb (1, E), context (1, 1, D) -> images."""


Builder = Callable[[UNetConfig, Weights, torch.dtype], Network]
"""Builds a network around weights of the given dtype, copying as little as possible."""


def random_weights(
    config: UNetConfig, dtype: torch.dtype, only: str = "", seed: int = 0, device: str = "cpu"
) -> dict[str, Tensor]:
    """Every weight whose name starts with `only`, scaled so that activations keep their size."""
    generator = torch.Generator(device).manual_seed(seed)
    state = VideoUNet(config, backend=Backend(device="meta")).state_dict()
    return {name: random_like(name, like, generator).to(dtype) for name, like in state.items() if name.startswith(only)}


# Ours


@dataclass(frozen=True, slots=True)
class Ours:
    unet: VideoUNet

    @classmethod
    def build(cls, config: UNetConfig, weights: Weights, dtype: torch.dtype) -> Ours:
        own = {name: laid_out(weight) for name, weight in weights.items()}  # as our loader does for released files
        return cls(_filled(VideoUNet(config, backend=Backend(device="meta", dtype=dtype)), own))

    def forward(self, batch: Batch) -> Tensor:
        rows = map(batch.rows, (batch.c_noise, batch.context, batch.vector(self.unet.config.vector_dim)))
        return self.unet(batch.x, *rows, num_frames=len(batch.x))

    def level(self, images: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        frames = len(images)
        step = StepContext(emb.expand(frames, -1), context.expand(frames, -1, -1), frames, NO_HOOKS)
        return self.unet.input_blocks[1](images, step)


# diffusers


@dataclass(frozen=True, slots=True)
class Diffusers:
    """diffusers' defaults: torch's attention, and activations in the layout of the input."""

    unet: Any
    channels_last: bool = False

    @classmethod
    def build(cls, config: UNetConfig, weights: Weights, dtype: torch.dtype) -> Diffusers:
        from diffusers import UNetSpatioTemporalConditionModel

        with torch.device("meta"):
            unet = UNetSpatioTemporalConditionModel(**_diffusers_settings(config)).to(dtype)
        shapes = {name: value.shape for name, value in unet.state_dict().items()}
        renamed = {}
        for key, origin in diffusers_unet(shapes).items():
            (name,) = origin.names
            if key.removeprefix(UNET) in weights:
                renamed[name] = weights[key.removeprefix(UNET)]
        for name, module in unet.named_modules():
            if isinstance(module, nn.GroupNorm) and "res_block" in name:
                module.eps = 1e-5  # the reference's value; diffusers' own 1e-6 is a different function
        return cls(_filled(unet, renamed))

    def forward(self, batch: Batch) -> Tensor:
        x = batch.x.contiguous(memory_format=torch.channels_last) if self.channels_last else batch.x
        return self.unet(x[None], batch.c_noise, batch.context, batch.ids, return_dict=False)[0][0]

    def level(self, images: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        frames, block = len(images), self.unet.down_blocks[0]
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        blend = torch.zeros(1, frames)
        images = block.resnets[0](images, emb.expand(frames, -1), image_only_indicator=blend)
        rows = context.expand(frames, -1, -1)
        return block.attentions[0](images, encoder_hidden_states=rows, image_only_indicator=blend, return_dict=False)[0]


def diffusers_channels_last(config: UNetConfig, weights: Weights, dtype: torch.dtype) -> Diffusers:
    """With channels-last images, a layout that convolutions preserve, and channels-last convolution weights."""
    turned = {name: laid_out(weight) for name, weight in weights.items()}
    return Diffusers(Diffusers.build(config, turned, dtype).unet, channels_last=True)


def diffusers_compiled(config: UNetConfig, weights: Weights, dtype: torch.dtype) -> Diffusers:
    """With the first level's two layers compiled by their own `compile` method, at their first call. Only for `level`:
    `forward` would also run layers that are not compiled."""
    built = Diffusers.build(config, weights, dtype)
    block = built.unet.down_blocks[0]
    for layer in (block.resnets[0], block.attentions[0]):
        layer.compile(dynamic=False)
    return built


def can_compile() -> bool:
    """Whether torch.compile finds a C++ compiler for the CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def _diffusers_settings(config: UNetConfig) -> dict[str, Any]:
    widths = config.level_channels
    return {
        "block_out_channels": widths,
        "num_attention_heads": tuple(width // config.head_channels for width in widths),
        "cross_attention_dim": config.context_dim,
        "projection_class_embeddings_input_dim": config.vector_dim,
        "addition_time_embed_dim": config.vector_dim // 3,
    }


# ComfyUI


@dataclass(frozen=True, slots=True)
class ComfyUI:
    """ComfyUI's SVD network with the layers and attention that it uses for weights stored in the compute dtype."""

    unet: Any
    vector_dim: int

    @classmethod
    def build(cls, config: UNetConfig, weights: Weights, dtype: torch.dtype) -> ComfyUI:
        import_comfyui(cpu=next(iter(weights.values())).device.type == "cpu")
        import comfy.ops
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        settings = comfyui_settings(config)
        unet = UNetModel(**settings, dtype=dtype, device="meta", operations=comfy.ops.disable_weight_init)
        return cls(_filled(unet, weights), config.vector_dim)

    def forward(self, batch: Batch) -> Tensor:
        vector = batch.vector(self.vector_dim).to(batch.x.dtype)  # as in its model's `apply_model`
        rows = map(batch.rows, (batch.c_noise, batch.context, vector))
        return self.unet(batch.x, *rows, num_video_frames=len(batch.x))

    def level(self, images: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed

        frames = len(images)
        rows = emb.expand(frames, -1), context.expand(frames, -1, -1)
        return forward_timestep_embed(self.unet.input_blocks[1], images, *rows, {}, num_video_frames=frames)


def comfyui_settings(config: UNetConfig) -> dict[str, Any]:
    """The settings that ComfyUI detects in the released file (its supported_models.SVD_img2vid), with our sizes."""
    levels = len(config.channel_mult)
    depths = [config.transformer_depth * wanted for wanted in config.attention]
    return {
        "image_size": 32,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": config.model_channels,
        "num_res_blocks": [config.res_blocks] * levels,
        "channel_mult": config.channel_mult,
        "transformer_depth": [depth for depth in depths for _ in range(config.res_blocks)],
        "transformer_depth_output": [depth for depth in depths for _ in range(config.res_blocks + 1)],
        "transformer_depth_middle": config.transformer_depth,
        "num_head_channels": config.head_channels,
        "context_dim": config.context_dim,
        "num_classes": "sequential",
        "adm_in_channels": config.vector_dim,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "use_temporal_attention": True,
        "use_temporal_resblock": True,
        "extra_ff_mix_layer": True,
        "use_spatial_context": True,
        "merge_strategy": "learned_with_images",
        "video_kernel_size": [3, 1, 1],
    }


def _filled(network: nn.Module, weights: Weights) -> Any:
    """Assign the given weights without copying. Missing ones stay on the meta device, so their layers must not run."""
    known = network.state_dict().keys()
    unknown = sorted(weights.keys() - known)
    if unknown:
        raise ValueError(f"{type(network).__name__} has no weight called {unknown[0]}")
    network.load_state_dict(weights, strict=len(weights) == len(known), assign=True)
    return network.eval().requires_grad_(False)


COMPILED = "diffusers, compiled"
CONTESTANTS: dict[str, Builder] = {
    "ours": Ours.build,
    "diffusers": Diffusers.build,
    "diffusers, channels last": diffusers_channels_last,
    COMPILED: diffusers_compiled,
    "ComfyUI": ComfyUI.build,
}
"""Contestants by name; the others are compared with the first."""
