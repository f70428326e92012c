"""What a host may swap under the networks: the layer classes, the attention function, dtype and device.

A host such as ComfyUI brings its own `operations` (layers that cast, offload or quantise their weights). Constructors
take one `Backend` and ask it for layers, so that choice is made once and never threaded through by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..config import GROUPS
from ..kernels import frame_attention, frame_conv
from .attention_kinds import AttentionFn as AttentionFn
from .attention_kinds import FramesFn, preferred
from .fused import WeightsFn, own_weights

ROWS_PER_CALL = 2**15
"""Attention kernels put the batch on a launch-grid axis that ends at 65,535 with heads; the level-0 temporal layers
reach 92,160 (spec 1.5). Rows are independent, so splitting them changes nothing."""


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's own attention, split over the batch where it would overrun a launch grid. Class: exact."""
    attend = nn.functional.scaled_dot_product_attention
    with preferred(q.device):
        if q.shape[0] * q.shape[1] <= ROWS_PER_CALL:
            return attend(q, k, v)
        rows = max(1, ROWS_PER_CALL // q.shape[1])
        return torch.cat([attend(*part) for part in zip(q.split(rows), k.split(rows), v.split(rows), strict=True)])


@dataclass(frozen=True, slots=True)
class Backend:
    """One bundle of what a host injects. `operations` is `torch.nn` or a namespace with the same layer classes;
    `frames` attends along the frames of each pixel; `weights` is how the layers give their weights to a kernel."""

    operations: Any = nn
    attention: AttentionFn = scaled_dot_product
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    frames: FramesFn = frame_attention
    weights: WeightsFn = own_weights

    def fit(self, tensor: Tensor, weight: Tensor) -> Tensor:
        """The tensor in the dtype that a layer with this weight computes in: the weight's own for torch's layers, any
        for a host's, which cast."""
        return tensor.to(weight.dtype) if self.operations is nn else tensor

    def linear(self, inputs: int, outputs: int, *, bias: bool = True) -> nn.Module:
        return self.operations.Linear(inputs, outputs, bias=bias, dtype=self.dtype, device=self.device)

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
        """A 2-D convolution, padded to keep the size at stride 1 unless told otherwise."""
        padding = kernel // 2 if padding is None else padding
        return self.operations.Conv2d(
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

    A (3,1,1) kernel never looks sideways, so height and width may be one axis: the same sums without the slow and,
    in some library versions, wrong 3-D kernels (performance notes 2.2). Class: rounding. Deriving from the host's own
    class keeps its casting, offloading and patching of weights, all of which end in `_conv_forward`.
    """

    class FrameConv(conv3d):
        def _conv_forward(self, clip: Tensor, weight: Tensor, bias: Tensor | None, *_: Any, **__: Any) -> Tensor:
            """clip (B, C, T, H*W) -> (B, C', T, H*W)."""
            return frame_conv(clip, weight, bias)

    return FrameConv


TORCH = Backend()
