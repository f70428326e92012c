"""The autoencoder's networks: the encoder, and the decoders of single frames and of clips (spec 2)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ..config import VAEConfig
from ..decode.frames import Convolution, InsideFrame
from ..decode.stream import Stage, TimeConvolution, over_frames
from .backend import TORCH, Backend
from .fused import short_of_bias
from .layout import from_clips, to_clips
from .vae_blocks import (
    SPATIAL_EPS,
    BlockType,
    Downsample,
    Level,
    Middle,
    ResnetBlock,
    Upsample,
    VideoBlock,
    norm_silu,
    through,
)

PIXEL_CHANNELS = 3


class Encoder(nn.Module):
    """Pixels to the moments of the latent's posterior (spec 2.1)."""

    def __init__(self, config: VAEConfig, *, backend: Backend = TORCH) -> None:
        super().__init__()
        widths = config.level_channels
        self.short = partial(short_of_bias, backend.weights)
        self.conv_in = backend.conv(PIXEL_CHANNELS, config.channels)
        self.down = nn.ModuleList()
        for inputs, outputs in zip((config.channels, *widths), widths, strict=False):
            level = Level(inputs, outputs, config.res_blocks, ResnetBlock, backend=backend)
            if len(self.down) < len(widths) - 1:
                level.downsample = Downsample(outputs, backend=backend)
            self.down.append(level)
        self.mid = Middle(widths[-1], ResnetBlock, backend=backend)
        self.norm_out = backend.group_norm(widths[-1], eps=SPATIAL_EPS)
        self.conv_out = backend.conv(widths[-1], 2 * config.latent_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, H, W) in [-1, 1] -> (N, 2 * 4, H/8, W/8): mean, then log-variance."""
        images = through(self.layers(), _channels_last(pixels))
        return self.conv_out(norm_silu(self.norm_out, images))

    def layers(self) -> Iterator[nn.Module]:
        yield self.conv_in
        for level in self.down:
            yield from level.layers()
        yield from self.mid.layers()

    def in_bands(self, size: int) -> list[InsideFrame]:
        """The same computation in bands of up to `size` bytes, for when memory cannot hold several copies of the
        activations."""
        first, *others = self.layers()
        return [
            Convolution(first, size, short=self.short),
            *(layer.in_bands(size) for layer in others),
            Convolution(self.conv_out, size, self.norm_out, self.short),
        ]


class Decoder(nn.Module):
    """Base of both decoders: everything but what happens across frames."""

    def __init__(self, config: VAEConfig, block: BlockType, *, backend: Backend) -> None:
        super().__init__()
        widths = config.level_channels
        self.short = partial(short_of_bias, backend.weights)
        self.conv_in = backend.conv(config.latent_channels, widths[-1])
        self.mid = Middle(widths[-1], block, backend=backend)
        self.up = nn.ModuleList()
        for inputs, outputs in zip((*widths[1:], widths[-1]), widths, strict=True):
            level = Level(inputs, outputs, config.res_blocks + 1, block, backend=backend)
            if len(self.up) > 0:
                level.upsample = Upsample(outputs, backend=backend)
            self.up.append(level)
        self.norm_out = backend.group_norm(widths[0], eps=SPATIAL_EPS)
        self.conv_out = backend.conv(widths[0], PIXEL_CHANNELS)

    def layers(self) -> Iterator[nn.Module]:
        """The layers from the latent to the last residual block, in execution order."""
        yield self.conv_in
        yield from self.mid.layers()
        for level in reversed(self.up):
            yield from level.layers()

    def head(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 3, H, W), inside each frame."""
        return self.conv_out(norm_silu(self.norm_out, images))

    def stages(self, size: int, circular: bool = False) -> list[Stage]:
        """The same computation as stages: layers inside a frame, then at most one across frames, in bands and strips of
        up to `size` bytes. circular: the clip loops, so its last and first frames are neighbours."""
        first, *others = self.layers()
        stages, inside = [], [Convolution(first, size, short=self.short)]
        for layer in others:
            inside.append(layer.in_bands(size))
            if isinstance(layer, VideoBlock):
                stages.append(Stage(tuple(inside), layer.across_frames(size, circular)))
                inside = []
        inside.append(Convolution(self.conv_out, size, self.norm_out, self.short))
        return [*stages, Stage(tuple(inside), self.last_across_frames(size, circular))]

    def last_across_frames(self, size: int, circular: bool) -> TimeConvolution | None:
        """The layer across frames that follows the head, if any."""
        return None


class ImageDecoder(Decoder):
    """Decodes each frame by itself, as in the `*_image_decoder` files (spec 2.4)."""

    def __init__(self, config: VAEConfig, *, backend: Backend = TORCH) -> None:
        super().__init__(config, ResnetBlock, backend=backend)

    def forward(self, z: Tensor, num_frames: int = 1, circular: bool = False) -> Tensor:
        """z (N, 4, h, w) -> (N, 3, 8h, 8w) in about [-1, 1]; `num_frames` and `circular` are ignored."""
        return self.head(through(self.layers(), _channels_last(z)))


class TemporalDecoder(Decoder):
    """Decodes frames together: each residual block is followed by convolutions across the clip (spec 2.2)."""

    def __init__(self, config: VAEConfig, *, backend: Backend = TORCH) -> None:
        super().__init__(config, VideoBlock, backend=backend)
        # Official key conv_out.time_mix_conv: a child of the convolution that it follows.
        self.conv_out.time_mix_conv = backend.frame_conv(PIXEL_CHANNELS, PIXEL_CHANNELS)

    def forward(self, z: Tensor, num_frames: int, circular: bool = False) -> Tensor:
        """z (N, 4, h, w), N = B * num_frames -> (N, 3, 8h, 8w) in about [-1, 1]. Holds several copies of the clip's
        activations.

        This is the reference expression; `decode.stream` computes the same in little memory.
        """
        images = _channels_last(z)
        for layer in self.layers():
            images = layer(images, num_frames, circular) if isinstance(layer, VideoBlock) else layer(images)
        pixels = self.head(images)
        mixed = over_frames(self.conv_out.time_mix_conv, to_clips(pixels, num_frames), circular)
        return from_clips(mixed, pixels.shape[-2])

    def last_across_frames(self, size: int, circular: bool) -> TimeConvolution:
        return TimeConvolution(self.conv_out.time_mix_conv, size, circular)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
