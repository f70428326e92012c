"""What a checkpoint states about itself: metadata `svd_core.config`, or a diffusers folder's config.json.

Tensor shapes do not reveal the head width or the number of frames a model was trained on. A single file can state them
under the metadata key `svd_core.config`:

    {"unet": {"head_channels": 8}, "clip_vision": {"head_channels": 16}, "variant": {"name": "tiny", "frames": 4}}

`variant` may also be the name of a released one. Every part is optional.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import PIXELS_PER_LATENT, VARIANTS, Variant
from ..errors import CheckpointError
from ..settings import MAX_FRAMES, MAX_SIDE, MAX_STEPS

CONFIG_KEY = "svd_core.config"

_ALLOWED = {
    "unet": {"head_channels"},
    "clip_vision": {"head_channels"},
    "variant": {item.name for item in dataclasses.fields(Variant)},
}
_COUNTS = {"frames": MAX_FRAMES, "steps": MAX_STEPS, "height": MAX_SIDE, "width": MAX_SIDE}
"""Integer fields of a variant and their upper limits."""

MAX_WHOLE = 2**31 - 1
MAX_NAME = 100
"""Most characters of a variant's name."""


@dataclass(frozen=True, slots=True)
class Hints:
    """Head widths and variant, if a checkpoint states them; `origin` says where, for the report."""

    unet_head_channels: int | None = None
    clip_head_channels: int | None = None
    variant: Variant | None = None
    origin: str = ""


NO_HINTS = Hints()


def hints_from_metadata(metadata: Mapping[str, str], path: Path) -> Hints:
    """The hints in a file's metadata. Raises CheckpointError for invalid JSON, unknown fields and values out of
    range."""
    if CONFIG_KEY not in metadata:
        return NO_HINTS
    where = f"{path}: metadata {CONFIG_KEY}"
    table = _table(_json(metadata[CONFIG_KEY], where), where)
    _only(table, set(_ALLOWED), where)
    return Hints(
        unet_head_channels=_head_channels(table, "unet", where),
        clip_head_channels=_head_channels(table, "clip_vision", where),
        variant=_variant(table["variant"], f"{where}: variant") if "variant" in table else None,
        origin=f"metadata {CONFIG_KEY}",
    )


def hints_from_folder(folder: Path) -> Hints:
    """The hints in unet/config.json and image_encoder/config.json of a diffusers folder, if they exist."""
    unet, clip = _config(folder / "unet"), _config(folder / "image_encoder")
    where = f"{folder}/unet/config.json: num_frames"
    frames = _count(unet["num_frames"], MAX_FRAMES, where) if "num_frames" in unet else None
    return Hints(
        unet_head_channels=_unet_head_channels(unet, folder),
        clip_head_channels=_clip_head_channels(clip, folder),
        variant=None if frames is None else _variant_of_length(frames),
        origin=f"unet/config.json, num_frames {frames}",
    )


def _config(component: Path) -> dict[str, Any]:
    path = component / "config.json"
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}): download it again") from error
    return _table(_json(text, str(path)), str(path))


def _unet_head_channels(config: Mapping[str, Any], folder: Path) -> int | None:
    """The head width, if stated. diffusers stores the number of heads per level; here, as in the reference, all levels
    have the same head width (spec 1.1)."""
    if not {"block_out_channels", "num_attention_heads"} <= config.keys():
        return None
    where = f"{folder}/unet/config.json"
    widths, heads = config["block_out_channels"], config["num_attention_heads"]
    if not isinstance(widths, list):
        raise CheckpointError(
            f"{where}: block_out_channels is {_short(widths)}, needs a list of widths: download it again"
        )
    heads = heads if isinstance(heads, list) else [heads] * len(widths)
    pairs = [(_whole(w, where), _whole(h, where)) for w, h in zip(widths, heads, strict=False)]
    head_widths = {width / count for width, count in pairs}
    if len(pairs) != len(widths) or len(head_widths) != 1 or widths[0] % pairs[0][1]:
        raise CheckpointError(
            f"{where}: {_short(heads)} heads over widths {_short(widths)} is not one head width: not SVD"
        )
    return widths[0] // pairs[0][1]


def _clip_head_channels(config: Mapping[str, Any], folder: Path) -> int | None:
    if not {"hidden_size", "num_attention_heads"} <= config.keys():
        return None
    where = f"{folder}/image_encoder/config.json"
    width, heads = _whole(config["hidden_size"], where), _whole(config["num_attention_heads"], where)
    if width % heads:
        raise CheckpointError(f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}: not SVD")
    return width // heads


def _variant_of_length(frames: int) -> Variant:
    """The variant for a number of frames, all that a folder reveals of svd and svd_xt's differences (spec 6)."""
    for variant in (VARIANTS["svd"], VARIANTS["svd_xt"]):
        if variant.frames == frames:
            return variant
    base = VARIANTS["svd"] if frames < VARIANTS["svd_xt"].frames else VARIANTS["svd_xt"]
    return dataclasses.replace(base, name="custom", frames=frames)


def _variant(value: object, where: str) -> Variant:
    if isinstance(value, str):
        return named_variant(value, where)
    table = _table(value, where)
    _only(table, _ALLOWED["variant"], where)
    name = table.get("name", "custom")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise CheckpointError(f"{where}: name is {_short(name)}, needs a word or a few: save the file again")
    base = VARIANTS.get(name, VARIANTS["svd"])
    counts = {
        field: _count(table[field], most, f"{where}: {field}") for field, most in _COUNTS.items() if field in table
    }
    for side in ("height", "width"):
        if counts.get(side, 0) % PIXELS_PER_LATENT:
            raise CheckpointError(f"{where}: {side} {counts[side]} is not a multiple of {PIXELS_PER_LATENT}: change it")
    scales = {f: _scale(table[f], f"{where}: {f}") for f in ("min_guidance", "max_guidance") if f in table}
    return dataclasses.replace(base, name=name, **counts, **scales)


def named_variant(name: str, where: str) -> Variant:
    """A released variant by its name. Raises CheckpointError for an unknown name."""
    if name not in VARIANTS:
        raise CheckpointError(f"{where} {_short(name)} is not known: choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


def _head_channels(table: Mapping[str, Any], part: str, where: str) -> int | None:
    if part not in table:
        return None
    where = f"{where}: {part}"
    fields = _table(table[part], where)
    _only(fields, _ALLOWED[part], where)
    return _whole(fields["head_channels"], f"{where}.head_channels") if "head_channels" in fields else None


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where} is not JSON ({str(error).splitlines()[0][:80]}): save the file again"
        ) from error


def _short(value: object) -> str:
    """The value's repr, shortened for an error message."""
    return repr(value)[:MAX_NAME]


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is a {type(value).__name__}, needs a table of fields: save the file again")
    return value


def _only(table: Mapping[str, Any], allowed: set[str], where: str) -> None:
    if unknown := sorted(table.keys() - allowed):
        raise CheckpointError(
            f"{where} has the unknown field {_short(unknown[0])}: known are {', '.join(sorted(allowed))}"
        )


def _whole(value: object, where: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_WHOLE:
        raise CheckpointError(f"{where} is {_short(value)}, needs a whole number of 1 to {MAX_WHOLE}: correct it")
    return value


def _count(value: object, most: int, where: str) -> int:
    number = _whole(value, where)
    if number > most:
        raise CheckpointError(f"{where} is {number}, needs at most {most}: correct it")
    return number


def _scale(value: object, where: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= MAX_WHOLE:
        raise CheckpointError(f"{where} is {_short(value)}, needs a number of 0 to {MAX_WHOLE}: correct it")
    return float(value)
