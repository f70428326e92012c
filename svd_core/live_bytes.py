"""Counts the memory of a computation without performing it, by running the real code on torch's meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the live bytes of tensors created while entered, now and at the peak. Views of the weights of `network`,
    which existed before, are not counted, nor are tensors created while `counting` is False. Exceeding `limit` bytes
    raises torch.OutOfMemoryError, as a device of that size would."""

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.limit: int | None = None
        self.counting = False
        self._known: dict[int, weakref.finalize] = {}
        for tensor in network.state_dict().values() if network is not None else ():
            self._add(tensor.untyped_storage())
        self.counting = True

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self.now
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        if self.limit is not None and self.now > max(before, self.limit):
            raise torch.OutOfMemoryError(f"{self.now} bytes, {self.limit} there are")
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes() if self.counting else 0
        if key in self._known:
            return
        self._known[key] = weakref.finalize(storage, self._remove, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _remove(self, key: int, size: int) -> None:
        self.now -= size
        del self._known[key]
