"""Saved runs that survive a kill at any moment, and resume bit for bit.

One safetensors file holds everything: weights, their average, the optimizer's moments, the losses so far, and as JSON
the step and the configuration. It is written to a temporary file, flushed to disk and renamed, so that its path always
holds either the old state or the new one. It contains no random state: see `randomness`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from svd_core.errors import CheckpointError, OutputError
from svd_core.media import replacing

STATE_KEY = "training.state"

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A run after `step` updates. The four tensor mappings are keyed by parameter name; losses is (step,) float64."""

    step: int
    configuration: Mapping[str, Any]
    weights: Tensors
    average: Tensors
    mean: Tensors
    square: Tensors
    losses: Tensor


_PARTS = ("weights", "average", "mean", "square")


def save_state(path: Path, state: State) -> None:
    """Replace the state at `path` atomically. Raises OutputError if it cannot be written."""
    tensors = {f"{part}/{name}": tensor for part in _PARTS for name, tensor in getattr(state, part).items()}
    note = {"step": state.step, "configuration": state.configuration}
    save_tensors(path, {**tensors, "losses": state.losses}, {STATE_KEY: json.dumps(note)})


def load_state(path: Path, configuration: Mapping[str, Any]) -> State | None:
    """The state at `path`, or None if there is none. Raises CheckpointError for a damaged file, and for another
    configuration, listing the differences."""
    checked = check_state(path, configuration)
    if checked is None:
        return None
    step, found = checked
    tensors, _ = load_tensors(path)
    parts = {part: _under(tensors, part) for part in _PARTS}
    return State(step=step, configuration=found, losses=tensors["losses"], **parts)


def check_state(path: Path, configuration: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """The step and the configuration of the state at `path`, from the file's header alone: returns and raises as
    `load_state`."""
    if not path.exists():
        return None
    with _opened(path) as file:
        metadata, names = file.metadata() or {}, file.keys()
    try:
        note = json.loads(metadata[STATE_KEY])
        step, found = operator.index(note["step"]), dict(note["configuration"])
        if "losses" not in names:
            raise KeyError("losses")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no state of a training run: remove it, or give another folder") from error
    require_same(path, found, configuration)
    return step, found


def _under(tensors: Tensors, part: str) -> dict[str, Tensor]:
    prefix = f"{part}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def require_same(path: Path, found: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming every differing field, unless two configurations are equal."""
    differences = differences_of(found, given)
    if differences:
        listed = "; ".join(differences)
        raise CheckpointError(
            f"{path} is from another configuration ({listed}): give that configuration again, or a new folder"
        )


def differences_of(found: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """The differences in words, such as "seed 0 in the file, 1 given"."""
    before, after = _flat(found), _flat(given)
    names = sorted(before.keys() | after.keys())
    return [
        f"{name} {before.get(name, 'absent')} in the file, {after.get(name, 'absent')} given"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested tables flattened to dotted names; lists and tuples become equal, and so do 16 and 16.0."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            whole = isinstance(value, float) and value.is_integer()
            flat[prefix + name] = json.dumps(int(value) if whole else value)
    return flat


def save_tensors(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically. Raises OutputError."""
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(here, dict(metadata)))


def not_finite(tensors: Tensors) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)


def as_half(name: str, tensor: Tensor) -> Tensor:
    """A weight as float16, as stored in files. Raises CheckpointError if it overflows float16."""
    half = tensor.detach().cpu().to(torch.float16)
    if not torch.isfinite(half).all():
        raise CheckpointError(f"{name} does not fit in float16: train it with a lower learning rate")
    return half


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, creating its folder if needed, so that even a power cut leaves it whole or absent.
    Raises OutputError on failure."""
    make_folder(path)
    with replacing(path) as scratch, scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create the folder of a file. Raises OutputError on failure."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): choose another folder") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, on systems that support it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, copied into memory, and its metadata. Raises CheckpointError."""
    with _opened(path) as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): train again, or copy it again") from error


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def adam_state(optimizer: torch.optim.AdamW, names: Mapping[str, torch.nn.Parameter]) -> tuple[Tensors, Tensors]:
    """(running mean of gradients, running mean of their squares) by parameter name; empty before the first step."""
    known = {name: optimizer.state[parameter] for name, parameter in names.items() if parameter in optimizer.state}
    mean = {name: state["exp_avg"] for name, state in known.items()}
    return mean, {name: state["exp_avg_sq"] for name, state in known.items()}


def restore_adam(optimizer: torch.optim.AdamW, names: Mapping[str, torch.nn.Parameter], state: State) -> None:
    """Restore the optimizer from the moments of `adam_state`, after `state.step` updates."""
    for name, mean in state.mean.items():
        parameter = names[name]
        moments = {"exp_avg": mean, "exp_avg_sq": state.square[name]}
        on_device = {key: tensor.to(parameter.device) for key, tensor in moments.items()}
        optimizer.state[parameter] = {"step": torch.tensor(float(state.step)), **on_device}
