"""float32 linear layers by oneDNN. Class: rounding.

Torch sends float32 matrix products to MKL, which does not fully use CPUs that Intel did not make; oneDNN, which torch
also contains, does (docs/LOG.md, 2026-11-25).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...kernels import needs_gradient
from ...verdicts import processor
from .probe import MAY_LAG, drawn, is_plain, is_quick, probed

PROBE_SHAPE = (960, 640, 640)
"""Tokens, inputs, outputs: a projection of the released UNet's second level."""


def in_words() -> str:
    """User-facing name of the library that computes float32 linear layers on this CPU."""
    return "oneDNN" if linear_by_onednn() else "torch's own (MKL where there is one)"


@probed("float32 linear layers", "by oneDNN")
def linear_by_onednn() -> bool:
    """Whether float32 linear layers use oneDNN here."""
    return _is_foreign_to_mkl() and _probe_agrees()


def onednn_linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """tokens (..., I), weight (O, I) contiguous, bias (O,) or None -> (..., O). Records no gradients."""
    return torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")


class _LinearByOneDNN(TorchFunctionMode):
    """Redirects `torch.nn.functional.linear` of plain tensors that need no gradient."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (
            func is nn.functional.linear
            and not kwargs
            and all(is_plain(part, torch.float32) for part in args if part is not None)
            and not needs_gradient(*args)
        ):
            return onednn_linear(*args)
        return func(*args, **(kwargs or {}))


_LINEAR_BY_ONEDNN = _LinearByOneDNN()


def by_onednn(tokens: Tensor) -> AbstractContextManager[object]:
    """Context in which linear layers of such tokens, which must pass `probe.may_replace`, use the chosen library."""
    return _LINEAR_BY_ONEDNN if tokens.dtype == torch.float32 and linear_by_onednn() else nullcontext()


def _is_foreign_to_mkl() -> bool:
    """Whether the CPU is AMD's and torch has both libraries."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return "AuthenticAMD" in processor()


def _probe_agrees() -> bool:
    """Whether oneDNN gives MKL's numbers up to rounding, and takes at most `MAY_LAG` times as long."""
    count, inputs, outputs = PROBE_SHAPE
    operands = drawn(torch.float32, ((count, inputs), (outputs, inputs), (outputs,)))
    ours, mkl = onednn_linear(*operands), nn.functional.linear(*operands)
    if not torch.allclose(ours, mkl, rtol=1e-4, atol=1e-3):
        return False
    return is_quick(onednn_linear, nn.functional.linear, operands, MAY_LAG)
