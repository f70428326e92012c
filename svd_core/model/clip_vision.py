"""OpenCLIP's ViT image encoder: a picture to the one vector that the UNet attends to (spec 3).

Attribute names are the official parameter names after `visual.`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import CLIPVisionConfig
from ..errors import InputError
from .backend import TORCH, AttentionFn, Backend
from .cpu.route import by_chosen_route
from .layout import to_tokens

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MIN_BLUR = 0.001
"""Smallest standard deviation of the blur, in pixels; its kernel is a single 1, so it changes nothing."""


class Attention(nn.Module):
    """Self-attention with query, key and value in one projection, in OpenCLIP's parameter layout."""

    def __init__(self, width: int, heads: int, *, backend: Backend) -> None:
        super().__init__()
        self.heads = heads
        self.attention: AttentionFn = backend.attention
        self.in_proj_weight = backend.parameter(3 * width, width)
        self.in_proj_bias = backend.parameter(3 * width)
        self.out_proj = backend.linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens, width) -> the same shape."""
        # A host's layers do not cast bare parameters, so they are cast to the tokens' dtype and device here.
        with by_chosen_route(tokens):
            projected = nn.functional.linear(tokens, self.in_proj_weight.to(tokens), self.in_proj_bias.to(tokens))
        q, k, v = rearrange(projected, "n l (three h d) -> three n h l d", three=3, h=self.heads)
        return self.out_proj(rearrange(self.attention(q, k, v), "n h l d -> n l (h d)"))


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each on the normalised tokens."""

    def __init__(self, config: CLIPVisionConfig, *, backend: Backend) -> None:
        super().__init__()
        self.ln_1 = backend.layer_norm(config.width)
        self.attn = Attention(config.width, config.width // config.head_channels, backend=backend)
        self.ln_2 = backend.layer_norm(config.width)
        layers = {
            "c_fc": backend.linear(config.width, config.mlp_width),
            "gelu": nn.GELU(),
            "c_proj": backend.linear(config.mlp_width, config.width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens, width) -> the same shape."""
        tokens = tokens + self.attn(self.ln_1(tokens))
        return tokens + self.mlp(self.ln_2(tokens))


class Transformer(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: CLIPVisionConfig, *, backend: Backend) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(config, backend=backend) for _ in range(config.layers)))

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, tokens, width) -> the same shape."""
        return self.resblocks(tokens)


class CLIPVision(nn.Module):
    """ViT image encoder; `encode` takes a picture of any size, calling the module takes a prepared square."""

    def __init__(self, config: CLIPVisionConfig, *, backend: Backend = TORCH) -> None:
        super().__init__()
        self.config = config
        tokens = (config.image_size // config.patch) ** 2 + 1
        self.conv1 = backend.conv(3, config.width, config.patch, stride=config.patch, padding=0, bias=False)
        self.class_embedding = backend.parameter(config.width)
        self.positional_embedding = backend.parameter(tokens, config.width)
        self.ln_pre = backend.layer_norm(config.width)
        self.transformer = Transformer(config, backend=backend)
        self.ln_post = backend.layer_norm(config.width)
        self.proj = backend.parameter(config.width, config.output_dim)

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (n, 3, H, W) in [-1, 1], any H and W -> (n, D), not normalised. Computes in the dtype of `proj`."""
        return self(preprocess(pixels, self.config.image_size).to(self.proj.dtype))

    def forward(self, prepared: Tensor) -> Tensor:
        """prepared (n, 3, S, S) as `preprocess` returns it -> (n, D)."""
        patches = to_tokens(self.conv1(prepared))
        cls = self.class_embedding.to(patches).expand(len(patches), 1, -1)
        tokens = torch.cat([cls, patches], dim=1) + self.positional_embedding.to(patches)
        tokens = self.transformer(self.ln_pre(tokens))
        return self.ln_post(tokens[:, 0]) @ self.proj.to(tokens)


def preprocess(pixels: Tensor, size: int) -> Tensor:
    """Blur, squash to a square and normalise as the reference does: no crop, no clamp, aspect not kept (spec 3).

    pixels (n, 3, H, W) in [-1, 1], H and W at least 1 -> (n, 3, size, size) in float32, CLIP's mean 0 and deviation 1.
    Raises InputError for any other shape.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape:
        shape = tuple(pixels.shape)
        raise InputError(
            f"the image encoder got pixels of shape {shape}; it needs (n, 3, H, W): pass RGB, channels first"
        )
    blurred = _blur(_blur(pixels.float(), -1, size), -2, size)
    square = nn.functional.interpolate(blurred, (size, size), mode="bicubic", align_corners=True)
    mean = square.new_tensor(CLIP_MEAN)[:, None, None]
    std = square.new_tensor(CLIP_STD)[:, None, None]
    return ((square + 1) / 2 - mean) / std


def _blur(images: Tensor, axis: int, size: int) -> Tensor:
    """Gaussian blur along one axis that is about to shrink to `size`, edges reflected.

    An axis that does not shrink would get the smallest blur, which has no effect, so it is skipped; that also avoids
    pictures too small for reflection. Summing shifted copies keeps float32, while a convolution might run in TF32.
    """
    length = images.shape[axis]
    if length <= size:
        return images
    weights = _gaussian(max((length / size - 1) / 2, MIN_BLUR))
    reach = len(weights) // 2
    pad = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
    padded = nn.functional.pad(images, pad, mode="reflect")
    return sum(weight * padded.narrow(axis, shift, length) for shift, weight in enumerate(weights))


def _gaussian(sigma: float) -> list[float]:
    """A Gaussian kernel with an odd number of taps, at least 3, that sums to 1."""
    taps = int(max(4 * sigma, 3)) | 1
    offsets = torch.arange(taps, dtype=torch.float32, device="cpu") - taps // 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    return (kernel / kernel.sum()).tolist()
