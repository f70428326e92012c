"""Our MODEL, CLIP_VISION and VAE beside ComfyUI's own, narrow and on the same random weights.

ComfyUI's loader knows only the released widths, so its classes are put together here as that loader does it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from synthetic import TINY, write_checkpoint
from torch import Tensor

from svd_core.config import UNetConfig

CONFIG = dataclasses.replace(
    TINY,
    unet=UNetConfig(
        model_channels=32,
        channel_mult=(1, 2, 4),
        res_blocks=1,
        attention=(True, True, False),
        head_channels=8,
    ),
    clip_vision=dataclasses.replace(TINY.clip_vision, output_dim=1024, image_size=224),
)
"""Two downsamplings and the released context and vector, which ComfyUI's nodes and encoders take for granted."""


@dataclass(frozen=True)
class Trio:
    """What a loader gives."""

    model: Any
    clip_vision: Any
    vae: Any


def make_pair(pack: ModuleType, folder: Path) -> tuple[Trio, Trio]:
    """(ours, native)."""
    path = write_checkpoint(folder / "narrow.safetensors", CONFIG)
    loader = submodule(pack, "nodes.bridge.loader")
    loaded = loader.load(path)
    ours = Trio(loaded.model, loaded.clip_vision, loaded.vae)
    return ours, native_trio(pack, path)


def submodule(pack: ModuleType, name: str) -> ModuleType:
    import importlib

    return importlib.import_module(f"{pack.__name__}.{name}")


def native_trio(pack: ModuleType, path: Path) -> Trio:
    checkpoint = submodule(pack, "svd_core.checkpoint").open_checkpoint(path)
    return Trio(
        native_model(pack, checkpoint),
        submodule(pack, "nodes.bridge.clip_vision").clip_vision_model(
            checkpoint.config.clip_vision, checkpoint.clip_vision_weights()
        ),
        native_vae(submodule(pack, "nodes.bridge.vae").fold_quant(checkpoint.vae_weights()), checkpoint.config.vae),
    )


def native_model(pack: ModuleType, checkpoint: Any) -> Any:
    import comfy.model_base
    import comfy.model_patcher

    weights = checkpoint.unet_weights()
    config = submodule(pack, "nodes.bridge.model").native_config(checkpoint.config.unet, weights)
    config.unet_config.pop("svd_config")
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.SVD_img2vid(config, device=torch.device("cpu"))
    model.load_model_weights(dict(weights), "")
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def native_vae(weights: dict[str, Tensor], config: Any) -> Any:
    """ComfyUI's VAE class around its own temporal autoencoder, at our width."""
    import comfy.ldm.models.autoencoder as autoencoder
    import comfy.model_patcher
    import comfy.sd

    shape = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.channels,
        "ch_mult": list(config.channel_mult),
        "num_res_blocks": config.res_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    engine = autoencoder.AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": shape},
        decoder_config={
            "target": "comfy.ldm.modules.temporal_ae.VideoDecoder",
            "params": {**shape, "video_kernel_size": [3, 1, 1], "alpha": 0.0},
        },
    )
    engine.load_state_dict(weights, strict=True)
    stand_in = autoencoder.AutoencoderKL(embed_dim=4, ddconfig={**shape, "ch": 32, "ch_mult": [1]})
    vae = comfy.sd.VAE(
        sd=stand_in.state_dict(), config={"params": {"embed_dim": 4, "ddconfig": {**shape, "ch": 32, "ch_mult": [1]}}}
    )
    vae.first_stage_model = engine.eval().to(vae.vae_dtype)
    vae.patcher = comfy.model_patcher.CoreModelPatcher(engine, load_device=vae.device, offload_device=vae.device)
    return vae
