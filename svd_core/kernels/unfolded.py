"""A convolution as one matrix product, for fewer pixels than weights."""

from __future__ import annotations

from torch import Tensor, nn


def unfolded(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """images (N, C, H, W), channels last, weight (O, C, kh, kw), kh and kw odd, bias (O,) or None -> (N, O, H, W), with
    stride 1 and zero padding.

    Each pixel is replaced by its kernel's window, kh * kw times the values, so that the weights are read in their own
    layout, channels first or last; convolution libraries reorder them in every call. Class: rounding."""
    batch, channels, height, width = images.shape
    outputs, _, rows, columns = weight.shape
    above, left = rows // 2, columns // 2
    padded = nn.functional.pad(images.movedim(1, -1), (0, 0, left, left, above, above))
    image, row, column, channel = padded.stride()
    seen = padded.as_strided(
        (batch, height, width, rows, columns, channels), (image, row, column, row, column, channel)
    )
    kernel = weight.movedim(1, -1)
    if weight.is_contiguous():
        seen, kernel = seen.movedim(-1, 3), weight
    tokens = nn.functional.linear(seen.reshape(batch * height * width, -1), kernel.reshape(outputs, -1), bias)
    return tokens.view(batch, height, width, outputs).movedim(-1, 1)
