"""The two passes of classifier-free guidance in two processes, each with a device and a model of its own.

Class: exact. Each pass is what one process would run for it, and the two results are exchanged whole and in float32,
once an evaluation; so the clip has the bits of one process that runs the passes in turn (`GuidedDenoiser.joint` False),
on devices of one kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from ..errors import InputError

PROCESSES = 2


@dataclass(frozen=True, slots=True)
class GuidanceSplit:
    """This process's half: rank 0 runs the unconditional pass and leads, rank 1 the conditional one."""

    rank: int

    @property
    def leads(self) -> bool:
        """Whether this process decodes and writes the clip; latents are the same in both."""
        return self.rank == 0

    @property
    def guides(self) -> bool:
        """Whether this process sees the picture."""
        return self.rank == 1

    def exchange(self, mine: Tensor) -> tuple[Tensor, Tensor]:
        """This process's result for both: (unconditional, conditional). Waits for the other process."""
        mine = mine.contiguous()
        both = [torch.empty_like(mine) for _ in range(PROCESSES)]
        torch.distributed.all_gather(both, mine)
        return both[0], both[1]


@contextmanager
def split_guidance(device: torch.device) -> Iterator[GuidanceSplit]:
    """While entered, this process is one of the two that torchrun started, joined over NCCL on a GPU, else over Gloo.

    Raises InputError where torchrun did not start exactly two.
    """
    if not torch.distributed.is_torchelastic_launched():
        raise InputError("guidance is split over two processes: start torchrun --nproc-per-node 2 -m svd_core ...")
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        processes = torch.distributed.get_world_size()
        if processes != PROCESSES:
            raise InputError(f"{processes} processes cannot split guidance, which has two passes: give torchrun 2")
        yield GuidanceSplit(torch.distributed.get_rank())
    finally:
        torch.distributed.destroy_process_group()
