"""Convolutions that a CPU runs otherwise than torch would: as products, by row, and those of doubled images by corner.

Torch sends convolutions to oneDNN, which turns all weights in every call. At the coarse levels of a small picture there
are more of them than pixels to use them on, and turning them takes most of the time: there a product is taken. In
float32, with many channels, half of a convolution's products can be spared: by row. Capability, one probe, kept choice,
torch's route otherwise. Class: rounding. Never with gradients, in torch.compile, or
on weights that are anything but plain numbers in the CPU's memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from ..kernels.by_row import STEP, convolved_by_row
from ..kernels.unfolded import unfolded
from .cpu import MAY_LAG, PLAIN, by_chosen_library, is_plain, least_seconds

logger = logging.getLogger(__name__)

FEW_PIXELS = {torch.float32: 64, torch.bfloat16: 16}
"""Of an image, at most, for its convolutions to run as products. Not of a batch: both branches of guidance in one call
must choose as one by one."""

MANY_WEIGHTS = 2**22
"""Of a convolution that runs as a product, at least: those of 1280 channels have them, those of 640 do not."""

DOUBLED_PIXELS = {torch.float32: 64, torch.bfloat16: 128}
"""Of an image before it is doubled, at least, for the convolution after that to run by corner: with fewer, summing the
weights takes longer than it saves."""

MANY_CHANNELS = 256
"""Of a convolution's images and of its result, at least, for it to run by row: sums over fewer take less time than the
columns' sums around them."""

PIXELS_A_THREAD = 240
"""Of an image, at least, for its convolutions to run by row: with fewer, summing and turning the weights takes longer
than it saves for the frames of a clip. Not of a batch."""

IDLE_COLUMNS = 0.2
"""Of an image's width, at most, that a convolution by row works out beyond the edge."""

PROBE_IMAGES = (7, 1280, 3, 5)
PROBE_OUTPUTS = 640
"""The coarsest level of a small picture, where a product takes a third to a fifth of the time."""

ROW_IMAGES = (1, 512, 64, 96)
ROW_OUTPUTS = 512
"""Of a decoder; there a convolution by row takes two thirds of the time."""

Convolved = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Images (N, C, H, W), weight and bias -> (N, O, H, W)."""


@cache
def deriving_conv(conv2d: type[nn.Module]) -> type[nn.Module]:
    """A host's `Conv2d` that may run as a product or by row. The host's casting, offloading and patching of weights all
    end in `_conv_forward`."""

    class Conv2d(conv2d):
        def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if _keeps_size(self) and is_product(images, weight):
                return as_product(images, weight, bias)
            if self.sums_short(images) and is_plain_kernel(weight, images.dtype):
                return convolved_by_row(images, weight, bias)
            return super()._conv_forward(images, weight, bias)

        def sums_short(self, images: Tensor) -> bool:
            """Whether images (N, C, H, W) would be convolved by row, so that its caller need not see to short sums."""
            return _keeps_size(self) and may_run_by_row(images, self.weight.shape)

    return Conv2d


def _keeps_size(conv: nn.Module) -> bool:
    """Whether it is the plain sum, with zeros beyond the edges, whose result has the images' size."""
    centred = conv.padding == tuple(size // 2 for size in conv.kernel_size)
    return centred and conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"


def is_product(images: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of images (N, C, H, W), weight (O, C, k, k), or of clips (B, C, T, H*W), weight
    (O, C, 3, 1, 1), runs as a product."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not images.is_cpu:
        return False
    pixels = images.shape[3] if weight.ndim == 5 else images.shape[2] * images.shape[3]
    if pixels > FEW_PIXELS.get(images.dtype, 0) or weight.numel() < MANY_WEIGHTS:
        return False
    plain = type(images) in PLAIN and is_plain(weight, images.dtype)
    return plain and not torch.is_autocast_enabled("cpu") and chosen(images.dtype)


def may_run_by_corner(images: Tensor) -> bool:
    """Whether a 3x3 convolution of images (N, C, H, W) doubled runs by corner, if its weights are `is_plain`. There is
    nothing to probe: torch's own convolution does it either way, in four ninths of the products."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not images.is_cpu:
        return False
    if images.shape[2] * images.shape[3] < DOUBLED_PIXELS.get(images.dtype, math.inf):
        return False
    return type(images) in PLAIN and not torch.is_autocast_enabled("cpu")


def may_run_by_row(images: Tensor, weight: torch.Size) -> bool:
    """Whether a convolution of images (N, C, H, W) by a weight of this shape runs by row, if it `is_plain_kernel`.
    Images whose channels lie first have been turned for the sake of short sums and need no others."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not images.is_cpu or images.dtype != torch.float32:
        return False
    height, width = images.shape[2:]
    few = height * width < PIXELS_A_THREAD * torch.get_num_threads() or -width % STEP > IDLE_COLUMNS * width
    if weight[2:] != (3, 3) or min(weight[:2]) < MANY_CHANNELS or few:
        return False
    plain = type(images) in PLAIN and images.is_contiguous(memory_format=torch.channels_last)
    return plain and not torch.is_autocast_enabled("cpu") and chosen_by_row()


def as_product(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`unfolded`, by the library that computes linear layers here."""
    with by_chosen_library(images):
        return unfolded(images, weight, bias)


def is_plain_kernel(weight: Tensor, dtype: torch.dtype) -> bool:
    """`is_plain`, with the channels of a weight (O, C, k, k) first or last."""
    last = weight.is_contiguous(memory_format=torch.channels_last)
    return is_plain(weight.movedim(1, -1) if last else weight, dtype)


@cache
def chosen(dtype: torch.dtype) -> bool:
    """Whether convolutions of few pixels run as products here; found once in a process, and logged."""
    taken = _probe_agrees(dtype, as_product, PROBE_IMAGES, PROBE_OUTPUTS, 1)
    logger.info("%s convolutions of few pixels on the CPU: %s", dtype, "as products" if taken else "torch's own")
    return taken


@cache
def chosen_by_row() -> bool:
    """Whether float32 convolutions of many channels run by row here; found once in a process, and logged."""
    taken = _probe_agrees(torch.float32, convolved_by_row, ROW_IMAGES, ROW_OUTPUTS, MAY_LAG)
    logger.info("float32 convolutions of many channels on the CPU: %s", "by row" if taken else "torch's own")
    return taken


@torch.inference_mode()
def _probe_agrees(
    dtype: torch.dtype, route: Convolved, shape: tuple[int, int, int, int], outputs: int, may_lag: float
) -> bool:
    """Whether a route gives the convolution's numbers, up to rounding, and takes at most `may_lag` times as long."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    shapes = (shape, (outputs, channels, 3, 3), (outputs,))
    images, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    operands = images.contiguous(memory_format=torch.channels_last), weight.div_((9 * channels) ** 0.5), bias
    ours, torchs = route(*operands), _convolution(*operands)
    if not (ours - torchs).norm() <= 16 * torch.finfo(dtype).eps * torchs.norm():
        return False
    our_seconds, torchs_seconds = least_seconds((route, _convolution), operands)
    return our_seconds <= may_lag * torchs_seconds


def _convolution(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.conv2d(images, weight, bias, padding=1)
