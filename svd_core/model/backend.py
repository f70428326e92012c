"""What a host may replace in the networks: the layer classes, the attention function, dtype and device.

A host such as ComfyUI brings its own `operations` (layers that cast, offload or quantise their weights). Constructors
take one `Backend` and ask it for layers, so that choice is made in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..config import GROUPS
from ..kernels import frame_attention
from .attention_kinds import AttentionFn as AttentionFn
from .attention_kinds import FramesFn, preferred
from .cpu.conv import deriving_conv, frames_convolved
from .cpu.route import deriving_linear
from .cpu.wide import attention, may_attend
from .fused import WeightsFn, own_weights

ROWS_PER_CALL = 2**15
"""Most rows times heads of one attention call. Kernels put them on a launch-grid axis limited to 65,535; the level-0
temporal layers reach 92,160 (spec 1.5). Rows are independent, so splitting them changes nothing."""


FUSED = ("cuda", "cpu", "xpu", "meta")
"""Device types on which torch never holds all scores at once."""

SCORES = 2**28
"""Most scores that may exist at once on other devices, 512 MiB in 16 bits. At the finest level of the released models
one head of one frame has 2**26.3 of them, and there are 5 heads and up to 50 frames."""


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's attention, split into groups of rows if they would overrun a launch grid, and into groups of rows and
    queries on devices that hold all scores. A group's size depends only on the shape and the device type. Class:
    rounding."""
    rows, queries = _together(q, k)
    attend = attention if may_attend(q, k, v) else nn.functional.scaled_dot_product_attention
    with preferred(q.device):
        if q.shape[0] <= rows and q.shape[2] <= queries:
            return attend(q, k, v)
        parts = zip(q.split(rows), k.split(rows), v.split(rows), strict=True)
        return torch.cat(
            [_joined([attend(some, keys, values) for some in of.split(queries, 2)]) for of, keys, values in parts]
        )


def _together(q: Tensor, k: Tensor) -> tuple[int, int]:
    """Rows per call, and queries per row."""
    heads, length = q.shape[1:3]
    rows = max(1, ROWS_PER_CALL // heads)
    if q.device.type in FUSED:
        return rows, length
    of_a_query = heads * k.shape[2]
    return min(rows, max(1, SCORES // (of_a_query * length))), max(1, SCORES // of_a_query)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


@dataclass(frozen=True, slots=True)
class Backend:
    """Everything a host injects. `operations` is `torch.nn` or a namespace with the same layer classes; `frames`
    attends along the frames of each pixel; `weights` reads a layer's weights for a kernel."""

    operations: Any = nn
    attention: AttentionFn = scaled_dot_product
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    frames: FramesFn = frame_attention
    weights: WeightsFn = own_weights

    def __deepcopy__(self, memo: dict[int, Any]) -> Backend:
        """Itself: copies of a network share what is immutable, and a module among the fields cannot be copied."""
        return self

    def fit(self, tensor: Tensor, weight: Tensor) -> Tensor:
        """The tensor in the dtype that a layer with this weight accepts: the weight's own for torch's layers, any for a
        host's, which cast for themselves."""
        return tensor.to(weight.dtype) if self.operations is nn else tensor

    def linear(self, inputs: int, outputs: int, *, bias: bool = True) -> nn.Module:
        layer = deriving_linear(self.operations.Linear)
        return layer(inputs, outputs, bias=bias, dtype=self.dtype, device=self.device)

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
    ) -> nn.Module:
        """A 2-D convolution, by default padded to keep the size at stride 1."""
        padding = kernel // 2 if padding is None else padding
        layer = deriving_conv(self.operations.Conv2d)
        return layer(
            inputs, outputs, kernel, stride=stride, padding=padding, bias=bias, dtype=self.dtype, device=self.device
        )

    def frame_conv(self, inputs: int, outputs: int) -> nn.Module:
        """A (3,1,1) convolution across frames, zero-padded at the ends of the clip; see `_over_frames`."""
        layer = _over_frames(self.operations.Conv3d)
        return layer(inputs, outputs, (3, 1, 1), padding=(1, 0, 0), dtype=self.dtype, device=self.device)

    def group_norm(self, channels: int, *, eps: float = 1e-5) -> nn.Module:
        return self.operations.GroupNorm(GROUPS, channels, eps=eps, dtype=self.dtype, device=self.device)

    def layer_norm(self, channels: int) -> nn.Module:
        return self.operations.LayerNorm(channels, eps=1e-5, dtype=self.dtype, device=self.device)

    def parameter(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(shape, dtype=self.dtype, device=self.device))


@cache
def _over_frames(conv3d: type[nn.Module]) -> type[nn.Module]:
    """A `Conv3d` that keeps the official five-dimensional weight but runs as a 2-D convolution over (frames, pixels).

    A (3,1,1) kernel does not mix pixels, so height and width may be one axis: the same sums without the slow and, in
    some library versions (pytorch issue 163539), wrong 3-D kernels. Class: rounding. Deriving from the host's own class
    keeps its casting, offloading and patching of weights, all of which end in `_conv_forward`.
    """

    class FrameConv(conv3d):
        def _conv_forward(self, clip: Tensor, weight: Tensor, bias: Tensor | None, *_: Any, **__: Any) -> Tensor:
            """clip (B, C, T, H*W) -> (B, C', T, H*W)."""
            return frames_convolved(clip, weight, bias)

    return FrameConv


TORCH = Backend()
