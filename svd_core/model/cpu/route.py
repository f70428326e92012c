"""Choice of how a layer's product runs on a CPU."""

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
    """A subclass of a host's `Linear` whose product may take another route. Deriving keeps the host's casting,
    offloading and patching of weights: only the `torch.nn.functional.linear` call that they end in is redirected."""

    class Linear(linear):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            with by_chosen_route(args[0] if args else None):
                return super().forward(*args, **kwargs)

    return Linear


def by_chosen_route(tokens: Any) -> AbstractContextManager[object]:
    """Context in which linear layers and 2-D convolutions of such tokens or images take the same routes as the
    networks'."""
    if not may_replace(tokens):
        return nullcontext()
    return IN_FLOAT32 if tokens.dtype in HALF else by_onednn(tokens)
