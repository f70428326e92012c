"""Helpers of the CPU routes: which operands they may take, and how a probe compares them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import out_of_memory
from ...kernels import needs_gradient

logger = logging.getLogger(__name__)

PLAIN = (Tensor, nn.Parameter)
"""Tensor classes whose operations nobody overrides."""

BLOCK_VALUES = 7 * 2**20
"""Values of a block: 28 MiB in float32. From 32 MiB on, C's allocator requests every block from the system, at 0.3 ms
per MiB."""

MAY_LAG = 1.1
"""Ratio to torch's time up to which a route is chosen. For routes that gain far more than this wherever they are used:
a noisy probe cannot change the choice, and with it bits, from one run to the next."""

PROBE_ROUNDS = 4


def may_replace(operand: Any) -> bool:
    """Whether a layer may take a route other than torch's with this operand, provided its weights are plain too and
    need no gradient."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if needs_gradient(operand) or torch.is_autocast_enabled("cpu"):
        return False
    return type(operand) in PLAIN and operand.is_cpu and operand.numel() > 0


def is_plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor is a plain, contiguous, non-empty CPU tensor of a dtype.

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
    """`is_plain` for a convolution's weight (O, C, ...), which may be channels last (`layout.laid_out`)."""
    return is_plain(weight if weight.is_contiguous() else weight.movedim(1, -1), dtype)


def probed(layers: str, way: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    """Decorates a probe of whether layers run in another way than torch's own here: it answers once per process and
    arguments, which fill the placeholders of `layers`, and is logged. A probe that fails answers no, since a build of
    torch, or a CPU, may lack the operation; one that runs out of memory answers nothing, and is asked again."""

    def decorated(probe: Callable[..., bool]) -> Callable[..., bool]:
        @cache
        @wraps(probe)
        @torch.inference_mode()
        def chosen(*given: Any) -> bool:
            named = layers.format(*(getattr(each, "__name__", each) for each in given))
            try:
                taken = probe(*given)
            except (AttributeError, RuntimeError) as error:
                if out_of_memory(error):
                    raise
                logger.info("%s on the CPU: torch's own, for %s fails: %s", named, way, error)
                return False
            logger.info("%s on the CPU: %s", named, way if taken else "torch's own")
            return taken

        return chosen

    return decorated


def replaces(
    route: Callable[..., Tensor], other: Callable[..., Tensor], operands: Sequence[Tensor], lag: float = 1.0
) -> bool:
    """Whether a route has at most twice the error of another against float64, and takes at most `lag` times as long.
    Torch's own sums cannot be the standard: some are one long chain and less accurate."""
    exact = other(*(operand.double() for operand in operands))
    ours, others = ((each(*operands) - exact).norm() for each in (route, other))
    if not ours <= 2 * others:
        return False
    our_seconds, other_seconds = least_seconds((route, other), operands)
    return our_seconds <= lag * other_seconds


def least_seconds(routes: Sequence[Callable[..., Tensor]], operands: Sequence[Tensor]) -> list[float]:
    """Least seconds of each route, as one thread's processor time, so that other load counts for little: with two
    threads, of which one waits for the other, a busy machine turned ratios of 0.6 into 2. Windows counts that time in
    steps of 1/64 s, longer than a probe, so wall time is used there."""
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
    """Context with one torch thread. MKL's setting is process-wide: other threads' products may slow down during a
    probe."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def drawn(dtype: torch.dtype, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Normally distributed tensors of some shapes, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype) for shape in shapes]


def of_layer(dtype: torch.dtype, given: Sequence[int], weight: Sequence[int]) -> list[Tensor]:
    """A layer's input, weight (O, ...) and bias (O,), scaled for a result near 1."""
    operands = drawn(dtype, (given, weight, weight[:1]))
    operands[1].div_(operands[1][0].numel() ** 0.5)
    return operands
