"""Small checkpoints with random weights, in every format that we read. Their models make noise, but quickly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from weights import random_like, randomise

from svd_core.checkpoint.inventory import inventory
from svd_core.checkpoint.keymaps import CLIP, CONDITIONER_VAE, FIRST_STAGE, VISUAL
from svd_core.config import ModelConfig, Variant
from tools.samples import SMALL

TINY = dataclasses.replace(
    SMALL, variant=Variant("tiny", frames=3, steps=2, min_guidance=1.0, max_guidance=2.0, height=64, width=128)
)
TINY_IMAGE_DECODER = dataclasses.replace(TINY, vae=dataclasses.replace(TINY.vae, temporal=False, decoder_quant=True))

TEXT_ROWS = 8
"""Enough of the text tower's table of 49,408 tokens, which nothing reads."""


def official_tensors(
    config: ModelConfig = TINY, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """Every tensor of an official file of this size, leftovers included. They are shared: do not write to them."""
    return dict(_official_tensors(config, dtype, seed))


@cache
def _official_tensors(config: ModelConfig, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, expected in inventory(config).items():
        shape = (TEXT_ROWS, *expected.shape[1:]) if key.endswith("token_embedding.weight") else expected.shape
        tensors[key] = random_like(key, torch.empty(shape), generator).to(dtype)
    return tensors


def described(config: ModelConfig) -> dict[str, str]:
    """The metadata that say what shapes cannot."""
    settings = {
        "unet": {"head_channels": config.unet.head_channels},
        "clip_vision": {"head_channels": config.clip_vision.head_channels},
        "variant": dataclasses.asdict(config.variant),
    }
    return {"svd_core.config": json.dumps(settings)}


def head_widths(config: ModelConfig) -> dict[str, str]:
    """The same without the variant."""
    settings = json.loads(described(config)["svd_core.config"])
    del settings["variant"]
    return {"svd_core.config": json.dumps(settings)}


def write_checkpoint(
    path: Path,
    config: ModelConfig = TINY,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    without: Collection[str] = (),
    extra: Mapping[str, Tensor] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A single file in the official grammar. `without` lists prefixes of keys to leave out; `extra` adds or replaces
    tensors; `metadata` replaces the description of the config."""
    tensors = official_tensors(config, dtype=dtype, seed=seed) | dict(extra or {})
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(tuple(without))}
    save_file(kept, path, metadata=described(config) if metadata is None else metadata)
    return path


LEFTOVERS = (
    *(
        CLIP + name
        for name in ("positional_embedding", "text_projection", "logit_scale", "token_embedding", "ln_final")
    ),
    CONDITIONER_VAE + "decoder.",
    CONDITIONER_VAE + "post_quant_conv.",
    FIRST_STAGE + "encoder.",
)
"""Prefixes of what inference never reads where the conditioner has its own encoder."""


def write_comfyui_checkpoint(path: Path, config: ModelConfig = TINY, *, seed: int = 0) -> Path:
    """What ComfyUI's ImageOnlyCheckpointSave makes of the official file: the conditioner's VAE and the text tower gone,
    CLIP in transformers' names under the visual prefix, and its own sampling notes."""
    kept = {}
    for key, tensor in official_tensors(config, seed=seed).items():
        if key.startswith(VISUAL):
            names = transformers_names(key.removeprefix(VISUAL), tensor)
            kept |= {VISUAL + name: part.contiguous() for name, part in names.items()}
        elif not key.startswith("conditioner."):
            kept[key] = tensor
    kept |= {"edm_vpred.sigma_max": torch.tensor(700.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
    save_file(kept, path, metadata=described(config))
    return path


def transformers_names(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One OpenCLIP tensor as transformers stores it (spec 3)."""
    if name == "proj":
        return {"visual_projection.weight": tensor.t()}
    if ".attn.in_proj_" in name:
        layer, kind = name.removeprefix("transformer.resblocks.").split(".attn.in_proj_")
        stem = f"vision_model.encoder.layers.{layer}.self_attn"
        return {f"{stem}.{third}_proj.{kind}": part for third, part in zip("qkv", tensor.chunk(3), strict=True)}
    renames = {
        "transformer.resblocks": "encoder.layers",
        "ln_pre": "pre_layrnorm",
        "ln_post": "post_layernorm",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "conv1": "embeddings.patch_embedding",
    }
    for ours, theirs in renames.items():
        name = name.replace(ours, theirs)
    return {"vision_model." + name: tensor}


def diffusers_modules(config: ModelConfig = TINY, *, seed: int = 0) -> dict[str, nn.Module]:
    """diffusers' and transformers' own modules of this size, by the folder that they are saved in."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig as TransformersConfig
    from transformers import CLIPVisionModelWithProjection

    unet, vae, clip = config.unet, config.vae, config.clip_vision
    kinds = ["CrossAttn" if attention else "" for attention in unet.attention]
    modules = {
        "unet": UNetSpatioTemporalConditionModel(
            block_out_channels=unet.level_channels,
            down_block_types=tuple(f"{kind}DownBlockSpatioTemporal" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlockSpatioTemporal" for kind in reversed(kinds)),
            layers_per_block=unet.res_blocks,
            num_attention_heads=tuple(width // unet.head_channels for width in unet.level_channels),
            cross_attention_dim=unet.context_dim,
            addition_time_embed_dim=unet.vector_dim // 3,
            projection_class_embeddings_input_dim=unet.vector_dim,
            num_frames=config.variant.frames,
        ),
        "vae": AutoencoderKLTemporalDecoder(
            block_out_channels=vae.level_channels,
            down_block_types=("DownEncoderBlock2D",) * len(vae.channel_mult),
            layers_per_block=vae.res_blocks,
        ),
        "image_encoder": CLIPVisionModelWithProjection(
            TransformersConfig(
                hidden_size=clip.width,
                intermediate_size=clip.mlp_width,
                num_hidden_layers=clip.layers,
                num_attention_heads=clip.width // clip.head_channels,
                patch_size=clip.patch,
                image_size=clip.image_size,
                projection_dim=clip.output_dim,
                hidden_act="gelu",
            )
        ),
    }
    return {name: randomise(module, seed + place) for place, (name, module) in enumerate(modules.items())}


def write_diffusers_folder(
    path: Path,
    config: ModelConfig = TINY,
    *,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    max_shard_size: str = "10GB",
    seed: int = 0,
) -> dict[str, nn.Module]:
    """A folder written by diffusers and transformers themselves; returns the modules that were saved."""
    modules = diffusers_modules(config, seed=seed)
    for name, module in modules.items():
        module.to(dtype).save_pretrained(path / name, variant=variant, max_shard_size=max_shard_size)
    return modules
