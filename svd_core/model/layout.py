"""Views of one activation. Every layer reads the same memory, channels last: (b t) (h w) c.

The networks pass images (N, C, H, W) in `torch.channels_last` memory format, N = B * T frame-major. Tokens and clips
are then views of it, and no layer has to copy. For other memory formats the functions are still correct but copy.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ..kernels import needs_gradient


def to_tokens(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H*W, C)."""
    return rearrange(images, "n c h w -> n (h w) c")


def to_images(tokens: Tensor, height: int) -> Tensor:
    """(N, H*W, C) -> (N, C, H, W), channels last."""
    return rearrange(tokens, "n (h w) c -> n c h w", h=height)


def to_clips(images: Tensor, num_frames: int) -> Tensor:
    """(N, C, H, W) -> (B, C, T, H*W), channels last: what a convolution or normalisation across frames reads.

    The channel axis must be moved in the last step. Torch infers the layout from the strides of every axis, even a
    batch axis of size 1; in another order, that stride makes convolutions take the clip for channels first and
    transpose it."""
    tokens = rearrange(images, "(b t) c h w -> b t (h w) c", t=num_frames)
    return tokens.movedim(-1, 1)


def from_clips(clips: Tensor, height: int) -> Tensor:
    """(B, C, T, H*W) -> (N, C, H, W), channels last."""
    return rearrange(clips, "b c t (h w) -> (b t) c h w", h=height)


def laid_out(weight: Tensor, *, planes: bool = False) -> Tensor:
    """A convolution's weight (O, C, ...) in the memory format that libraries need for channels-last activations;
    otherwise they reorder it in every call. Weights across frames are unchanged on a CUDA device, whose kernel reorders
    them itself. planes: the weight is the autoencoder's, whose wide float32 convolutions run channels first on a CPU
    (`decode.convolving.convolved`) and so keep their weights. Values and shape never change. Class: exact."""
    on_cpu = weight.is_cpu and not (planes and weight.dtype == torch.float32)
    if weight.ndim == 4 and weight.shape[-1] > 1 and (weight.is_cuda or on_cpu):
        return weight.contiguous(memory_format=torch.channels_last)
    if weight.ndim == 5 and on_cpu:
        return weight.contiguous(memory_format=torch.channels_last_3d)
    return weight


# Sums that reuse the memory of an operand nobody else holds. An operand that needs a gradient gets new memory.


def joined(other: Tensor, fresh: Tensor) -> Tensor:
    """other + fresh, reusing the memory of `fresh`, a temporary of the caller. Class: exact."""
    if needs_gradient(other, fresh) or other.dtype != fresh.dtype:
        return other + fresh
    return fresh.add_(other)


def blended(fresh: Tensor, change: Tensor, share: Tensor) -> Tensor:
    """fresh + share * change, reusing the memory of `fresh` as `joined` does."""
    if needs_gradient(fresh, change, share) or change.dtype != fresh.dtype:
        return torch.addcmul(fresh, change, share)
    return fresh.addcmul_(change, share)
