"""Choice of the attention kernel: torch's own in the order that suits the device, or one requested by name."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import InputError
from ..settings import AttentionName

AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v) -> out, each (batch, heads, tokens, head width), unmasked, scaled by head width ** -0.5."""

FramesFn = Callable[[Tensor, Tensor, Tensor, int, AttentionFn], Tensor]
"""(q, k, v, heads, attention) -> out, each (B, T, S, C): attention along the frames of each pixel."""

HOPPER = (9, 0)

SHORTEST = 128
"""Token count below which a kernel requested by name leaves the work to torch: it gains nothing there, and eight-bit
sums along the frames of a pixel are reported to flicker (ComfyUI-KJNodes issue 629)."""

_PACKAGES = {"sage": ("sageattention", "sageattention"), "flash3": ("flash_attn_interface", "FlashAttention 3")}
_WIDTHS = (64, 96, 128)


def preferred(device: torch.device) -> AbstractContextManager[None]:
    """Context in which torch's attention tries cuDNN first on Hopper and flash first elsewhere, then more general
    kernels; never one that the user has disabled. cuDNN took two thirds of flash's time on an H200. Before 2.6, torch
    takes no order and keeps its own. Class: rounding."""
    if device.type != "cuda" or torch.version.hip or torch.compiler.is_compiling() or not _takes_order():
        return nullcontext()
    return sdpa_kernel(order(torch.cuda.get_device_capability(device)), set_priority=True)


@cache
def _takes_order() -> bool:
    return "set_priority" in inspect.signature(sdpa_kernel).parameters


def order(capability: tuple[int, int]) -> list[SDPBackend]:
    """The enabled attention backends, best first."""
    flags = torch.backends.cuda
    cudnn = (SDPBackend.CUDNN_ATTENTION, flags.cudnn_sdp_enabled())
    flash = (SDPBackend.FLASH_ATTENTION, flags.flash_sdp_enabled())
    general = (SDPBackend.EFFICIENT_ATTENTION, flags.mem_efficient_sdp_enabled())
    first = (cudnn, flash) if capability == HOPPER else (flash, cudnn)
    found = [backend for backend, enabled in (*first, general) if enabled]
    # Without the math backend, a head of width 512, as in the autoencoder, may find no kernel at all.
    return [*found, SDPBackend.MATH]


def attention_named(name: AttentionName, usual: AttentionFn) -> AttentionFn:
    """`usual` for "auto"; SageAttention for "sage", class: quantised (8-bit scores); FlashAttention 3 for "flash3",
    class: rounding. Both handle 16-bit tensors on a CUDA device and leave the rest to `usual`.

    Raises InputError if the package is not installed or the name is unknown.
    """
    if name == "auto":
        return usual
    if name not in _PACKAGES:
        raise InputError(f"attention {name!r} is not known: choose auto, {' or '.join(_PACKAGES)}")
    module, package = _PACKAGES[name]
    if importlib.util.find_spec(module) is None:
        raise InputError(f"attention {name} needs the package {package}, which is not installed: choose auto")
    return _long(_sage if name == "sage" else _flash3, usual)


def _long(special: AttentionFn, usual: AttentionFn) -> AttentionFn:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        fits = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] in _WIDTHS
        return (special if fits and min(q.shape[2], k.shape[2]) >= SHORTEST else usual)(q, k, v)

    return attend


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _sage_function()(q, k, v, tensor_layout="HND", is_causal=False)


def _flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention 3, whose layout is (batch, tokens, heads, width); older releases also return the scores'
    normaliser."""
    result = _flash3_function()(*(part.transpose(1, 2) for part in (q, k, v)))
    return (result if isinstance(result, Tensor) else result[0]).transpose(1, 2)


@cache
def _sage_function() -> Callable[..., Tensor]:
    from sageattention import sageattn

    return sageattn


@cache
def _flash3_function() -> Callable[..., Tensor | tuple[Tensor, ...]]:
    from flash_attn_interface import flash_attn_func

    return flash_attn_func
