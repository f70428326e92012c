"""Training in one process, or in several started by torchrun: ranks, and averaging of gradients."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from svd_core.errors import InputError


@dataclass(frozen=True, slots=True)
class Group:
    """This process, number `rank` of `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The objective with gradients averaged over all processes; unchanged for a single process."""
        if self.size == 1:
            return objective
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(objective, device_ids=devices)

    def mean(self, value: Tensor) -> Tensor:
        """A scalar averaged over all processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value / self.size

    def wait(self) -> None:
        """Block until every process has reached this call."""
        if self.size > 1:
            dist.barrier()


ALONE = Group(0, 1, torch.device("cpu"))


def unshared(wrapped: nn.Module) -> AbstractContextManager[None]:
    """Context in which backward passes do not average gradients, for all accumulation rounds but the last."""
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext()


@contextmanager
def process_group(device: str) -> Iterator[Group]:
    """Join the processes that torchrun started, if any. On "cuda" each takes the GPU of its local rank.

    Raises InputError if this machine has fewer GPUs than processes, or none.
    """
    size, rank, local = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
    chosen = _device(device, local, several=size > 1)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Group(0, 1, chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Group(rank, size, chosen)
    finally:
        dist.destroy_process_group()


_VARIABLES = (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
"""Environment variables that torchrun sets in each process, and their values without it."""


def _device(name: str, local: int, *, several: bool) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is not known: give cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not one that training runs on: give cpu, cuda or cuda:1")
    if device.type == "cpu":
        return device
    index = local if several or device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise InputError(f"device cuda:{index} is not on this machine: it has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)
