"""Nearest-neighbour upsampling by two as one copy."""

from __future__ import annotations

from torch import Tensor, nn


def doubled(images: Tensor) -> Tensor:
    """(N, C, H, W), channels last -> (N, C, 2H, 2W), each pixel four times. Torch's own kernel for it takes many times
    as long as a copy on a CUDA device, and no longer on a CPU. Class: exact."""
    if not images.is_cuda:
        return nn.functional.interpolate(images, scale_factor=2, mode="nearest")
    return copied_twice(images)


def copied_twice(images: Tensor) -> Tensor:
    """`doubled` by views and a copy of them, anywhere."""
    number, channels, height, width = images.shape
    pixels = images.movedim(1, -1)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
    return pixels.reshape(number, 2 * height, 2 * width, channels).movedim(-1, 1)
