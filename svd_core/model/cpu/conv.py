"""Convolutions that run differently from torch's on a CPU: as products, and those of doubled images by corner.

Torch sends convolutions to oneDNN, which reorders all weights in every call. At the coarse levels of a small picture
there are more weights than pixels, and reordering takes most of the time, so a product is used there. Class: rounding.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from ...kernels import frame_conv, needs_gradient
from ...kernels.unfolded import unfolded
from .probe import MAY_LAG, is_plain_kernel, may_replace, of_layer, probed, replaces
from .route import by_chosen_route
from .wide import frame_convolution, may_widen

DTYPES = torch.float32, torch.bfloat16, torch.float16
"""Dtypes of convolutions that may run as products."""

FEW_PIXELS = 64
"""Most pixels of an image for its convolutions to run as products. Not of a batch: both guidance branches in one call
must choose the same as one at a time."""

MANY_WEIGHTS = 2**22
"""Fewest weights of a convolution that runs as a product: those of 1280 channels have them, those of 640 do not."""

DOUBLED_PIXELS = {torch.float32: 64, torch.bfloat16: 128, torch.float16: 128}
"""Fewest pixels of an image before doubling for the next convolution to run by corner: with fewer, summing the weights
takes longer than it saves."""

PROBE_IMAGES = (7, 1280, 3, 5)
PROBE_OUTPUTS = 640
"""The coarsest level of a small picture, where a product takes a third to a fifth of the time."""


@cache
def deriving_conv(conv2d: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a host's `Conv2d` that may take another route. The host's casting, offloading and patching of
    weights all end in `_conv_forward`."""

    class Conv2d(conv2d):
        def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if _keeps_size(self) and is_product(images, weight):
                return as_product(images, weight, bias)
            with by_chosen_route(images):
                return super()._conv_forward(images, weight, bias)

    return Conv2d


def frames_convolved(clip: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`kernels.frame_conv` of a clip (B, C, T, S), by the route chosen here."""
    if is_product(clip, weight):
        return as_product(clip, weight[..., 0], bias)
    if may_replace(clip) and may_widen(torch.conv2d, clip, weight, bias):
        return frame_convolution(clip, weight, bias)
    return frame_conv(clip, weight, bias)


def _keeps_size(conv: nn.Module) -> bool:
    """Whether a convolution is ungrouped and zero-padded, and its result has the images' size."""
    centred = conv.padding == tuple(size // 2 for size in conv.kernel_size)
    return centred and conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"


def is_product(images: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of images (N, C, H, W), weight (O, C, k, k), or of clips (B, C, T, H*W), weight
    (O, C, 3, 1, 1), runs as a product."""
    if not may_replace(images) or needs_gradient(weight):
        return False
    pixels = images.shape[3] if weight.ndim == 5 else images.shape[2] * images.shape[3]
    if images.dtype not in DTYPES or pixels > FEW_PIXELS or weight.numel() < MANY_WEIGHTS:
        return False
    return is_plain_kernel(weight, images.dtype) and chosen(images.dtype)


def may_run_by_corner(images: Tensor) -> bool:
    """Whether a 3x3 convolution of images (N, C, H, W) doubled runs by corner, if its weight is plain
    (`is_plain_kernel`). No probe is needed: the same convolution, torch's own or `wide`'s, runs either way, by corner
    with four ninths of the products."""
    if not may_replace(images):
        return False
    return images.shape[2] * images.shape[3] >= DOUBLED_PIXELS.get(images.dtype, math.inf)


def as_product(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`unfolded`, with the route of linear layers."""
    with by_chosen_route(images):
        return unfolded(images, weight, bias)


@probed("{} convolutions of few pixels", "as products")
def chosen(dtype: torch.dtype) -> bool:
    """Whether a product is about as accurate here as a convolution of few pixels, and not far slower."""
    images, *weights = of_layer(dtype, PROBE_IMAGES, (PROBE_OUTPUTS, PROBE_IMAGES[1], 3, 3))
    return replaces(as_product, _convolution, (images.contiguous(memory_format=torch.channels_last), *weights), MAY_LAG)


def _convolution(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with by_chosen_route(images):
        return nn.functional.conv2d(images, weight, bias, padding=1)
