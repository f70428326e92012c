"""What the routes of a CPU share: which operands they may take, and what a probe asks of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)
"""Classes of tensors that nobody has given operations of their own."""

BLOCK_VALUES = 7 * 2**20
"""In float32 28 MiB, and from 32 on C's allocator asks the system for every block anew, 0.3 ms a MiB."""

MAY_LAG = 1.1
"""A route that gains far more than this wherever it is meant for stays chosen where a probe times it up to this much
above torch's own: a noisy probe cannot change the choice, and with it bits, from one run to the next."""

PROBE_ROUNDS = 4


def may_replace(operand: Any) -> bool:
    """Whether a layer may take another route than torch's own with this operand, if its weights are plain, too."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return type(operand) in PLAIN and operand.is_cpu and operand.numel() > 0


def is_plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Numbers of a dtype without gaps in the CPU's memory.

    A host's tensor classes (quantised, sharded) keep their own product, and oneDNN is minutes slower on weights with
    gaps between their rows."""
    return (
        type(tensor) in PLAIN
        and tensor.is_cpu
        and tensor.dtype == dtype
        and tensor.is_contiguous()
        and tensor.numel() > 0
    )


def is_plain_kernel(weight: Tensor, dtype: torch.dtype) -> bool:
    """`is_plain`, of a convolution's weight (O, C, ...), whose channels may lie last (`layout.laid_out`)."""
    return is_plain(weight if weight.is_contiguous() else weight.movedim(1, -1), dtype)


def replaces(
    route: Callable[..., Tensor], other: Callable[..., Tensor], operands: Sequence[Tensor], lag: float = 1.0
) -> bool:
    """Whether a route comes as close to the true numbers as another, or up to twice as far, and takes up to `lag` times
    as long. Torch's own sums are no measure: some are one long chain, and the further ones."""
    exact = other(*(operand.double() for operand in operands))
    ours, others = ((each(*operands) - exact).norm() for each in (route, other))
    if not ours <= 2 * others:
        return False
    our_seconds, other_seconds = least_seconds((route, other), operands)
    return our_seconds <= lag * other_seconds


def least_seconds(routes: Sequence[Callable[..., Tensor]], operands: Sequence[Tensor]) -> list[float]:
    """Of one thread's processor time, so that what else the machine does counts for little: with two threads, one of
    which waits for the other, a busy machine turned ratios of 0.6 into 2. Windows counts that time in 1/64 s, which is
    longer than a probe."""
    clock = time.perf_counter if sys.platform == "win32" else time.thread_time
    least = [float("inf")] * len(routes)
    with _on_one_thread():
        for _ in range(PROBE_ROUNDS):
            for index, route in enumerate(routes):
                start = clock()
                route(*operands)
                least[index] = min(least[index], clock() - start)
    return least


@contextmanager
def _on_one_thread() -> Iterator[None]:
    """MKL's setting is the process's: another thread's products may slow down for as long as a probe takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def drawn(dtype: torch.dtype, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Normal numbers of some shapes, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def of_layer(dtype: torch.dtype, given: Sequence[int], weight: Sequence[int]) -> list[Tensor]:
    """What a layer is given, its weight (O, ...) and bias (O,), for a result near 1."""
    operands = drawn(dtype, (given, weight, weight[:1]))
    operands[1].div_(operands[1][0].numel() ** 0.5)
    return operands
