"""The node that loads a checkpoint as native MODEL, CLIP_VISION and VAE."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..svd_core.config import VARIANTS
from ..svd_core.demo import DEMO_MODEL, DEMO_NAME
from ..svd_core.errors import CheckpointError
from .bridge.loader import load
from .checks import show

FROM_FILE = "from file"
"""Choice of `variant` that takes the variant from the checkpoint."""

DIFFUSERS_PARTS = ("unet", "vae", "image_encoder")
"""Folders that identify a diffusers checkpoint of an image-to-video model."""

FOLDERS = ("checkpoints", "diffusers")
"""ComfyUI's kinds of models folder in which the loader looks for diffusers folders."""


class StableVideoCheckpointLoader(io.ComfyNode):
    """Loads any Stable Video Diffusion checkpoint, recognised by its contents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoCheckpointLoader",
            display_name="Load Stable Video",
            category="video/stable video",
            description=(
                "Loads a Stable Video Diffusion checkpoint, a single file or a diffusers folder. The outputs are "
                "ordinary MODEL, CLIP_VISION and VAE, so native nodes take them too."
            ),
            search_aliases=["svd", "stable video diffusion", "img2vid", "image to video", "animate image"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=checkpoint_names(),
                    tooltip=(
                        "File in models/checkpoints, or folder in models/checkpoints or models/diffusers. The demo "
                        "model makes 14 frames of 128x64 and knows drawn scenes only: it is for trying the nodes."
                    ),
                ),
                io.Combo.Input(
                    "variant",
                    options=[FROM_FILE, *VARIANTS],
                    default=FROM_FILE,
                    advanced=True,
                    tooltip=(
                        "Sets the default frames, steps and guidance. The released svd and svd_xt files cannot be told "
                        "apart by their contents: choose svd_xt here to get 25 frames by default."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The video model, for any sampler."),
                io.ClipVision.Output(tooltip="Shows the model your picture."),
                io.Vae.Output(tooltip="Decodes without seams, in whatever memory is free."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, variant: str = FROM_FILE) -> tuple[tuple[str, int, int], ...]:
        """Changes if the file does, or any file of the folder, so that ComfyUI loads a replaced one again."""
        try:
            path = find_checkpoint(checkpoint)
        except CheckpointError:
            return ()  # `execute` says so
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        stats = ((file.name, file.stat()) for file in files if file.is_file())
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)

    @classmethod
    def execute(cls, checkpoint: str, variant: str = FROM_FILE) -> io.NodeOutput:
        loaded = load(find_checkpoint(checkpoint), None if variant == FROM_FILE else variant)
        show(cls, loaded.variant_note)
        return io.NodeOutput(loaded.model, loaded.clip_vision, loaded.vae)


def checkpoint_names() -> list[str]:
    """Names that the loader offers: the demo model, then files, then diffusers folders, by path in a models folder."""
    files = folder_paths.get_filename_list("checkpoints")
    return [DEMO_NAME, *files, *sorted(_diffusers_folders())]


def find_checkpoint(name: str) -> Path:
    """The path of a name from `checkpoint_names`. Raises CheckpointError if it no longer exists."""
    if name == DEMO_NAME:
        return DEMO_MODEL
    folders = _diffusers_folders()
    if name in folders:
        return folders[name]
    path = folder_paths.get_full_path("checkpoints", name)
    if path is None:
        raise CheckpointError(f"checkpoint {name!r} is not in models/checkpoints: put it there and press R to refresh")
    return Path(path)


def _diffusers_folders() -> dict[str, Path]:
    """Name -> folder, for each folder directly inside a models folder that looks like a diffusers checkpoint."""
    found = {}
    for kind in FOLDERS:
        for base in folder_paths.get_folder_paths(kind):
            for folder in Path(base).glob("*/"):
                if all((folder / part).is_dir() for part in DIFFUSERS_PARTS):
                    found[folder.name] = folder
    return found
