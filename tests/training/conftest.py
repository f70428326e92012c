"""A model small enough to train in seconds, and clips of a square that moves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from moving_square import FRAMES, square, write_pngs

from svd_core.config import CLIPVisionConfig, ModelConfig, UNetConfig, VAEConfig, Variant
from training.recipe import AutoencoderStage, Data, Optimisation, Recipe, TemporalStage, VideoStage

SIDE = 32


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder of two clips of three frames of 32x32."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(2):
        write_pngs(folder / f"clip{index}", square(12 * index, width=SIDE, height=SIDE))
    return folder


@pytest.fixture(scope="session")
def tiny_model() -> ModelConfig:
    return ModelConfig(
        unet=UNetConfig(
            model_channels=32,
            channel_mult=(1, 2),
            res_blocks=1,
            attention=(True, False),
            head_channels=16,
            context_dim=32,
            vector_dim=48,
        ),
        vae=VAEConfig(channels=32, channel_mult=(1, 1, 2, 2), res_blocks=1),
        clip_vision=CLIPVisionConfig(
            layers=1, width=32, head_channels=16, mlp_width=64, patch=8, image_size=16, output_dim=32
        ),
        variant=Variant("tiny", frames=FRAMES, steps=2, min_guidance=1.0, max_guidance=1.5, height=SIDE, width=SIDE),
    )


@pytest.fixture(scope="session")
def tiny(tiny_model, clips) -> Recipe:
    """All three stages on the folder of clips."""
    chosen = Optimisation(steps=4, batch=2, learning_rate=2e-3, warmup=2, ema=0.9)
    return Recipe(
        name="tiny",
        model=tiny_model,
        data=Data(frames=FRAMES, width=SIDE, height=SIDE, clips=str(clips)),
        autoencoder=AutoencoderStage(chosen, frames=2),
        temporal=TemporalStage(dataclasses.replace(chosen, batch=1), frames=FRAMES),
        video=VideoStage(chosen),
    )
