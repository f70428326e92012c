"""Finding the weights in a diffusers folder: plain, sharded or of a variant, with any naming of the index file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError
from .header import AGAIN, some
from .source import Component, SafetensorsFile

COMPONENTS = ("unet", "vae", "image_encoder")

_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}
_VARIANT = r"(?:\.(?P<variant>[A-Za-z0-9_]+?))?"
_SHARD = r"(?:-\d{5}-of-\d{5})?"


def refuse_other_folders(folder: Path) -> None:
    """Raise CheckpointError unless the folder has the three components of a Stable Video Diffusion pipeline."""
    missing = [name for name in COMPONENTS if not (folder / name).is_dir()]
    if not missing:
        return
    _refuse_part(folder)
    if (files := sorted(path.name for path in folder.glob("*.safetensors"))) and len(missing) == len(COMPONENTS):
        raise CheckpointError(f"{folder} is a folder of files: give one of them, such as {some(files)}")
    pipeline = _pipeline_class(folder)
    found = f"is a {pipeline} folder" if pipeline else "is not a diffusers folder of Stable Video Diffusion"
    raise CheckpointError(
        f"{folder} {found}: {', '.join(missing)} missing, needs {', '.join(COMPONENTS)} (StableVideoDiffusionPipeline)"
    )


def _refuse_part(folder: Path) -> None:
    """Raise CheckpointError for a component of a diffusers folder, judged by the folder above, since ComfyUI's model
    folders are called unet and vae too."""
    whole = Path(os.path.abspath(folder))  # not resolved: a link's target may be elsewhere
    name, above = whole.name, whole.parent
    beside = all((above / part).is_dir() for part in COMPONENTS) or (above / "model_index.json").is_file()
    if name in COMPONENTS and beside:
        shown = folder.parent if folder.name == name and folder.parent != Path() else above
        raise CheckpointError(f"{folder} is only the {name} of the model in the folder above: give {shown}")


def _pipeline_class(folder: Path) -> str:
    path = folder / "model_index.json"
    if not path.is_file():
        return ""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    name = index.get("_class_name", "") if isinstance(index, dict) else ""
    return name if isinstance(name, str) and name.isidentifier() else ""


def open_component(folder: Path, name: str) -> Component:
    """The tensors of one component. Full-precision files take precedence over those of a variant such as fp16."""
    part, stem = folder / name, re.escape(_STEMS[name])
    single = re.compile(rf"{stem}{_VARIANT}\.safetensors")
    index = re.compile(rf"{stem}{_VARIANT}\.safetensors\.index(?:\.(?P<late>[A-Za-z0-9_]+))?\.json")
    files = (path for path in part.iterdir() if path.is_file())  # opening a pipe would block forever
    found = sorted(path for path in files if single.fullmatch(path.name) or index.fullmatch(path.name))
    if not found:
        raise CheckpointError(_nothing_found(part))
    chosen = min(found, key=lambda path: _preference(path.name, single, index))
    files = _shards(chosen, stem) if chosen.suffix == ".json" else [chosen]
    return Component.of([SafetensorsFile(path) for path in files])


def _preference(name: str, single: re.Pattern[str], index: re.Pattern[str]) -> tuple[bool, bool, str]:
    """Sort key: plain files before variants, single files before shards."""
    if match := single.fullmatch(name):
        return match["variant"] is not None, False, name
    match = index.fullmatch(name)
    return match is not None and bool(match["variant"] or match["late"]), True, name


def _nothing_found(part: Path) -> str:
    if pickles := sorted(path.name for path in part.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")):
        return (
            f"{part} holds only a pickle ({pickles[0]}), which can run any code when it is opened: download its "
            ".safetensors files, or save it again with save_pretrained(..., safe_serialization=True)"
        )
    return f"{part} holds no complete .safetensors weights (one file, or shards with their index): download it again"


def _shards(index: Path, stem: str) -> Sequence[Path]:
    """The files that an index names. Only plain shard names are accepted, so an index cannot point outside its
    folder."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        shard = re.compile(rf"{stem}(?:\.\w+)?{_SHARD}(?:\.\w+)?\.safetensors")
        strange = [name for name in names if not shard.fullmatch(name)]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({type(error).__name__}): {AGAIN}") from error
    if strange or not names:
        raise CheckpointError(f"{index} names no shards, or strange ones ({some(strange)}): {AGAIN}")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(f"{index.parent} lacks {len(absent)} of {len(names)} shards ({some(absent)}): get them")
    return [index.parent / name for name in names]
