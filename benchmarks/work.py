"""Work of a network by class of operation: launches, bytes and FLOPs, counted on the meta device at no cost, and on
other devices also the time of each class, compared with the machine's peak.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

GEMM, CONVOLUTION, ATTENTION, NORM, OTHER = "matrix products", "convolutions", "attention", "norms", "all else"
CLASSES = {
    "mm": GEMM,
    "addmm": GEMM,
    "bmm": GEMM,
    "baddbmm": GEMM,
    "_linear_pointwise": GEMM,
    "convolution": CONVOLUTION,
    "_scaled_dot_product_flash_attention": ATTENTION,
    "_scaled_dot_product_flash_attention_for_cpu": ATTENTION,
    "_scaled_dot_product_cudnn_attention": ATTENTION,
    "_scaled_dot_product_efficient_attention": ATTENTION,
    "native_group_norm": NORM,
    "native_layer_norm": NORM,
}
"""Class of torch operations; others are sums, elementwise products, activations and copies."""

Seconds = Callable[[Callable[[], object]], float]
"""Runs a function and returns the seconds that it took."""

NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias"}
"""Operations that launch nothing on a device."""


@dataclass(slots=True)
class Tally:
    launches: int = 0
    bytes: int = 0
    flops: int = 0
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        self.launches += other.launches
        self.bytes += other.bytes
        self.flops += other.flops
        self.seconds += other.seconds


def wall_seconds(run: Callable[[], object]) -> float:
    """Wall time; meaningful on a CPU only, where calls do not return early."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Work(TorchDispatchMode):
    """Tallies the operations that run in its context. Bytes are those that an operation reads and writes, each tensor
    once; `seconds` times each operation alone. Kernels that torch does not dispatch, such as Triton's, are missed."""

    def __init__(self, seconds: Seconds = wall_seconds) -> None:
        super().__init__()
        self._seconds = seconds
        self.classes: dict[str, Tally] = defaultdict(Tally)
        self.operations: dict[str, Tally] = defaultdict(Tally)

    @property
    def total(self) -> Tally:
        total = Tally()
        for tally in self.classes.values():
            total.add(tally)
        return total

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        results: list[Any] = []
        seconds = self._seconds(lambda: results.append(func(*args, **kwargs)))
        result = results[0]
        name = func._schema.name.partition("::")[2]
        if name not in NOTHING and not _is_view(func):
            moved = _bytes((args, kwargs)) + (0 if _writes_in_place(func) else _bytes(result))
            tally = Tally(1, moved, _flops(func, name, args, kwargs, result), seconds)
            self.classes[CLASSES.get(name, OTHER)].add(tally)
            self.operations[name].add(tally)
        return result


@dataclass(frozen=True, slots=True)
class Peaks:
    """A machine's measured peaks: FLOP/s of a large product, bytes/s of a large copy."""

    flops: float
    bytes: float

    def floor(self, tally: Tally) -> float:
        """Lower bound on the seconds of this work, if it were a single operation."""
        return max(tally.flops / self.flops, tally.bytes / self.bytes)


def roofline(title: str, classes: Mapping[str, Tally], peaks: Peaks) -> list[str]:
    """Lines of a Markdown table that compares each class of operation with the machine's peaks."""
    lines = [
        f"{title}: peaks {peaks.flops / 1e9:.0f} GFLOP/s and {peaks.bytes / 1e9:.1f} GB/s.",
        "",
        "| class | launches | GFLOP | GB | seconds | floor, seconds | of the floor |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys((*CLASSES.values(), *classes)):
        if name in classes:
            tally = classes[name]
            floor = peaks.floor(tally)
            share = f"{100 * floor / tally.seconds:.0f} %" if tally.seconds > 0 else "-"
            cells = (tally.launches, f"{tally.flops / 1e9:.1f}", f"{tally.bytes / 1e9:.2f}", f"{tally.seconds:.4f}")
            lines.append(f"| {name} | {' | '.join(map(str, cells))} | {floor:.4f} | {share} |")
    return lines


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as one launch, as on a GPU; torch's own function decomposes on the meta device."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def _is_view(func: Any) -> bool:
    results = func._schema.returns
    return bool(results) and results[0].alias_info is not None and not results[0].alias_info.is_write


def _writes_in_place(func: Any) -> bool:
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments)


def _bytes(values: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _flops(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    if name == "_linear_pointwise":
        weight = args[2 if func._overloadname == "binary" else 1]
        return 2 * args[0].numel() * weight.shape[0]
    if name.endswith("attention_for_cpu"):
        q, k, v = args[:3]
        return 2 * q[..., 0].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    formula = flop_registry.get(func._overloadpacket)
    return formula(*args, **kwargs, out_val=result) if formula else 0
