"""Products of 16-bit numbers that a CPU computes in float32, where its own take longer.

Few CPUs multiply 16-bit numbers faster than float32 ones. On the others torch's products of them take up to eight times
as long, so operands are widened, a part at a time, and a result is rounded once: a network of half the memory that is
hardly slower than in float32. Class: rounding, with no more of it than torch's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .onednn import by_onednn
from .probe import BLOCK_VALUES, PLAIN, drawn, replaces

logger = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)

PROBE_SHAPES = {
    nn.functional.linear: ((960, 640), (640, 640)),
    torch.conv2d: ((1, 128, 64, 96), (128, 128, 3, 3)),
    nn.functional.scaled_dot_product_attention: ((1, 5, 960, 64), (1, 5, 960, 64), (1, 5, 960, 64)),
}
"""Of the operands: a projection of the released UNet's second level, a convolution of the decoder's finest, attention
within a frame of 320x192."""

FEW_TOKENS = 128

AT_MOST = 0.85
"""Of torch's time, for widening to be taken. Where it pays it takes 0.7 or less, else more than 1, so that a noisy
probe does not change the choice, and with it bits, from one run to the next."""


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` of tokens (..., I) in 16 bits -> (..., O) in 16 bits. Records no gradients."""
    rows = tokens.reshape(-1, tokens.shape[-1])
    result = rows.new_empty(len(rows), len(weight))
    for outputs in _parts(len(weight), weight.shape[1]):
        kernel, own = _widened(weight, bias, outputs)
        for part in _parts(len(rows), max(kernel.shape)):
            result[part, outputs] = _product(rows[part].float(), kernel, own)
    return result.view(*tokens.shape[:-1], len(weight))


def convolution(
    images: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1
) -> Tensor:
    """`torch.conv2d` of images (N, C, H, W) in 16 bits -> (N, O, h, w) in 16 bits, channels last."""
    result = None
    for outputs in _parts(len(weight), weight[0].numel()):
        kernel, own = _widened(weight, bias, outputs)
        for part in _parts(len(images), max(images[0].numel(), len(kernel) * images[0, 0].numel())):
            found = torch.conv2d(images[part].float(), kernel, own, stride, padding, dilation)
            if result is None:
                _, _, height, width = found.shape
                result = images.new_empty(len(images), height, width, len(weight)).movedim(-1, 1)
            result[part, outputs] = found
    return result


def over_frames(clips: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`kernels.frame_conv`: clips (B, C, T, S), weight (O, C, 3, 1, 1) in 16 bits -> (B, O, T, S), channels last.
    Pixels stand alone, so some of them go together where a whole clip would be too much."""
    clip_count, channels, frames, pixels = clips.shape
    result = clips.new_empty(clip_count, frames, pixels, len(weight)).movedim(-1, 1)
    for outputs in _parts(len(weight), weight[0].numel()):
        kernel, own = _widened(weight.squeeze(-1), bias, outputs)
        for part in _parts(pixels, clip_count * frames * max(channels, len(kernel))):
            seen = clips[..., part].float()
            result[:, outputs, :, part] = torch.conv2d(seen, kernel, own, padding=(1, 0))
    return result


def geglu(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`kernels.geglu`'s reference: tokens (..., C), weight (2H, C), bias (2H,) in 16 bits -> (..., H), rounded once in
    place of four times. The caller sees to it that there are not too many tokens."""
    rows, half = tokens.float(), len(weight) // 2
    opened = nn.functional.gelu(_product(rows, *_widened(weight, bias, slice(half, None))))
    value = _product(rows, *_widened(weight, bias, slice(half)))
    return opened.mul_(value).to(tokens.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`: q (N, heads, L, D), k and v (N, heads, M, D) in 16 bits ->
    (N, heads, L, D) in 16 bits, tokens before heads in memory. Few tokens, such as a pixel's in all frames, take longer
    to widen than to attend."""
    rows, heads, length, width = q.shape
    if min(length, k.shape[2]) < FEW_TOKENS:
        return nn.functional.scaled_dot_product_attention(q, k, v)
    result = q.new_empty(rows, length, heads, width).transpose(1, 2)
    for part in _parts(rows, max(q[0].numel(), k[0].numel())):
        operands = (operand[part].float() for operand in (q, k, v))
        result[part] = nn.functional.scaled_dot_product_attention(*operands)
    return result


def _product(rows: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    with by_onednn(rows):
        return nn.functional.linear(rows, kernel, bias)


def _parts(count: int, values: int) -> list[slice]:
    """Equal parts of `count` things of so many values each, of up to BLOCK_VALUES where one does not have more."""
    number = -(-count // max(1, BLOCK_VALUES // values))
    size = -(-count // number)
    return [slice(first, first + size) for first in range(0, count, size)]


def _widened(weight: Tensor, bias: Tensor | None, outputs: slice) -> tuple[Tensor, Tensor | None]:
    return weight[outputs].float(), None if bias is None else bias[outputs].float()


def may_widen(route: Callable[..., Tensor], *operands: Tensor | None) -> bool:
    """Whether one of `_ROUTES` of such operands, the first one `probe.may_replace`, is quicker in float32 here."""
    dtype = operands[0].dtype
    if dtype not in HALF:
        return False
    given = [operand for operand in operands if operand is not None]
    return all(type(part) in PLAIN and part.is_cpu and part.dtype == dtype for part in given) and chosen(route, dtype)


@cache
def chosen(route: Callable[..., Tensor], dtype: torch.dtype) -> bool:
    """Whether such products of such numbers are computed in float32 here; found once in a process, and logged."""
    taken = _probe_agrees(route, dtype)
    logger.info("%s of %s on the CPU: %s", route.__name__, dtype, "in float32" if taken else "torch's own")
    return taken


@torch.inference_mode()
def _probe_agrees(route: Callable[..., Tensor], dtype: torch.dtype) -> bool:
    """Whether widening pays."""
    operands = drawn(dtype, PROBE_SHAPES[route])
    if route is torch.conv2d:
        operands[0] = operands[0].contiguous(memory_format=torch.channels_last)
    return replaces(_ROUTES[route], route, operands, AT_MOST)


_ROUTES: Mapping[Callable[..., Tensor], Callable[..., Tensor]] = {
    nn.functional.linear: linear,
    torch.conv2d: convolution,
    nn.functional.scaled_dot_product_attention: attention,
}


class _InFloat32(TorchFunctionMode):
    """Redirects the `_ROUTES` of plain tensors."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        *given, groups = args if len(args) == 7 else (*args, kwargs.get("groups", 1))
        if func in _ROUTES and groups == 1 and may_widen(func, *given[:3]):
            return _ROUTES[func](*given, **{key: kwargs[key] for key in kwargs if key != "groups"})
        return func(*args, **kwargs)


IN_FLOAT32 = _InFloat32()
