"""The two passes of classifier-free guidance in two processes, each with its own device and model.

Class: exact. Each process runs its pass exactly as a single process would, and the two results are exchanged whole and
in float32 once per evaluation; so on devices of the same kind the clip has the bits of a single process that runs the
passes one after the other (`GuidedDenoiser.joint` False).
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
    """This process's half of guidance: rank 0 runs the unconditional pass and leads, rank 1 the conditional one."""

    rank: int

    @property
    def leads(self) -> bool:
        """Whether this process decodes and writes the clip; latents are the same in both."""
        return self.rank == 0

    @property
    def guides(self) -> bool:
        """Whether this process runs the conditional pass, which sees the picture."""
        return self.rank == 1

    def exchange(self, mine: Tensor) -> tuple[Tensor, Tensor]:
        """Exchange results with the other process, waiting for it. Returns (unconditional, conditional)."""
        mine = mine.contiguous()
        both = [torch.empty_like(mine) for _ in range(PROCESSES)]
        torch.distributed.all_gather(both, mine)
        return both[0], both[1]


@contextmanager
def split_guidance(device: torch.device) -> Iterator[GuidanceSplit]:
    """Join this process with the other one that torchrun started, over NCCL on a GPU, else over Gloo.

    Raises InputError unless torchrun started exactly two processes, and where PyTorch cannot join them.
    """
    if not torch.distributed.is_available():
        raise InputError("guidance cannot be split: this build of PyTorch joins no processes, render in a single one")
    if not torch.distributed.is_torchelastic_launched():
        raise InputError("guidance is split over two processes: start torchrun --nproc-per-node 2 -m svd_core ...")
    on_gpu = device.type == "cuda"
    if on_gpu and not torch.distributed.is_nccl_available():
        raise InputError(f"guidance cannot be split on {device}: this build of PyTorch has no NCCL, as on Windows")
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        processes = torch.distributed.get_world_size()
        if processes != PROCESSES:
            raise InputError(f"{processes} processes cannot split guidance, which has two passes: give torchrun 2")
        yield GuidanceSplit(torch.distributed.get_rank())
    finally:
        torch.distributed.destroy_process_group()
