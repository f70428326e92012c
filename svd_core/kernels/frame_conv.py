"""A (3,1,1) convolution across frames: three GEMMs over the same rows, one frame apart, with zeros beyond the ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from .channels_last import first_columns, is_channels_last
from .choice import Operation

SAMPLE_PIXELS = 64


def reference(clips: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """clips (B, C, T, S), weight (O, C, 3, 1, 1), bias (O,) -> (B, O, T, S). The kernel does not mix pixels, so it is a
    2-D one over (frames, pixels): the same sums without the slower 3-D kernels."""
    return nn.functional.conv2d(clips, weight.squeeze(-1), bias, padding=(1, 0))


def _kernels() -> Mapping[str, Callable[..., Tensor]]:
    from .frame_conv_triton import TILES

    return TILES


def _refusal(clips: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    if not is_channels_last(clips):
        return "clips do not lie channels last"
    return "" if tuple(weight.shape[1:]) == (clips.shape[1], 3, 1, 1) else "the kernel is not (3,1,1) over all channels"


def _shape_class(clips: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[int, int, bool]:
    """Excludes frames and pixels: a decode in chunks or bands must choose as a whole one does."""
    return weight.shape[1], weight.shape[0], bias is not None


def _sample(clips: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    return first_columns(clips, SAMPLE_PIXELS), weight, bias


frame_conv = Operation("frame_conv", reference, _kernels, _refusal, _shape_class, _sample)
