"""Products of 16-bit numbers, computed in float32 on CPUs where that is faster.

Few CPUs multiply 16-bit numbers faster than float32 ones. On the others torch's 16-bit products take up to eight times
as long, so operands are widened, a part at a time, and a result is rounded once: a network takes half the memory and is
hardly slower than in float32. Class: rounding, no more than torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...decode.rescue import HALF
from ...kernels import needs_gradient, smoothed_by_corner
from .onednn import by_onednn
from .probe import BLOCK_VALUES, PLAIN, drawn, may_replace, probed, replaces

_ATTENTION = nn.functional.scaled_dot_product_attention

PROBE_SHAPES = {
    nn.functional.linear: ((960, 640), (640, 640)),
    torch.conv2d: ((1, 128, 64, 96), (128, 128, 3, 3)),
    _ATTENTION: ((1, 5, 960, 64), (1, 5, 960, 64), (1, 5, 960, 64)),
}
"""Shapes of the operands: a projection of the released UNet's second level, a convolution of the decoder's finest,
attention within a frame of 320x192."""

FEW_TOKENS = 128
"""Token count below which attention is not widened: the tokens of a pixel in all frames take longer to widen than to
attend."""

AT_MOST = 0.85
"""Largest share of torch's time at which widening is chosen. Where it pays it takes 0.7 or less, else 0.95 or more, so
that a noisy probe does not change the choice, and with it bits, from one run to the next."""


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` of tokens (..., I) in 16 bits -> (..., O) in 16 bits. Records no gradients."""
    rows = tokens.reshape(-1, tokens.shape[-1])
    result = rows.new_empty(len(rows), len(weight))
    for outputs in _parts(len(weight), weight.shape[1]):
        _fill(result[:, outputs], rows, _product, *_widened(weight, bias, outputs))
    return result.view(*tokens.shape[:-1], len(weight))


def convolution(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """`torch.conv2d` of images (N, C, H, W) in 16 bits -> (N, O, h, w) in 16 bits, channels last. Each image is widened
    whole; no plan counts that, nor what oneDNN holds."""
    how = [_both(number) for number in (stride, padding, dilation)]
    sides = [_side(*of_axis) for of_axis in zip(images.shape[2:], weight.shape[2:], *how, strict=True)]
    result = images.new_empty(len(images), *sides, len(weight)).movedim(-1, 1)
    for outputs in _parts(len(weight), weight[0].numel()):
        _fill(result[:, outputs], images, torch.conv2d, *_widened(weight, bias, outputs), *how)
    return result


def _both(number: int | Sequence[int]) -> tuple[int, int]:
    return (number, number) if isinstance(number, int) else tuple(number)


def _side(length: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Output height or width of a convolution."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def frame_convolution(clips: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`kernels.frame_conv`: clips (B, C, T, S), weight (O, C, 3, 1, 1) in 16 bits -> (B, O, T, S), channels last."""
    clip_count, _, frames, pixels = clips.shape
    result = clips.new_empty(clip_count, frames, pixels, len(weight)).movedim(-1, 1)
    for outputs in _parts(len(weight), weight[0].numel()):
        _convolve_frames(result[:, outputs], clips, *_widened(weight.squeeze(-1), bias, outputs))
    return result


def _convolve_frames(result: Tensor, clips: Tensor, kernel: Tensor, bias: Tensor | None) -> None:
    """Convolve some pixels at a time, as a whole clip might be too large; pixels are independent."""
    for part in _parts(clips.shape[-1], max(clips[..., 0].numel(), result[..., 0].numel())):
        result[..., part] = torch.conv2d(clips[..., part].float(), kernel, bias, padding=(1, 0))


def doubled_smooth(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`kernels.smoothed_by_corner` of images (N, C, H, W) in 16 bits -> (N, O, 2H, 2W) in 16 bits, channels last; the
    sums of weights stay in float32."""
    count, channels, height, width = images.shape
    result = images.new_empty(count, 2 * height, 2 * width, len(weight)).movedim(-1, 1)
    for outputs in _parts(len(weight), 16 * channels):
        _fill(result[:, outputs], images, smoothed_by_corner, *_widened(weight, bias, outputs))
    return result


def geglu(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`kernels.geglu`'s reference: tokens (..., C), weight (2H, C), bias (2H,) in 16 bits -> (..., H), rounded once
    instead of four times."""
    rows, half = tokens.reshape(-1, tokens.shape[-1]), len(weight) // 2
    result = rows.new_empty(len(rows), half)
    for part in _parts(len(rows), len(weight)):
        wide = rows[part].float()
        opened = nn.functional.gelu(_product(wide, *_widened(weight, bias, slice(half, None))))
        result[part] = opened.mul_(_product(wide, *_widened(weight, bias, slice(half))))
    return result.view(*tokens.shape[:-1], half)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`: q (N, heads, L, D), k and v (N, heads, M, D) in 16 bits ->
    (N, heads, L, D) in 16 bits, tokens before heads in memory."""
    rows, heads, length, width = q.shape
    result = q.new_empty(rows, length, heads, width).transpose(1, 2)
    for part in _parts(rows, max(q[0].numel(), k[0].numel())):
        result[part] = _ATTENTION(*(operand[part].float() for operand in (q, k, v)))
    return result


def _fill(result: Tensor, given: Tensor, operation: Callable[..., Tensor], *operands: Any) -> None:
    """Write `operation(given, *operands)` to `result`, some rows or images at a time, each widened to float32."""
    for part in _parts(len(given), max(given[0].numel(), result[0].numel())):
        result[part] = operation(given[part].float(), *operands)


def _product(rows: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    with by_onednn(rows):
        return nn.functional.linear(rows, kernel, bias)


def _parts(count: int, values: int) -> list[slice]:
    """Slices that divide `count` items of `values` values each into equal parts of up to BLOCK_VALUES values, or one
    item."""
    number = -(-count // max(1, BLOCK_VALUES // values))
    size = -(-count // number)
    return [slice(first, first + size) for first in range(0, count, size)]


def _widened(weight: Tensor, bias: Tensor | None, outputs: slice) -> tuple[Tensor, Tensor | None]:
    return weight[outputs].float(), None if bias is None else bias[outputs].float()


def may_widen(route: Callable[..., Tensor], *operands: Tensor | None) -> bool:
    """Whether a function of `_ROUTES` is faster in float32 here for these operands, none of which may need a gradient
    and the first of which must pass `probe.may_replace`."""
    dtype = operands[0].dtype
    given = [operand for operand in operands if operand is not None]
    plain = all(type(part) in PLAIN and part.is_cpu and part.dtype == dtype and part.numel() > 0 for part in given)
    return dtype in HALF and plain and not needs_gradient(*given) and chosen(route, dtype)


def may_attend(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `attention`, which covers fewer cases than torch's, can take these and is faster."""
    if not may_replace(q):
        return False
    rows, heads, length, width = q.shape
    if min(length, k.shape[2]) < FEW_TOKENS or k.shape != v.shape or (*k.shape[:2], k.shape[3]) != (rows, heads, width):
        return False
    return may_widen(_ATTENTION, q, k, v)


@probed("{} of {}", "in float32")
def chosen(route: Callable[..., Tensor], dtype: torch.dtype) -> bool:
    """Whether the widened form of such products is faster here (`AT_MOST`) and, as it always should be, as accurate."""
    operands = drawn(dtype, PROBE_SHAPES[route])
    if route is torch.conv2d:
        operands[0] = operands[0].contiguous(memory_format=torch.channels_last)
    return replaces(_ROUTES[route], route, operands, AT_MOST)


_ROUTES: Mapping[Callable[..., Tensor], Callable[..., Tensor]] = {
    nn.functional.linear: linear,
    torch.conv2d: convolution,
    _ATTENTION: attention,
}


class _InFloat32(TorchFunctionMode):
    """Redirects linear layers and 2-D convolutions of plain tensors, called as the networks' layers call them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.linear and len(args) == 3 and not kwargs and may_widen(func, *args):
            return linear(*args)
        if func is torch.conv2d and _is_usual(args, kwargs) and may_widen(func, *args[:3]):
            return convolution(*args[:6], **{key: value for key, value in kwargs.items() if key != "groups"})
        return func(*args, **kwargs)


def _is_usual(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a convolution has batched images, one group and numeric padding, with images, weight and bias passed by
    position."""
    groups = args[6] if len(args) == 7 else kwargs.get("groups", 1)
    padding = args[4] if len(args) > 4 else kwargs.get("padding", 0)
    return len(args) >= 3 and args[0].ndim == 4 and groups == 1 and not isinstance(padding, str)


IN_FLOAT32 = _InFloat32()
