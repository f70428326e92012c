"""A random checkpoint with the released names and sizes, for full-size runs without released weights."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from svd_core.checkpoint import inventory
from svd_core.checkpoint.keymaps import CONDITIONER_VAE, FIRST_STAGE
from svd_core.config import ModelConfig

SEED = 0


def write_big_file(path: Path) -> int:
    """Write svd's 2,446 tensors as fp16 (4.78 GB), one at a time, unless the file exists. Returns its size in bytes."""
    shapes = {name: tuple(entry.shape) for name, entry in inventory(ModelConfig()).items()}
    header, size = _header(shapes)
    if path.exists() and path.stat().st_size == len(header) + size:
        return path.stat().st_size
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(header)
        for name, shape in tqdm(shapes.items(), desc="random weights", unit="tensor"):
            file.write(_weights(name, shape).numpy().tobytes())
    partial.replace(path)
    return path.stat().st_size


def _header(shapes: dict[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """The safetensors header for contiguous fp16 tensors, and the number of bytes that follow it."""
    entries, start = {}, 0
    for name, shape in shapes.items():
        end = start + 2 * _count(shape)
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, start


def _count(shape: Iterable[int]) -> int:
    return int(torch.Size(shape).numel())


def _weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random weights that keep the scale of activations: matrices of variance 1 / fan-in, vectors around 1.

    The file's two encoders are the same function, as they are believed to be in the released files (spec 2.1): equal
    weights, and an identity `quant_conv` in the conditioner. So implementations that read either can be compared.
    """
    if name.startswith(CONDITIONER_VAE + "quant_conv."):
        return torch.eye(shape[0]).reshape(shape).half() if len(shape) > 1 else torch.zeros(shape).half()
    shared = name.replace(CONDITIONER_VAE + "encoder.", FIRST_STAGE + "encoder.")
    generator = torch.Generator().manual_seed(SEED + zlib.crc32(shared.encode()))
    noise = torch.empty(shape).uniform_(-1, 1, generator=generator)
    if len(shape) > 1:
        fan_in = _count(shape[1:])
        return noise.mul_((3 / fan_in) ** 0.5).half()
    return noise.mul_(0.1).add_(1).half()
