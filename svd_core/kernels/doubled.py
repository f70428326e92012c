"""Nearest-neighbour upsampling by two: as one copy, and together with the 3x3 convolution that smooths it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CORNERS = (0, 1)
"""Row and column indices of the four pixels that each pixel becomes."""


def doubled(images: Tensor) -> Tensor:
    """(N, C, H, W), channels last -> (N, C, 2H, 2W), each pixel four times. On a CUDA device torch's own kernel takes
    many times as long as a copy; on a CPU it does not. Class: exact."""
    if not images.is_cuda:
        return nn.functional.interpolate(images, scale_factor=2, mode="nearest")
    return copied_twice(images)


def copied_twice(images: Tensor) -> Tensor:
    """`doubled` by an expanded view and a copy, on any device."""
    number, channels, height, width = images.shape
    pixels = images.movedim(1, -1)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
    return pixels.reshape(number, 2 * height, 2 * width, channels).movedim(-1, 1)


def doubled_smooth(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Images (N, C, H, W) doubled, then convolved by weight (O, C, 3, 3) with zero padding and bias (O,) or None -> (N,
    O, 2H, 2W). `smoothed_by_corner` does the same in four ninths of the products."""
    return nn.functional.conv2d(doubled(images), weight, bias, padding=1)


def smoothed_by_corner(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolved: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] = lambda conv, images: conv(images),
) -> Tensor:
    """`doubled_smooth` without the doubled images: of the nine pixels that a doubled pixel's kernel sees, several are
    copies of one, so each corner of a pixel is a 2x2 convolution by sums of weights.

    The sums are recomputed in each call and take 16/9 of the weight's memory. `convolved` calls a convolution. Class:
    rounding; in float32 with half the error, since a sum has 4 terms per channel instead of 9."""
    number, _, height, width = images.shape
    sums = corner_weights(weight)
    result = images.new_empty((number, 2 * height, 2 * width, len(weight)))
    cells = result.view(number, height, 2, width, 2, len(weight))
    for row in CORNERS:
        for column in CORNERS:
            corner = convolved(lambda seen, kernel=sums[row][column]: _padded(seen, kernel, bias), images)
            own = corner[:, :, row : row + height, column : column + width]
            cells[:, :, row, :, column].copy_(own.movedim(1, -1))
            del corner, own
    return result.movedim(-1, 1)


def corner_weights(weight: Tensor) -> list[list[Tensor]]:
    """(O, C, 3, 3) -> weights (O, C, 2, 2) by the corner's row and column: along each axis the first corner applies the
    first weight to a neighbour and the sum of the others to the pixel itself; the second is its mirror image."""
    along = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # corner, place in 2, place in 3
    both = torch.einsum("rik,cjl->rcijkl", along, along).reshape(16, 9)
    # Each product sums in float32 and rounds once.
    sums = (both @ weight.flatten(2).transpose(1, 2)).unflatten(1, (2, 2, 2, 2)).movedim(-1, 1)
    return [[sums[:, :, row, column] for column in CORNERS] for row in CORNERS]


def _padded(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, C, H, W) -> (N, O, H + 1, W + 1)."""
    layout = (
        torch.contiguous_format if images.is_contiguous() else torch.channels_last
    )  # torch also reads the weight's layout
    return nn.functional.conv2d(images, weight.contiguous(memory_format=layout), bias, padding=1)
