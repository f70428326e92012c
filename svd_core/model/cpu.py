"""Routes that a CPU takes where torch's own is slow: capability, one probe, kept choice, torch's route otherwise.

Torch sends float32 matrix products to MKL, which does not use all of a CPU that Intel did not make; oneDNN, which torch
holds too, does (performance notes 2.10). Class: rounding. Never with gradients, in torch.compile, or on weights that
are anything but plain float32 numbers in the CPU's memory.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

logger = logging.getLogger(__name__)

MAY_LAG = 1.1
"""oneDNN stays chosen where the probe times it up to this much above MKL. What it gains is far from that on every CPU
that the predicate lets through, so a noisy probe cannot change the choice, and with it bits, from one run to the next.
"""

PLAIN = (Tensor, nn.Parameter)
"""Classes of tensors that nobody has given operations of their own."""

PROBE_ROUNDS = 4
PROBE_SHAPE = (960, 640, 640)
"""Tokens, inputs, outputs: a projection of the released UNet's second level."""


@cache
def deriving_linear(linear: type[nn.Module]) -> type[nn.Module]:
    """A host's `Linear` whose product may take oneDNN. Deriving keeps the host's casting, offloading and patching of
    weights: only the `torch.nn.functional.linear` that they end in is looked at."""

    class Linear(linear):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            if torch.compiler.is_compiling():
                return super().forward(*args, **kwargs)
            with by_chosen_library(args[0] if args else None):
                return super().forward(*args, **kwargs)

    return Linear


def chosen() -> str:
    """Which library computes float32 linear layers on this CPU, in words."""
    return "oneDNN" if linear_by_onednn() else "torch's own (MKL where there is one)"


@cache
def linear_by_onednn() -> bool:
    """Whether float32 linear layers take oneDNN here; found once in a process, and logged."""
    taken = _is_foreign_to_mkl() and _probe_agrees()
    logger.info("float32 linear layers on the CPU: %s", "oneDNN" if taken else "torch's own")
    return taken


def by_chosen_library(tokens: Any) -> AbstractContextManager[object]:
    """A context in which the linear layers of such tokens run as those of `deriving_linear` do."""
    return _LINEAR_BY_ONEDNN if _is_candidate(tokens) else nullcontext()


def onednn_linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """tokens (..., I), weight (O, I) contiguous, bias (O,) or None -> (..., O). Records no gradients."""
    return torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")


class _LinearByOneDNN(TorchFunctionMode):
    """Redirects `torch.nn.functional.linear` of plain tensors."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (
            func is nn.functional.linear
            and not kwargs
            and all(is_plain(part, torch.float32) for part in args if part is not None)
        ):
            return onednn_linear(*args)
        return func(*args, **(kwargs or {}))


_LINEAR_BY_ONEDNN = _LinearByOneDNN()


def _is_candidate(tokens: Any) -> bool:
    return (
        isinstance(tokens, Tensor)
        and tokens.is_cpu
        and tokens.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and linear_by_onednn()
    )


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


@cache
def _is_foreign_to_mkl() -> bool:
    """An x86 CPU of another maker than Intel, in a torch with both libraries."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    info = Path("/proc/cpuinfo")
    maker = info.read_text(errors="replace") if info.is_file() else platform.processor()
    return "AuthenticAMD" in maker


@torch.inference_mode()
def _probe_agrees() -> bool:
    """Whether oneDNN gives MKL's numbers, up to rounding, and is not slower."""
    count, inputs, outputs = PROBE_SHAPE
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(*shape, generator=generator) for shape in ((count, inputs), (outputs, inputs), (outputs,))]
    routes = (nn.functional.linear, onednn_linear)
    try:
        ours, mkl = onednn_linear(*operands), nn.functional.linear(*operands)
    except RuntimeError as error:  # a build of torch that has the operation's name only
        logger.info("oneDNN's linear layer does not work here: %s", error)
        return False
    if not torch.allclose(ours, mkl, rtol=1e-4, atol=1e-3):
        return False
    mkl_seconds, onednn_seconds = least_seconds(routes, operands)
    return onednn_seconds <= MAY_LAG * mkl_seconds


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
    """Of processor time where there is one thread to time, so that other programs count for nothing."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    least = [float("inf")] * len(routes)
    for _ in range(PROBE_ROUNDS):
        for index, route in enumerate(routes):
            start = clock()
            route(*operands)
            least[index] = min(least[index], clock() - start)
    return least
