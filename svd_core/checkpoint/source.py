"""Tensors on disk under official names: shapes from the headers, weights on demand as views of the mapped file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from .header import AGAIN, Header, TensorInfo, read_header
from .hints import NO_HINTS, Hints

Arrange = Callable[..., Tensor]
"""Turns the stored tensors of one origin into the official one."""


def as_stored(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True)
class Origin:
    """How one official tensor is made: stored names, and the function that arranges them. Only a join copies."""

    names: tuple[str, ...]
    arrange: Arrange = as_stored


class SafetensorsFile:
    """One file with a checked header. It is mapped at the first `get`; pages are read when values are used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header = read_header(path)

    @cached_property
    def _mapped(self) -> safe_open:
        try:
            return safe_open(self.path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path} cannot be mapped ({error}): {AGAIN}") from error

    def get(self, name: str) -> Tensor:
        return self._mapped.get_tensor(name)


@dataclass(frozen=True, slots=True)
class Component:
    """The tensors of one or more files of one component, by stored name."""

    files: Mapping[str, SafetensorsFile]

    @classmethod
    def of(cls, files: Iterable[SafetensorsFile]) -> Component:
        owners: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.header.tensors:
                if name in owners:
                    raise CheckpointError(f"{name} is in both {owners[name].path} and {file.path}: {AGAIN}")
                owners[name] = file
        return cls(owners)

    def info(self, name: str) -> TensorInfo:
        return self.files[name].header.tensors[name]

    def get(self, name: str) -> Tensor:
        return self.files[name].get(name)


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A checkpoint of any format: official keys with shapes and dtypes, and values on demand.

    `hints` is what the checkpoint says about itself beyond its tensors.
    """

    path: Path
    format: str
    origins: Mapping[str, tuple[Component, Origin]]
    hints: Hints = NO_HINTS
    _infos: dict[str, TensorInfo] = field(default_factory=dict, repr=False)

    def __contains__(self, key: str) -> bool:
        return key in self.origins

    def __iter__(self) -> Iterator[str]:
        return iter(self.origins)

    def __len__(self) -> int:
        return len(self.origins)

    def info(self, key: str) -> TensorInfo:
        """Shape and dtype of an official key, from the headers alone."""
        if key not in self._infos:
            component, origin = self.origins[key]
            stored = [component.info(name) for name in origin.names]
            self._infos[key] = stored[0] if origin.arrange is as_stored else _arranged(key, stored, origin, self.path)
        return self._infos[key]

    def get(self, key: str) -> Tensor:
        """The tensor of an official key: a view of the file, or a copy if it is joined from several."""
        component, origin = self.origins[key]
        return origin.arrange(*(component.get(name) for name in origin.names))


def _arranged(key: str, stored: list[TensorInfo], origin: Origin, path: Path) -> TensorInfo:
    """Shape and dtype of an origin's tensor, found by applying it to meta tensors."""
    try:
        made = origin.arrange(*(torch.empty(info.shape, dtype=info.dtype, device="meta") for info in stored))
    except (RuntimeError, IndexError, TypeError, OverflowError) as error:
        shapes = " and ".join(str(info.shape) for info in stored)
        raise CheckpointError(f"{path}: {key} cannot be made from tensors of shape {shapes}: {AGAIN}") from error
    return TensorInfo(tuple(made.shape), made.dtype)
