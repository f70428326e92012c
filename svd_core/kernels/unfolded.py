"""A convolution as one product, where there are fewer pixels than weights."""

from __future__ import annotations

from torch import Tensor, nn


def unfolded(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """images (N, C, H, W), channels last, weight (O, C, kh, kw), kh and kw odd, bias (O,) or None -> (N, O, H, W), with
    stride 1 and zeros beyond the edges.

    Each pixel is replaced by all that its kernel sees, kh * kw times the values, so that the weights are read as they
    lie; a convolution's library turns them first, in every call. Class: rounding."""
    batch, channels, height, width = images.shape
    outputs, _, rows, columns = weight.shape
    above, left = rows // 2, columns // 2
    padded = nn.functional.pad(images.movedim(1, -1), (0, 0, left, left, above, above))
    image, row, column, channel = padded.stride()
    seen = padded.as_strided(
        (batch, height, width, channels, rows, columns), (image, row, column, channel, row, column)
    )
    tokens = nn.functional.linear(seen.reshape(batch * height * width, -1), weight.reshape(outputs, -1), bias)
    return tokens.view(batch, height, width, outputs).movedim(-1, 1)
