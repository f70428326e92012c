"""The autoencoder's layers: residual blocks inside a frame and across frames, attention, resizing (spec 2.1, 2.2).

Activations are images (N, C, H, W) in channels-last memory, N = B * T frame-major; the layers across frames read them
as clips (B, C, T, H*W), see `layout.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..decode.blocks import Residual, SelfAttention
from ..decode.frames import Doubling, Halving
from ..decode.stream import TimeResidual, over_frames
from .backend import Backend
from .fused import convolved_by_corner, doubled_convolved, short_of_bias
from .layout import from_clips, to_clips, to_images, to_tokens

SPATIAL_EPS = 1e-6
TEMPORAL_EPS = 1e-5
"""GroupNorm eps inside a frame and across frames (spec 2.1, 2.2)."""


class ConvBlock(nn.Module):
    """Base of both residual blocks; `spatial` is the part inside a frame."""

    def __init__(self, inputs: int, outputs: int, *, backend: Backend) -> None:
        super().__init__()
        self.norm1 = backend.group_norm(inputs, eps=SPATIAL_EPS)
        self.conv1 = backend.conv(inputs, outputs)
        self.norm2 = backend.group_norm(outputs, eps=SPATIAL_EPS)
        self.conv2 = backend.conv(outputs, outputs)
        self.nin_shortcut = nn.Identity() if inputs == outputs else backend.conv(inputs, outputs, 1)
        self.short = partial(short_of_bias, backend.weights)

    def spatial(self, images: Tensor) -> Tensor:
        hidden = self.conv1(norm_silu(self.norm1, images))
        hidden = self.conv2(norm_silu(self.norm2, hidden))
        return self.nin_shortcut(images) + hidden

    def in_bands(self, size: int) -> Residual:
        """`spatial` in bands of up to `size` bytes, for when memory cannot hold several copies of the frame."""
        return Residual(self.norm1, self.conv1, self.norm2, self.conv2, self.nin_shortcut, size, short=self.short)


class ResnetBlock(ConvBlock):
    """The residual block of the encoder and of the image decoder."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        return self.spatial(images)


class TimeStack(nn.Module):
    """Two (3,1,1) convolutions, each after a GroupNorm over the whole clip (spec 2.2)."""

    def __init__(self, channels: int, *, backend: Backend) -> None:
        super().__init__()
        norms = [backend.group_norm(channels, eps=TEMPORAL_EPS) for _ in range(2)]
        convs = [backend.frame_conv(channels, channels) for _ in range(2)]
        self.in_layers = nn.Sequential(norms[0], nn.SiLU(inplace=True), convs[0])
        # The identity stands in for training's dropout, so that the convolution keeps its official index 3.
        self.out_layers = nn.Sequential(norms[1], nn.SiLU(inplace=True), nn.Identity(), convs[1])

    def forward(self, clips: Tensor, circular: bool = False) -> Tensor:
        """(B, C, T, H*W) -> the same shape, the residual branch alone; `circular` as in `decode.stream.over_frames`."""
        for *before, conv in (self.in_layers, self.out_layers):
            clips = over_frames(conv, through(before, clips), circular)
        return clips


class VideoBlock(ConvBlock):
    """A residual block inside each frame, then one across frames: y + alpha * h, alpha = sigmoid(mix_factor).

    The reference blends alpha * (y + h) + (1 - alpha) * y, which is equal but takes more steps (spec 11e).
    """

    def __init__(self, inputs: int, outputs: int, *, backend: Backend) -> None:
        super().__init__(inputs, outputs, backend=backend)
        self.time_stack = TimeStack(outputs, backend=backend)
        self.mix_factor = backend.parameter(1)

    def forward(self, images: Tensor, num_frames: int, circular: bool = False) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W), N = B * num_frames."""
        images = self.spatial(images)
        hidden = from_clips(self.time_stack(to_clips(images, num_frames), circular), images.shape[-2])
        return torch.addcmul(images, hidden, self.alpha.to(images))

    @property
    def alpha(self) -> Tensor:
        """The share of the temporal path, (1,) in float32."""
        return self.mix_factor.float().sigmoid()

    def across_frames(self, size: int, circular: bool = False) -> TimeResidual:
        """The temporal path in strips of up to `size` bytes, for when memory cannot hold several copies of the clip."""
        norm1, _, conv1 = self.time_stack.in_layers
        norm2, _, _, conv2 = self.time_stack.out_layers
        return TimeResidual(norm1, conv1, norm2, conv2, self.alpha, size, circular)


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels of a frame."""

    def __init__(self, channels: int, *, backend: Backend) -> None:
        super().__init__()
        self.attention = backend.attention
        self.norm = backend.group_norm(channels, eps=SPATIAL_EPS)
        self.q = backend.conv(channels, channels, 1)
        self.k = backend.conv(channels, channels, 1)
        self.v = backend.conv(channels, channels, 1)
        self.proj_out = backend.conv(channels, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        normed = self.norm(images)
        q, k, v = (to_tokens(project(normed))[:, None] for project in (self.q, self.k, self.v))
        attended = to_images(self.attention(q, k, v)[:, 0], images.shape[-2])
        return images + self.proj_out(attended)

    def in_bands(self, size: int) -> SelfAttention:
        return SelfAttention(self.norm, self.q, self.k, self.v, self.proj_out, self.attention, size)


class Downsample(nn.Module):
    """Halves the picture. Pads right and bottom only, as the reference does (spec 2.1)."""

    def __init__(self, channels: int, *, backend: Backend) -> None:
        super().__init__()
        self.conv = backend.conv(channels, channels, stride=2, padding=0)
        self.short = partial(short_of_bias, backend.weights)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H // 2, W // 2)."""
        return self.conv(nn.functional.pad(images, (0, 1, 0, 1)))

    def in_bands(self, size: int) -> Halving:
        return Halving(self.conv, size, self.short)


class Upsample(nn.Module):
    """Doubles the picture by repeating pixels, then smooths it with a convolution."""

    def __init__(self, channels: int, *, backend: Backend) -> None:
        super().__init__()
        self.conv = backend.conv(channels, channels)
        self.weights = backend.weights

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2H, 2W)."""
        return doubled_convolved(self.weights, self.conv, images)

    def in_bands(self, size: int) -> Doubling:
        by_corner, short = (partial(run, self.weights) for run in (convolved_by_corner, short_of_bias))
        return Doubling(self.conv, size, by_corner, short)


BlockType = type[ResnetBlock] | type[VideoBlock]


class Middle(nn.Module):
    """Block, attention, block at the coarsest level."""

    def __init__(self, channels: int, block: BlockType, *, backend: Backend) -> None:
        super().__init__()
        self.block_1 = block(channels, channels, backend=backend)
        self.attn_1 = AttnBlock(channels, backend=backend)
        self.block_2 = block(channels, channels, backend=backend)

    def layers(self) -> Sequence[nn.Module]:
        return self.block_1, self.attn_1, self.block_2


class Level(nn.Module):
    """The residual blocks of one resolution; the first changes the channels. A `downsample` or `upsample` may be added
    after them."""

    def __init__(self, inputs: int, outputs: int, blocks: int, block: BlockType, *, backend: Backend) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(block(*pair, backend=backend) for pair in pairwise(widths))

    def layers(self) -> Iterator[nn.Module]:
        blocks, *resize = self.children()
        yield from blocks
        yield from resize


def norm_silu(norm: nn.Module, images: Tensor) -> Tensor:
    return nn.functional.silu(norm(images), inplace=True)


def through(layers: Iterable[Callable[[Tensor], Tensor]], images: Tensor) -> Tensor:
    return reduce(lambda value, layer: layer(value), layers, images)
