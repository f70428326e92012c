"""Opening a checkpoint of any supported format as one `TensorSource`. Only headers are read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from os import PathLike
from pathlib import Path

from ..errors import CheckpointError
from . import keymaps
from .folder import COMPONENTS, open_component, refuse_other_folders
from .hints import hints_from_folder, hints_from_metadata
from .source import Component, Origin, SafetensorsFile, TensorSource

_FOLDER_MAPS: dict[str, Callable[[Collection[str]], dict[str, Origin]]] = {
    "unet": keymaps.diffusers_unet,
    "vae": keymaps.diffusers_vae,
    "image_encoder": keymaps.transformers_clip,
}


def open_source(path: str | Path) -> TensorSource:
    """Open a .safetensors file (whatever its name) or a diffusers folder.

    Raises CheckpointError if `path` is no path or does not exist, and for other formats and damaged files.
    """
    if not isinstance(path, str | PathLike) or not str(path):
        raise CheckpointError(f"checkpoint {path!r} is not a path: give a .safetensors file or a diffusers folder")
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path)
    if path.exists():
        raise CheckpointError(f"{path} is not a regular file: give a .safetensors file or a diffusers folder")
    raise CheckpointError(f"{path} does not exist: give a .safetensors file or a diffusers folder")


def _open_file(path: Path) -> TensorSource:
    file = SafetensorsFile(path)
    component = Component.of([file])
    found = keymaps.official(component.files.keys())
    saved_by_comfyui = any(len(origin.names) > 1 for origin in found.values())
    return TensorSource(
        path=path,
        format="single file saved by ComfyUI" if saved_by_comfyui else "single file",
        origins={key: (component, origin) for key, origin in found.items()},
        hints=hints_from_metadata(file.header.metadata, path),
    )


def _open_folder(path: Path) -> TensorSource:
    refuse_other_folders(path)
    origins = {}
    for name in COMPONENTS:
        component = open_component(path, name)
        found = _FOLDER_MAPS[name](component.files.keys())
        origins |= {key: (component, origin) for key, origin in found.items()}
    return TensorSource(path=path, format="diffusers folder", origins=origins, hints=hints_from_folder(path))
