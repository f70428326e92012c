"""Fuzz targets: for each, valid inputs to damage, and the product code that reads them."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from svd_core.checkpoint import inspect_checkpoint, open_checkpoint, open_source
from svd_core.cli import UNUSABLE, main
from svd_core.cli.latents import load_latents
from svd_core.errors import StableVideoError
from svd_core.media import fit_image, load_image, read_recipe, write_clip
from svd_core.media.metadata import TEXT_KEY
from svd_core.motion import CameraMove
from svd_core.recipe import Recipe, RecordedControls, Source
from svd_core.settings import Settings
from tools.samples import write_checkpoint
from training.checkpoint import State, load_state, save_state
from training.data import open_folder
from training.recipe import DEMO
from training.recipe import read_recipe as read_training_recipe

from .mutate import TEXTS, as_text, damaged_bytes, damaged_tree

Case = Callable[[random.Random, Path], None]
"""Creates one input in an empty folder and passes it to the product. Returns if it was accepted, raises
StableVideoError if it was refused."""


class Wrong(Exception):
    """The product accepted something that it must refuse, or answered in the wrong form."""


@dataclass(frozen=True, slots=True)
class Target:
    """One target. `prepare` creates valid inputs in a folder and returns the case; `reads_anywhere` as in `Guard`."""

    prepare: Callable[[Path], Case]
    reads_anywhere: bool = False


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Wrong(what)


# Checkpoints

TensorTable = dict[str, Any]


def _checkpoints(folder: Path) -> Case:
    """Checkpoints with the damaged header of a small official file, and a body of zeros as a sparse file."""
    whole = _head_of(write_checkpoint(folder / "whole.safetensors"))
    few = {name: whole[name] for name in ("__metadata__", *list(whole)[1:6])}

    def case(rng: random.Random, place: Path) -> None:
        table = _damaged_table(whole if rng.random() < 0.5 else few, rng)
        path = _written(place / "model.safetensors", table, rng)
        found = inspect_checkpoint(path)
        _require(all(line.isprintable() for line in found.report().splitlines()), "the report is not printable")
        if found.loadable and rng.random() < 0.2:
            opened = open_checkpoint(path)
            opened.clip_vision_weights(), opened.vae_weights()

    return case


def _head_of(path: Path) -> TensorTable:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def _damaged_table(table: TensorTable, rng: random.Random) -> TensorTable:
    """A header's table with one of its entries damaged, or the JSON text in its metadata."""
    described = table.get("__metadata__", {})
    name = rng.choice(list(described))
    if rng.random() < 0.3 and described[name].startswith("{"):
        text = as_text(damaged_tree(json.loads(described[name]), rng), rng).decode("utf-8", "replace")
        return {**table, "__metadata__": {**described, name: text}}
    # Damage one entry, not the whole tree, which would have to be copied for every case.
    chosen = rng.choice(list(table))
    changed = damaged_tree({chosen: table[chosen]}, rng)
    rest = {key: value for key, value in table.items() if key != chosen}
    return {**rest, **changed} if isinstance(changed, dict) else changed


def _written(path: Path, table: Any, rng: random.Random) -> Path:
    """Write a file with this header, usually with corrected data ranges, so that readers get past them."""
    table = _fitted(table) if isinstance(table, dict) and rng.random() < 0.6 else table
    text, body = as_text(table, rng), _end(table)
    if rng.random() < 0.05:
        text = damaged_bytes(text, rng)
    length = len(text) if rng.random() < 0.95 else rng.choice((0, 1, len(text) - 1, len(text) + 1, 2**31, 2**63))
    body = body if rng.random() < 0.95 else max(0, body + rng.choice((-1, 1, 1000)))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length) + text)
        file.truncate(8 + len(text) + body)
    return path


def _fitted(table: TensorTable) -> TensorTable:
    """The table with contiguous data ranges that match the shapes; entries without a usable shape are unchanged."""
    fitted, position = {}, 0
    for name, entry in table.items():
        size = _bytes_of(entry)
        fitted[name] = entry if size is None else {**entry, "data_offsets": [position, position + size]}
        position += size or 0
    return fitted


def _bytes_of(entry: Any) -> int | None:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(side) is int and 0 <= side < 2**20 for side in shape):
        return None
    sizes = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
    size = math.prod(shape) * sizes.get(str(entry.get("dtype")), 1)
    return size if size < 2**40 else None


def _end(table: Any) -> int:
    """The largest plausible end of a data range."""
    entries = table.values() if isinstance(table, dict) else ()
    ranges = [entry.get("data_offsets") for entry in entries if isinstance(entry, dict)]
    ends = [each[-1] for each in ranges if isinstance(each, list) and each]
    return max((end for end in ends if type(end) is int and 0 <= end < 2**40), default=0)


def _folders(folder: Path) -> Case:
    """A diffusers folder with damaged JSON files. Outside it is a pipe, whose name mutated shards may point to."""
    trees: Mapping[str, Any] = {
        "model_index.json": {"_class_name": "StableVideoDiffusionPipeline", "unet": ["diffusers", "UNet"]},
        "unet/config.json": {"num_frames": 14, "block_out_channels": [64, 128], "num_attention_heads": [1, 2]},
        "image_encoder/config.json": {"hidden_size": 64, "num_attention_heads": 4},
        "unet/diffusion_pytorch_model.safetensors.index.json": {
            "metadata": {"total_size": 8},
            "weight_map": {
                "conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors",
                "conv_out.weight": "diffusion_pytorch_model-00002-of-00002.safetensors",
            },
        },
    }
    parts = {
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors": "conv_in.weight",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors": "conv_out.weight",
        "vae/diffusion_pytorch_model.safetensors": "decoder.conv_in.weight",
        "image_encoder/model.safetensors": "vision_model.embeddings.class_embedding",
    }

    def case(rng: random.Random, place: Path) -> None:
        model = place / "model"
        for name, tensor in parts.items():
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            save_file({tensor: torch.zeros(1)}, model / name)
        damaged = rng.choice(list(trees))
        for name, tree in trees.items():
            text = as_text(damaged_tree(tree, rng), rng) if name == damaged else json.dumps(tree).encode()
            (model / name).write_bytes(text)
        source = open_source(model)
        _require(1 <= len(source) <= len(parts), "tensors came from elsewhere")
        with contextlib.suppress(StableVideoError):  # it holds only four of thousands of tensors
            inspect_checkpoint(model)

    return case


# Recipes


def _a_recipe(folder: Path) -> Recipe:
    Image.new("RGB", (64, 64), (90, 30, 150)).save(folder / "still.png")
    return Recipe(
        settings=Settings(frames=4, steps=2, width=128, height=64, min_guidance=1.0, max_guidance=2.5, seed=7),
        playback_fps=7,
        sigmas=(700.0, 0.002, 0.0),
        checkpoint=Source("absent.safetensors", "0a" * 32),
        # Relative to the folder of a case: the corpus has another path in every run, but a seed must mean the same.
        image=replace(Source.of(folder / "still.png"), path=f"../{folder.name}/still.png"),
        device="cpu",
        dtype="float32",
        threads=1,
    )


def _recipes(folder: Path) -> Case:
    """Recipes as JSON, for the command that renders them again; the checkpoint is missing, so nothing is rendered."""
    whole = json.loads(replace(_a_recipe(folder), controls=RecordedControls(camera=CameraMove(0.2, 0.1))).to_json())

    def case(rng: random.Random, place: Path) -> None:
        recipe = place / "recipe.json"
        recipe.write_bytes(as_text(damaged_tree(whole, rng), rng))
        _command(["animate", "--recipe", str(recipe), "--output", str(place / "clip.gif")])

    return case


def _training_recipes(folder: Path) -> Case:
    whole = json.loads(DEMO.to_json())

    def case(rng: random.Random, place: Path) -> None:
        (place / "recipe.json").write_bytes(as_text(damaged_tree(whole, rng), rng))
        read_training_recipe(place / "recipe.json")

    return case


def _clips_with_recipes(folder: Path) -> Case:
    """Recipes embedded in every supported kind of file."""
    recipe = _a_recipe(folder)
    frames = np.linspace(0, 1, 2 * 64 * 64 * 3, dtype=np.float32).reshape(2, 64, 64, 3)
    names = ("clip.mp4", "clip.webm", "clip.webp", "clip.gif", "clip")
    files = [write_clip(frames, folder / name, 7, recipe) for name in names]
    files[-1] = files[-1] / "frame_0000.png"
    save_file({"latent": torch.zeros(1, 4, 8, 8)}, folder / "l.safetensors", metadata={TEXT_KEY: recipe.to_json()})
    whole = {path.suffix: path.read_bytes() for path in (*files, folder / "l.safetensors")}

    def case(rng: random.Random, place: Path) -> None:
        suffix = rng.choice(list(whole))
        path = place / f"clip{suffix}"
        path.write_bytes(damaged_bytes(whole[suffix], rng))
        found = read_recipe(path)
        _require(Recipe.from_json(found.to_json()) == found, "a recipe that does not come back from its own JSON")

    return case


# Pictures


def _pictures(folder: Path) -> Case:
    whole = [path.read_bytes() for path in _sample_pictures(folder)]

    def case(rng: random.Random, place: Path) -> None:
        path = place / rng.choice(("still.png", "still.jpg", "still"))
        path.write_bytes(damaged_bytes(rng.choice(whole), rng))
        image = load_image(path)
        _require(image.dtype == np.float32 and image.ndim == 3 and image.shape[2] == 3, "not an image")
        _require(bool(image.min() >= 0 and image.max() <= 1), "values outside [0, 1]")
        fitted = fit_image(image, 64, 64, rng.choice(("crop", "pad", "stretch")))
        _require(fitted.image.shape == (64, 64, 3), "fitted to another size")

    return case


def _sample_pictures(folder: Path) -> list[Path]:
    """Small pictures of every format, pixel type and kind of metadata."""
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    colour, opaque = Image.fromarray(values[..., :3]), Image.fromarray(values)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "x" * 50, zip=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    animation = {"save_all": True, "append_images": [colour.rotate(180)], "duration": 100}
    grey = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    saved = [
        (colour, "a.png", {"pnginfo": notes, "dpi": (72, 72)}),
        (opaque, "b.png", {}),
        (grey, "c.png", {}),
        (colour.quantize(16), "d.png", {"transparency": 3}),
        (colour, "a.jpg", {"exif": turned, "quality": 80}),
        (colour.convert("CMYK"), "b.jpg", {}),
        (colour, "c.jpg", {"progressive": True}),
        (opaque, "a.webp", {"exif": turned}),
        (colour, "b.webp", animation),
        (colour.quantize(32), "a.gif", animation),
        (colour, "a.bmp", {}),
        (colour.convert("1"), "b.bmp", {}),
        (colour, "a.tiff", {"compression": "tiff_lzw"}),
        (grey, "b.tiff", {}),
        (opaque, "c.tiff", {"compression": "tiff_adobe_deflate"}),
        (colour, "a.ppm", {}),
        (colour.convert("L"), "a.pgm", {}),
    ]
    for picture, name, options in saved:
        picture.save(folder / name, **options)
    return [folder / name for _, name, _ in saved]


# Training data and training states


def _datasets(folder: Path) -> Case:
    """A folder of clips, one of them damaged."""
    frames = np.linspace(0, 1, 3 * 64 * 64 * 3, dtype=np.float32).reshape(3, 64, 64, 3)
    for name in ("a.mp4", "b.webm", "c.webp", "d.gif", "pngs"):
        write_clip(frames, folder / name, 7)
    shutil.copy(folder / "a.mp4", folder / "e.mov")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = {path.relative_to(folder): path.read_bytes() for path in files}

    def case(rng: random.Random, place: Path) -> None:
        victim = rng.choice(list(whole))
        path = place / "clips" / victim
        path.parent.mkdir(parents=True)
        path.write_bytes(damaged_bytes(whole[victim], rng))
        clips = open_folder(place / "clips", frames=1)
        for skipped in clips.skipped:
            _require(skipped.reason.isprintable(), "a reason that is not printable")
        clips.clip(rng.randrange(100))

    return case


def _states(folder: Path) -> Case:
    """Latents and training states: small tensor files with values in their metadata."""
    recipe = _a_recipe(folder)
    metadata = {TEXT_KEY: recipe.to_json()}
    save_file({"latent": torch.zeros(2, 4, 8, 8)}, folder / "latents.safetensors", metadata=metadata)
    parts = {part: {"a": torch.zeros(3)} for part in ("weights", "average", "mean", "square")}
    configuration = {"seed": 1, "optimisation": {"steps": 3}}
    save_state(folder / "state.safetensors", State(3, configuration, losses=torch.zeros(3), **parts))
    readers = {"latents": load_latents, "state": lambda path: load_state(path, configuration)}
    heads = {name: _head_of(folder / f"{name}.safetensors") for name in readers}

    def case(rng: random.Random, place: Path) -> None:
        name = rng.choice(list(readers))
        readers[name](_written(place / "x.safetensors", _damaged_table(heads[name], rng), rng))

    return case


# The command line

_VALUES: Sequence[str] = (
    "0",
    "1",
    "-1",
    "7",
    "64x64",
    "0:1,1:2",
    "700,5,0",
    "nan",
    "1e400",
    "9" * 30,
    "2GiB",
    "#ffffff",
)
_FLAGS: Sequence[str] = (
    *("--frames", "--fps", "--steps", "--seed", "--size", "--fit", "--background", "--motion-bucket", "--augmentation"),
    *("--min-guidance", "--max-guidance", "--guidance-points", "--guidance-interval", "--sigmas", "--sampler"),
    *("--churn", "--playback-fps", "--chunk", "--budget", "--device", "--dtype", "--variant", "--schedule"),
    *("--guidance-curve", "--memory", "--attention", "--save-latents", "--content-filter", "--no-watermark"),
    *("--loop", "--sequential", "--end", "--brush", "--feather", "--window", "--fused", "--overlap", "--colour-hold"),
    *("--continue", "--unstick", "--motion-bucket-points", "--augmentation-points"),
    *("--pan", "--zoom", "--roll", "--ease", "--depth"),
)


_TYPED: Sequence[str] = tuple(text for text in TEXTS if not ({"\0", "\ud800"} & set(text) or ".." in text))
"""Texts that can be command-line arguments; without `..`, since flags may make the product write anywhere."""


def _flags(folder: Path) -> Case:
    """Flags of `animate` with arbitrary values; the checkpoint is missing, so nothing is rendered."""
    _a_recipe(folder)

    def case(rng: random.Random, place: Path) -> None:
        chosen = [_flag(rng) for _ in range(rng.choice((1, 1, 2, 4)))]
        output = rng.choice(("clip.gif", "clip.gif", "clip.mp4", "clip/", *_TYPED))
        places = ["--checkpoint", str(place / "absent.safetensors"), "--output", f"{place}/output/{output}"]
        (place / "output").mkdir()
        _command(["animate", str(folder / "still.png"), *places, *(word for flag in chosen for word in flag)])

    return case


def _flag(rng: random.Random) -> list[str]:
    words = rng.choices([*_VALUES, *_VALUES, *_TYPED], k=rng.choice((0, 1, 1, 1, 1, 2)))
    return [rng.choice(_FLAGS), *words]


class _Refused(StableVideoError):
    """The one-line error of the command line."""


def _command(argv: Sequence[str]) -> None:
    """Run a command as a process would. Raises _Refused if it refuses properly, Wrong if it fails in another form."""
    said, threads = io.StringIO(), torch.get_num_threads()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main(argv)
    except SystemExit as stopped:
        code = stopped.code  # argparse itself handles --help and --version
    finally:
        torch.set_num_threads(threads)
    lines = said.getvalue().split("\n")
    _require(lines.pop() == "", "stderr does not end with its line")
    _require(all(line.isprintable() for line in lines), f"stderr is not printable: {lines!r}"[:300])
    errors = [line for line in lines if line.startswith("error: ")]
    _require(code == 0 or (code == UNUSABLE and errors == lines[-1:]), f"exit code {code} with {lines!r}"[:300])
    if code:
        raise _Refused(lines[-1])


TARGETS: Mapping[str, Target] = {
    "checkpoint": Target(_checkpoints),
    "folder": Target(_folders),
    "recipe": Target(_recipes, reads_anywhere=True),
    "clip": Target(_clips_with_recipes),
    "picture": Target(_pictures),
    "dataset": Target(_datasets),
    "state": Target(_states),
    "training-recipe": Target(_training_recipes),
    "flags": Target(_flags, reads_anywhere=True),
}


def lay_lure(folder: Path) -> None:
    """Create a pipe outside the folder of a case, at the path in `mutate.TEXTS`; reading it never returns."""
    folder.mkdir()
    os.mkfifo(folder / "secret.safetensors")
