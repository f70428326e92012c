"""Initial weights of the video stage taken from a trained model; `begin_from` saves them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from svd_core.errors import CheckpointError

from .checkpoint import digest_of, load_tensors, save_tensors

START_KEY = "training.start"


@dataclass(frozen=True, slots=True)
class Start:
    """Weights with prefixes "unet." and "clip_vision.", and the training history in their file: its recipe, its stages,
    and its own start, if any."""

    weights: Mapping[str, Tensor]
    history: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return digest_of(self.weights)

    def fill(self, **networks: nn.Module) -> None:
        """Load the weights into the networks given as `unet` and `clip_vision`."""
        for part, network in networks.items():
            prefix = f"{part}."
            own = {key.removeprefix(prefix): each for key, each in self.weights.items() if key.startswith(prefix)}
            network.load_state_dict(own)


def save_start(folder: Path, start: Start) -> None:
    save_tensors(_place(folder), start.weights, {START_KEY: json.dumps(start.history)})


def read_start(folder: Path) -> Start | None:
    """The start of the run in `folder`; None for random weights. Raises CheckpointError if it is damaged."""
    if not _place(folder).exists():
        return None
    weights, metadata = load_tensors(_place(folder))
    try:
        return Start(weights, json.loads(metadata[START_KEY]))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{_place(folder)} was not written by training: begin again in a new folder") from error


def _place(folder: Path) -> Path:
    return folder / "start.safetensors"
