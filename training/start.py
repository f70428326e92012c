"""First weights of the video stage that are not random but of a model trained before; `begin_from` lays them out."""

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
    """Weights behind "unet." and "clip_vision.", and what their file says of its training: its recipe, its stages, and
    the start that it had itself, if any."""

    weights: Mapping[str, Tensor]
    history: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return digest_of(self.weights)

    def fill(self, **networks: nn.Module) -> None:
        """Load `unet` and `clip_vision`."""
        for part, network in networks.items():
            prefix = f"{part}."
            own = {key.removeprefix(prefix): each for key, each in self.weights.items() if key.startswith(prefix)}
            network.load_state_dict(own)


def save_start(folder: Path, start: Start) -> None:
    save_tensors(_place(folder), start.weights, {START_KEY: json.dumps(start.history)})


def read_start(folder: Path) -> Start | None:
    """What the run in `folder` begins from; None where that is random weights. Raises CheckpointError for damage."""
    if not _place(folder).exists():
        return None
    weights, metadata = load_tensors(_place(folder))
    try:
        return Start(weights, json.loads(metadata[START_KEY]))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{_place(folder)} was not written by training: begin again in a new folder") from error


def _place(folder: Path) -> Path:
    return folder / "start.safetensors"
