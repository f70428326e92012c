"""Counts what tensors hold, on any device; on the meta device that is a peak without the memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from svd_core.decode import places


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors alive at once, of those that are made while it is entered; `network` was before, and
    views of its weights are none of them."""

    def __init__(self, network=None):
        super().__init__()
        self.now = self.peak = 0
        self.weight = 0
        self.known = {}
        for tensor in network.state_dict().values() if network is not None else ():
            self._add(tensor.untyped_storage())
        self.weight = 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage):
        key, size = storage._cdata, self.weight * storage.nbytes()
        if key in self.known:
            return
        self.known[key] = weakref.finalize(storage, self._remove, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _remove(self, key, size):
        self.now -= size
        del self.known[key]


@contextmanager
def device_bytes(network=None) -> Iterator[LiveBytes]:
    """Counts all but what the host's memory holds, though the meta device is its own host."""
    live = LiveBytes(network)
    allocate = places.host_memory

    def uncounted(*args):
        live.weight = 0
        try:
            return allocate(*args)
        finally:
            live.weight = 1

    places.host_memory = uncounted
    try:
        with torch.no_grad(), live:
            yield live
    finally:
        places.host_memory = allocate
