"""What a network asks of a device: launches, bytes and FLOPs, by class of operation; on the meta device for nothing,
and on a CPU with the time that each class takes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
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
    "native_group_norm": NORM,
    "native_layer_norm": NORM,
}
"""Operations of torch, by class; any other is all else: sums, products, activations and copies."""

NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias"}
"""These start nothing on a device."""


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


class Work(TorchDispatchMode):
    """Tallies what runs while it is entered. Bytes are those that an operation reads and writes, each tensor once;
    seconds are wall time and mean something on a CPU alone, where calls do not return early."""

    def __init__(self) -> None:
        super().__init__()
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
        start = time.perf_counter()
        result = func(*args, **kwargs)
        seconds = time.perf_counter() - start
        name = func._schema.name.partition("::")[2]
        if name not in NOTHING and not _is_view(func):
            moved = _bytes((args, kwargs)) + (0 if _writes_in_place(func) else _bytes(result))
            tally = Tally(1, moved, _flops(func, name, args, kwargs, result), seconds)
            self.classes[CLASSES.get(name, OTHER)].add(tally)
            self.operations[name].add(tally)
        return result


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One launch, as a GPU has it; torch's own function falls apart on the meta device."""
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
        return 2 * args[0].numel() * args[1].shape[0]
    if name.endswith("attention_for_cpu"):
        q, k, v = args[:3]
        return 2 * q[..., 0].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    formula = flop_registry.get(func._overloadpacket)
    return formula(*args, **kwargs, out_val=result) if formula else 0
