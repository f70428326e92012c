"""Peak memory of a device, counted on the meta device without allocating it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from svd_core.decode import places
from svd_core.live_bytes import LiveBytes


@contextmanager
def device_bytes(network: nn.Module | None = None) -> Iterator[LiveBytes]:
    """Count all tensors except those in host memory, which is the meta device too."""
    live = LiveBytes(network)
    allocate = places.host_memory

    def uncounted(*args: Any) -> Tensor:
        live.counting = False
        try:
            return allocate(*args)
        finally:
            live.counting = True

    places.host_memory = uncounted
    try:
        with torch.no_grad(), live:
            yield live
    finally:
        places.host_memory = allocate
