"""Torch's default device and dtype as another package may have left them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def other_defaults() -> Iterator[None]:
    """Tensors are made on the meta device, in float64, unless something else is asked for."""
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
