"""Which way a layer's product takes on a CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from torch import Tensor, nn

from ...decode.rescue import HALF
from .onednn import by_onednn
from .probe import may_replace
from .wide import IN_FLOAT32


@cache
def deriving_linear(linear: type[nn.Module]) -> type[nn.Module]:
    """A host's `Linear` whose product may take another way. Deriving keeps the host's casting, offloading and patching
    of weights: only the `torch.nn.functional.linear` that they end in is looked at."""

    class Linear(linear):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            with by_chosen_route(args[0] if args else None):
                return super().forward(*args, **kwargs)

    return Linear


def by_chosen_route(tokens: Any) -> AbstractContextManager[object]:
    """A context in which linear layers and 2-D convolutions of such tokens or images run as those of the networks."""
    if not may_replace(tokens):
        return nullcontext()
    return IN_FLOAT32 if tokens.dtype in HALF else by_onednn(tokens)
