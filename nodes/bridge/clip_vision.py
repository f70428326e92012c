"""CLIP_VISION: ComfyUI's own class with our checkpoint's weights, and the reference's image preprocessing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.clip_vision
import comfy.model_management

from ...svd_core.model.clip_vision import preprocess

if TYPE_CHECKING:
    from torch import Tensor

    from ...svd_core.config import CLIPVisionConfig


def clip_vision_model(config: CLIPVisionConfig, weights: Mapping[str, Tensor]) -> comfy.clip_vision.ClipVisionModel:
    """A native CLIP_VISION from weights in OpenCLIP's names."""
    with tempfile.TemporaryDirectory() as folder:
        described = Path(folder) / "config.json"  # the oldest supported ComfyUI takes a file, not a dict
        described.write_text(json.dumps(_description(config)))
        model = comfy.clip_vision.ClipVisionModel(str(described))
    renamed = comfy.clip_vision.convert_to_transformers(
        {f"visual.{key}": value for key, value in weights.items()}, "visual."
    )
    model.load_sd(renamed)
    return model


def embed(clip_vision: comfy.clip_vision.ClipVisionModel, pixels: Tensor) -> Tensor:
    """Embed pixels (B, 3, H, W) in [-1, 1], any size -> (B, D).

    The whole frame is blurred and squashed as in training (spec 3); CLIP Vision Encode takes a centre crop.
    """
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    prepared = preprocess(pixels.float(), clip_vision.image_size).to(clip_vision.load_device)
    projected = clip_vision.model(pixel_values=prepared, intermediate_output=-2)[2]
    return projected.to(comfy.model_management.intermediate_device()).float()


def _description(config: CLIPVisionConfig) -> dict[str, object]:
    return {
        "model_type": "clip_vision_model",
        "hidden_act": "gelu",
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.width // config.head_channels,
        "num_channels": 3,
        "image_size": config.image_size,
        "patch_size": config.patch,
        "projection_dim": config.output_dim,
        "layer_norm_eps": 1e-5,
    }
