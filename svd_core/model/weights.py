"""Weights that stay in host memory and are copied to the device one layer at a time, the next layer in advance.

For a network whose weights and activations do not fit on a device together. The values are copies, so the result has
the same bits. Class: exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn


@contextmanager
def visiting(layers: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Context in which each layer's weights are on `device` only while it or the layer before it runs. `layers` must be
    in execution order, each running once per pass; their weights are in host memory before and after.

    For a CUDA device the weights are pinned, so that copies overlap with computation.
    """
    visits = [_Visit(layer, device) for layer in layers]
    ring = zip(visits, [*visits[1:], *visits[:1]], strict=True)
    hooks = [hook for visit, following in ring for hook in visit.attach(following)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for visit in visits:
            visit.leave()


@dataclass(eq=False)
class _Visit:
    """One layer's weights: `home` on the host, and `guests`, their copies on the device."""

    layer: nn.Module
    device: torch.device
    home: list[Tensor] = field(init=False)
    guests: list[Tensor] | None = None
    arrived: torch.cuda.Event | None = None

    def __post_init__(self) -> None:
        self.home = [_pinned(parameter.data, self.device) for parameter in self.layer.parameters()]

    def attach(self, following: _Visit) -> list[torch.utils.hooks.RemovableHandle]:
        def before(*_: object) -> None:
            self.settle()
            following.set_out()

        return [
            self.layer.register_forward_pre_hook(before),
            self.layer.register_forward_hook(lambda *_: self.leave(), always_call=True),
        ]

    def set_out(self) -> None:
        """Start copying to the device, on a separate stream if it is a CUDA device."""
        if self.guests is not None:
            return
        if self.device.type != "cuda":
            self.guests = [weight.to(self.device, copy=True) for weight in self.home]
            return
        # Allocated on the working stream, which may still read the memory's previous contents; the copies wait for it.
        self.guests = [torch.empty_like(weight, device=self.device) for weight in self.home]
        queue, working = _queue(self.device), torch.cuda.current_stream(self.device)
        queue.wait_stream(working)
        with torch.cuda.stream(queue):
            for guest, weight in zip(self.guests, self.home, strict=True):
                guest.copy_(weight, non_blocking=True)
        self.arrived = queue.record_event()

    def settle(self) -> None:
        """Wait for the copies, then put them in the layer."""
        self.set_out()
        if self.arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(self.arrived)
        self._fill(self.guests)

    def leave(self) -> None:
        self._fill(self.home)
        self.guests = self.arrived = None

    def _fill(self, weights: Sequence[Tensor]) -> None:
        for parameter, weight in zip(self.layer.parameters(), weights, strict=True):
            parameter.data = weight


@cache
def _queue(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _pinned(weight: Tensor, device: torch.device) -> Tensor:
    return weight.pin_memory() if device.type == "cuda" and not weight.is_pinned() else weight
