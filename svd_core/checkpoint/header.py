"""Reading and validating the header of a safetensors file before any weight is touched.

A file is eight bytes (the length N of the header, little-endian), N bytes of JSON with each tensor's dtype, shape and
byte range, then the data. Nothing here reads beyond the header, and nothing here can run code from the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import CheckpointError

MAX_HEADER = 100_000_000
"""The format's own limit on the header, in bytes."""

MAX_NAME, MAX_DIMENSIONS, MAX_SIZE = 1000, 16, 2**96
"""Limits that no real tensor exceeds: characters of its name, number of dimensions, and size of each."""

LENGTH_BYTES = 8
METADATA = "__metadata__"
AGAIN = "download or convert it again"

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

_PICKLE = (
    "{} (.ckpt, .pt or .bin), which can run any code when it is opened: get the .safetensors release, or convert "
    "it in a sandbox with torch.load(file, weights_only=True) and safetensors.torch.save_file"
)
_PICKLE_PROTOCOLS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_OTHER_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"PK", _PICKLE.format("a zip archive or a pickle")),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (b"GGUF", "a GGUF file, which is not supported: use the .safetensors release"),
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the weights: run `git lfs pull`, or download the file from its web page",
    ),
    (b"\x89PNG", "a PNG picture: give the model's .safetensors file here"),
    (b"\xff\xd8\xff", "a JPEG picture: give the model's .safetensors file here"),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and dtype of one tensor, according to the header."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """The validated header of one file: its tensors by name, and its free-form metadata."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, shortened for one line of an error message."""
    ordered = sorted(names)
    shown = ", ".join(repr(name)[1:-1][:100] for name in ordered[:limit])
    return shown if len(ordered) <= limit else f"{shown} and {len(ordered) - limit} more"


def read_header(path: Path) -> Header:
    """Read and validate the header of one safetensors file.

    Raises CheckpointError if the file cannot be read, is another format (such as a pickle, recognised by its contents
    whatever its name), or if header and file disagree on any size.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            text = _head_text(file, size, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    entries = _parse(text, path)
    metadata = _metadata(entries.pop(METADATA, {}), path)
    tensors = _tensors(entries, size - LENGTH_BYTES - len(text), path)
    return Header(tensors, metadata)


def _head_text(file: BinaryIO, size: int, path: Path) -> bytes:
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes): {AGAIN}")
    start = file.read(64)
    # A real header's length may look like another format's magic bytes, so the JSON's opening brace decides.
    if start[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        raise CheckpointError(f"{path} is {_name_format(start)}")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MAX_HEADER:
        raise CheckpointError(f"{path} claims a header of {length} bytes, more than the format's {MAX_HEADER}: {AGAIN}")
    if LENGTH_BYTES + length > size:
        raise CheckpointError(
            f"{path} is truncated: its header says {LENGTH_BYTES + length} bytes or more, the file has {size}: {AGAIN}"
        )
    file.seek(LENGTH_BYTES)
    return file.read(length)


def _name_format(start: bytes) -> str:
    for mark, meaning in _OTHER_FORMATS:
        if start.startswith(mark):
            return meaning
    if start.startswith(_PICKLE_PROTOCOLS):
        return _PICKLE.format("a pickle")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, probably a login or error page saved as a model: download it again while logged in"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return "a text file, not a model: give the .safetensors file"
    return f"not a safetensors file: {AGAIN}, or give a folder in diffusers' layout"


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) != len(entries := dict(pairs)):
            raise ValueError("a name is given twice")
        return entries

    try:
        entries = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deep"
        raise CheckpointError(f"{path} has a broken header ({reason.splitlines()[0][:80]}): {AGAIN}") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path} has a header that is not a table of tensors: {AGAIN}")
    return entries


def _metadata(raw: object, path: Path) -> dict[str, str]:
    if isinstance(raw, dict) and all(isinstance(value, str) for value in raw.values()):
        return raw
    raise CheckpointError(f"{path} has metadata that are not a table of texts: {AGAIN}")


def _tensors(entries: dict[str, Any], available: int, path: Path) -> dict[str, TensorInfo]:
    tensors, ranges = {}, []
    for name, entry in entries.items():
        tensors[name], byte_range = _tensor(name, entry, path)
        ranges.append((*byte_range, name))
    _check_ranges(ranges, available, path)
    return tensors


def _tensor(name: str, entry: object, path: Path) -> tuple[TensorInfo, tuple[int, int]]:
    if len(name) > MAX_NAME:
        raise CheckpointError(
            f"{path}: the header names a tensor with {len(name)} characters ({some([name])}): {AGAIN}"
        )
    if not (isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}):
        raise CheckpointError(f"{path}: the header's entry for {some([name])} is malformed: {AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (_sizes(shape) and _sizes(offsets) and len(offsets) == 2):
        raise CheckpointError(
            f"{path}: shape or offsets of {some([name])} are not whole numbers, or too many or large: {AGAIN}"
        )
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: {some([name])} is stored as {str(dtype)[:20]!r}, which is not supported: use a float16 file"
        )
    info = TensorInfo(tuple(shape), DTYPES[dtype])
    needed, given = info.numel * info.dtype.itemsize, offsets[1] - offsets[0]
    if needed != given:
        raise CheckpointError(
            f"{path}: the header lies about {some([name])}: shape needs {needed} bytes, range has {given}: {AGAIN}"
        )
    return info, (offsets[0], offsets[1])


def _sizes(values: object) -> bool:
    """Whether this is a short list of small non-negative integers; a product of very many or long ones takes hours."""
    if not isinstance(values, list) or len(values) > MAX_DIMENSIONS:
        return False
    return all(type(value) is int and 0 <= value < MAX_SIZE for value in values)


def _check_ranges(ranges: list[tuple[int, int, str]], available: int, path: Path) -> None:
    """Raise CheckpointError unless the byte ranges tile the rest of the file, without gaps or overlaps."""
    position = 0
    for start, end, name in sorted(ranges):
        if start != position:
            raise CheckpointError(
                f"{path}: the header lies about {some([name])}: starts at {start}, needs {position}: {AGAIN}"
            )
        position = end
    if position > available:
        raise CheckpointError(
            f"{path} is truncated: its header says {position} bytes of weights, the file has {available}: {AGAIN}"
        )
    if position < available:
        raise CheckpointError(
            f"{path} has {available - position} bytes that its header does not mention, after {position} bytes: {AGAIN}"
        )
