"""Helpers of the CPU routes: which operands they may take, and how a probe compares them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import out_of_memory
from ...kernels import needs_gradient
from ...verdicts import machine, verdicts

logger = logging.getLogger(__name__)

PLAIN = (Tensor, nn.Parameter)
"""Tensor classes whose operations nobody overrides."""

BLOCK_VALUES = 7 * 2**20
"""Values of a block: 28 MiB in float32. From 32 MiB on, C's allocator requests every block from the system, at 0.3 ms
per MiB."""

MAY_LAG = 1.5
"""Ratio to torch's time up to which a route is chosen. For routes that gain, or take as long, on every CPU that was
measured (0.4 to 1.15, docs/LOG.md): this rules out what is far slower, and a noisy probe cannot change the choice, and
with it bits, from one run to the next."""

PROBE_ROUNDS = 4
TORCHS_OWN = "torch's own"
_CPU = torch.device("cpu")


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


class Probed:
    """A probe of whether layers run in another way than torch's own here. It is asked once for its arguments, unless a
    recipe settles the answer, and what a clip goes by is recorded (`verdicts`)."""

    def __init__(self, probe: Callable[..., bool], layers: str, way: str) -> None:
        update_wrapper(self, probe)
        self._probe, self._layers, self._way = probe, layers, way

    def __call__(self, *given: Any) -> bool:
        if verdicts().in_probe:  # asked by another probe: no part of a clip
            return self._known(given)
        made, key = verdicts().made, (self, given)
        if key not in made:
            made[key] = self._known(given)
            verdicts().used[self._question(given)] = self._name(made[key])
        return made[key]

    def _known(self, given: tuple[Any, ...]) -> bool:
        answer = verdicts().answer(self._question(given))
        return self.ask(*given) if answer is None else answer == self._way

    @torch.inference_mode()
    def ask(self, *given: Any) -> bool:
        """The answer, by the probe."""
        question = self._question(given)
        settled = {self._way: True, TORCHS_OWN: False}.get(verdicts().settled.get(question, ""))
        with verdicts().probing(settled):
            taken, why = _answer(self._probe, given)
        verdicts().known[question] = self._name(taken)
        logger.info("%s: %s%s", question, self._name(taken), why)
        return taken

    def _name(self, taken: bool) -> str:
        return self._way if taken else TORCHS_OWN

    def _question(self, given: tuple[Any, ...]) -> str:
        named = self._layers.format(*(getattr(each, "__name__", each) for each in given))
        return f"{named} on {machine(_CPU)}"


def probed(layers: str, way: str) -> Callable[[Callable[..., bool]], Probed]:
    """Decorates a probe; its arguments fill the placeholders of `layers`. One that fails answers no, since a build of
    torch, or a CPU, may lack the operation; one that runs out of memory answers nothing, and is asked again."""
    return lambda probe: Probed(probe, layers, way)


def _answer(probe: Callable[..., bool], given: Sequence[Any]) -> tuple[bool, str]:
    """What the probe says, and why it fails."""
    try:
        return probe(*given), ""
    except (AttributeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        return False, f", for the other fails: {error}"


def replaces(
    route: Callable[..., Tensor], other: Callable[..., Tensor], operands: Sequence[Tensor], lag: float
) -> bool:
    """Whether a route has at most twice the error of another against float64, and takes at most `lag` times as long.
    Torch's own sums cannot be the standard: some are one long chain and less accurate."""
    exact = other(*(operand.double() for operand in operands))
    ours, others = ((each(*operands) - exact).norm() for each in (route, other))
    if not ours <= 2 * others:
        return False
    return is_quick(route, other, operands, lag)


def is_quick(
    route: Callable[..., Tensor], other: Callable[..., Tensor], operands: Sequence[Tensor], lag: float
) -> bool:
    """Whether a route takes at most `lag` times as long as another, or, where a recipe settled that, whether it was
    chosen."""
    if verdicts().settled_here is not None:
        return verdicts().settled_here
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
