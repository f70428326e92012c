"""Sample files for ComfyUI's folders in `make demo`, `make serve` and tests: pictures, a clip, a test checkpoint.

The checkpoint has random weights under the official names: it loads and runs like a released one, but quickly, and
generates coloured noise. It is for tests only; the demo has its own model.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor

from svd_core.checkpoint.hints import CONFIG_KEY
from svd_core.checkpoint.inventory import inventory
from svd_core.config import CLIPVisionConfig, ModelConfig, UNetConfig, VAEConfig, Variant
from training.world import HELD_OUT_SEEDS, Scene, draw_scene

ROOT = Path(__file__).resolve().parents[1]

ASSETS = ROOT / "workflows" / "assets"

PICTURE = ASSETS / "rocket.jpg"
"""The shipped sample picture, 1024x576; `tools/draw_rocket.py` drew it."""

DEMO_PICTURE = ASSETS / "demo_rocket.png"
"""The shipped picture for the demo model, 512x256; `python -m tools.samples` drew it."""

MASK = ASSETS / "rocket_mask.png"
"""Mask of what may move in the sample picture, white on black; `python -m tools.samples` drew it."""

DEMO_SEED = HELD_OUT_SEEDS[4056]
"""Seed of the demo picture's scene, which the demo model was not trained on."""

CLIP_NAME = "rocket.mp4"
CHECKPOINT_NAME = "random_weights.safetensors"

SMALL = ModelConfig(
    unet=UNetConfig(
        model_channels=32,
        channel_mult=(1, 2),
        res_blocks=1,
        attention=(True, False),
        head_channels=8,
        context_dim=32,
        vector_dim=48,
    ),
    vae=VAEConfig(channels=32, channel_mult=(1, 1, 2, 2)),
    clip_vision=CLIPVisionConfig(layers=2, width=32, head_channels=16, mlp_width=64, image_size=28, output_dim=32),
    variant=Variant("random", frames=14, steps=4, min_guidance=1.0, max_guidance=2.5, height=128, width=256),
)
"""A model of about four million parameters, which a CPU runs in seconds."""

TOKEN_TABLE = "token_embedding.weight"
TOKEN_ROWS = 8
"""Rows kept of the text tower's table of 49,408, which nothing reads."""

SHEET_COLUMNS = 5
SHEET_GAP = 6
SHEET_BACKGROUND = (24, 24, 28)

PAINTED = (0.28, -0.1, 0.64, 1.1)
"""Left, top, right and bottom of the mask's ellipse, as shares of the sample picture."""

ZOOM = 0.25
"""How far the sample clip zooms in, as a fraction of the picture."""


def write_checkpoint(path: Path, config: ModelConfig = SMALL, seed: int = 0) -> Path:
    """Write a single file with every tensor of an official one of this configuration, with random values."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, expected in inventory(config).items():
        shape = (TOKEN_ROWS, *expected.shape[1:]) if key.endswith(TOKEN_TABLE) else expected.shape
        tensors[key] = _weight(key, shape, generator)
    settings = {
        "unet": {"head_channels": config.unet.head_channels},
        "clip_vision": {"head_channels": config.clip_vision.head_channels},
        "variant": dataclasses.asdict(config.variant),
    }
    save_file(tensors, path, metadata={CONFIG_KEY: json.dumps(settings)})
    return path


def _weight(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weight that keeps activations in range: matrices of variance 1 / fan-in, norms around 1, biases around 0."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return noise / noise[0].numel() ** 0.5
    return 1 + 0.1 * noise if key.endswith("weight") else 0.1 * noise


def copy_pictures(folder: Path) -> None:
    """Copy the sample pictures to a folder, under their own names."""
    for picture in (PICTURE, DEMO_PICTURE, MASK):
        shutil.copy(picture, folder)


def demo_scene() -> Scene:
    """The scene of the demo picture, which gives the direction of its rocket."""
    return draw_scene(DEMO_SEED, kind="rocket", width=512, height=256)


def draw_demo_picture() -> Image.Image:
    return Image.fromarray((demo_scene().still * 255).round().astype(np.uint8))


def draw_mask() -> Image.Image:
    """An upright ellipse around the rocket and its smoke."""
    with Image.open(PICTURE) as picture:
        mask = Image.new("L", picture.size)
    width, height = mask.size
    ImageDraw.Draw(mask).ellipse(
        [int(part * side) for part, side in zip(PAINTED, (width, height) * 2, strict=True)], fill=255
    )
    return mask


def write_clip(path: Path, frames: int = 14, fps: int = 7, size: tuple[int, int] | None = None) -> Path:
    """Write a clip that zooms slowly into the sample picture; `size` is (width, height)."""
    with Image.open(PICTURE) as picture:
        still = picture.convert("RGB")
    width, height = size or still.size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for place in range(frames):
            cut = ZOOM / 2 * place / max(frames - 1, 1)
            box = (still.width * cut, still.height * cut, still.width * (1 - cut), still.height * (1 - cut))
            frame = still.resize((width, height), Image.Resampling.BICUBIC, box=box)
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def read_frames(path: Path) -> list[np.ndarray]:
    """Every frame of a video, (H, W, 3) uint8."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def contact_sheet(frames: Sequence[np.ndarray], columns: int = SHEET_COLUMNS) -> Image.Image:
    """All frames (H, W, 3) uint8 of a clip in one picture, row by row."""
    height, width = frames[0].shape[:2]
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    step_x, step_y = width + SHEET_GAP, height + SHEET_GAP
    sheet = Image.new("RGB", (columns * step_x + SHEET_GAP, rows * step_y + SHEET_GAP), SHEET_BACKGROUND)
    for place, frame in enumerate(frames):
        row, column = divmod(place, columns)
        sheet.paste(Image.fromarray(frame), (SHEET_GAP + column * step_x, SHEET_GAP + row * step_y))
    return sheet


if __name__ == "__main__":
    draw_demo_picture().save(DEMO_PICTURE, optimize=True)
    draw_mask().save(MASK, optimize=True)
    print(DEMO_PICTURE, MASK)
