"""The f8 autoencoder: picture -> latent, and latents -> frames through a decoder that sees across frames (spec 2).

Attribute names are the official parameter names. Activations are images (N, C, H, W) in channels-last memory,
N = B * T frame-major; the layers across frames read them as clips (B, C, T, H*W), see `layout.py`.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..config import PIXELS_PER_LATENT, VAEConfig
from ..decode.frames import Convolution, Doubling, Halving, InsideFrame, Residual, SelfAttention
from ..decode.pictures import EncodePlan, choose_encode, encode_modes, encode_plan, run_encode
from ..decode.places import MODES, Mode, band_bytes
from ..decode.plan import DecodePlan, choose_decode, decode_plan
from ..decode.rescue import rescued
from ..decode.run import run_plan
from ..decode.stream import Stage, TimeConvolution, TimeResidual, over_frames
from ..device_memory import has_own_memory
from ..errors import InputError
from ..settings import is_whole
from .backend import TORCH, Backend
from .fused import convolved_by_corner, doubled_convolved, short_of_bias
from .layout import from_clips, to_clips, to_images, to_tokens

SPATIAL_EPS = 1e-6
TEMPORAL_EPS = 1e-5
"""GroupNorm eps inside a frame and across frames (spec 2.1, 2.2)."""

PIXEL_CHANNELS = 3


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
        hidden = self.conv1(_norm_silu(self.norm1, images))
        hidden = self.conv2(_norm_silu(self.norm2, hidden))
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
            clips = over_frames(conv, _run(before, clips), circular)
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
        images = _run(self.layers(), _channels_last(pixels))
        return self.conv_out(_norm_silu(self.norm_out, images))

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
        return self.conv_out(_norm_silu(self.norm_out, images))

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
        return self.head(_run(self.layers(), _channels_last(z)))


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


class VideoVAE(nn.Module):
    """Encoder and decoder with the 1x1 convolutions that some files put between them and the latent."""

    def __init__(self, config: VAEConfig, *, backend: Backend = TORCH) -> None:
        super().__init__()
        self.config, self.backend = config, backend
        self.encoder = Encoder(config, backend=backend)
        self.decoder = (TemporalDecoder if config.temporal else ImageDecoder)(config, backend=backend)
        if config.encoder_quant:
            self.quant_conv = backend.conv(2 * config.latent_channels, 2 * config.latent_channels, 1)
        if config.decoder_quant:
            self.post_quant_conv = backend.conv(config.latent_channels, config.latent_channels, 1)

    def encode(self, pixels: Tensor, *, budget: int | None = None, mode: Mode | None = None) -> Tensor:
        """Encode pixels (n, 3, H, W) in [-1, 1] -> (n, 4, H/8, W/8) on their device: the posterior's mean, unscaled.

        Pictures are encoded one by one in bands; small ones go through the plain encoder, several at once. `budget` is
        the bytes of device memory available in addition to the weights and the pixels, and selects the mode; `mode`
        says what the device holds (`decode.pictures.EncodePlan`). Neither changes a bit of the result. Gradients are
        recorded only if torch records them and neither is given; every picture then goes through the plain encoder and
        keeps its activations.

        Raises InputError unless H and W are multiples of 8, or if the budget is below 1 or too small.
        """
        _check_tensor(pixels, "the encoder", "pixels")
        _check_pixels(pixels.shape)
        if budget is None and mode is None and self._encoding_is_recorded(pixels):
            return self._encode_plain(pixels)
        plan = self.encode_plan(pixels.shape, pixels.device, budget=budget, mode=mode)
        dtype = self.backend.fit(pixels[:0], self.encoder.conv_in.weight).dtype
        height, width = (side // PIXELS_PER_LATENT for side in pixels.shape[2:])
        latents = pixels.new_empty((len(pixels), self.config.latent_channels, height, width), dtype=dtype)
        with torch.no_grad():
            for part, out in zip(*(each.split(plan.together or 1) for each in (pixels, latents)), strict=True):
                out.copy_(self._encode_plain(part) if plan.together else self._encode_in_bands(part, dtype, plan))
        return latents

    def _encode_plain(self, pixels: Tensor) -> Tensor:
        """The reference expression, which the banded form equals up to rounding and is tested against."""
        return self._mean(self.encoder(self.backend.fit(pixels, self.encoder.conv_in.weight)))

    def _encode_in_bands(self, picture: Tensor, dtype: torch.dtype, plan: EncodePlan) -> Tensor:
        return self._mean(run_encode(self.encoder.in_bands(band_bytes(picture.device)), picture, dtype, plan))

    def _mean(self, moments: Tensor) -> Tensor:
        moments = self.quant_conv(moments) if self.config.encoder_quant else moments
        return moments[:, : self.config.latent_channels]

    def _encoding_is_recorded(self, pixels: Tensor) -> bool:
        weights = (weight for name, weight in self.named_parameters() if name.startswith(("encoder.", "quant_conv.")))
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (pixels, *weights))

    def encode_plan(
        self,
        shape: Sequence[int],
        device: torch.device,
        *,
        budget: int | None = None,
        mode: Mode | None = None,
    ) -> EncodePlan:
        """How `encode` runs pixels of a shape (n, 3, H, W) on a device without gradients, and in how much memory.

        Without a budget or mode, the fastest plan. Raises InputError as `encode` does.
        """
        _check_pixels(shape)
        _check_positive(budget, "budget", "bytes")
        if mode not in (None, *MODES):
            raise InputError(f"encode mode {mode!r} is not known: choose one of {', '.join(MODES)}")
        layers, itemsize = self.encoder.in_bands(band_bytes(device)), self.encoder.conv_in.weight.element_size()
        if budget is None:
            return encode_plan(layers, tuple(shape), itemsize, mode or "device")
        return choose_encode(layers, tuple(shape), itemsize, budget, own_memory=has_own_memory(device), mode=mode)

    def least_encode_plan(self, shape: Sequence[int], device: torch.device) -> EncodePlan:
        """The `encode_plan` that takes the least device memory."""
        plans = (self.encode_plan(shape, device, mode=mode) for mode in encode_modes(has_own_memory(device)))
        return min(plans, key=lambda plan: plan.device_bytes)

    def decode(
        self,
        z: Tensor,
        num_frames: int | None = None,
        chunk: int | None = None,
        budget: int | None = None,
        mode: Mode | None = None,
        circular: bool = False,
    ) -> Tensor:
        """Decode z (N, 4, h, w), unscaled, whole clips of `num_frames` frame-major -> (N, 3, 8h, 8w) in about [-1, 1],
        unclamped. Without `num_frames`, all N are one clip.

        Decoding is streamed; `chunk`, `budget` and `mode` never change a bit of the result. `chunk` is how many frames'
        worth of intermediate results may be kept (at least one; by default as many as the others allow), `budget` the
        bytes of device memory available in addition to the weights, which determines the rest, and `mode` what the
        device holds (`decode.places.Mode`). `circular` decodes a loop: convolutions across frames see the other end of
        the clip instead of zeros. Pixels are on z's device if the clip fitted there, else in host memory. Frames that
        overflow 16 bits are decoded again in float32, with a PrecisionWarning. Records no gradients. Raises InputError
        if N is not a whole number of clips, a number is below 1 or the budget is too small.
        """
        _check_tensor(z, "the decoder", "latents")
        num_frames = z.shape[0] if num_frames is None and z.ndim else num_frames
        plan = self.decode_plan(z.shape, num_frames, z.device, chunk, budget, mode, circular)
        clips = self._latents(z, num_frames).split(operator.index(num_frames))
        return torch.cat([self._decode_clip(clip, plan, budget, circular) for clip in clips])

    def _decode_clip(self, latents: Tensor, plan: DecodePlan, budget: int | None, circular: bool) -> Tensor:
        """Decode one clip's latents (T, 4, h, w), already through `post_quant_conv`."""
        size = band_bytes(latents.device)
        pixels = run_plan(self.decoder.stages(size, circular), latents, plan)

        def precise(latents: Tensor) -> Tensor:
            stages = copy.deepcopy(self.decoder).float().stages(size, circular)
            shape, own = tuple(latents.shape), has_own_memory(latents.device)
            if budget is None:
                return run_plan(stages, latents, decode_plan(stages, shape, 4, plan.mode, 1))
            return run_plan(stages, latents, choose_decode(stages, shape, 4, budget, own_memory=own))

        return rescued(pixels, latents, precise, together=self.config.temporal)

    def decode_plan(
        self,
        shape: Sequence[int],
        num_frames: int,
        device: torch.device,
        chunk: int | None = None,
        budget: int | None = None,
        mode: Mode | None = None,
        circular: bool = False,
    ) -> DecodePlan:
        """How `decode` runs latents of a shape (N, 4, h, w) on a device, and in how much memory. Raises InputError as
        `decode` does."""
        _check_latents(shape, num_frames, self.config.latent_channels)
        _check_positive(chunk, "chunk", "frames")
        _check_positive(budget, "budget", "bytes")
        itemsize = self.decoder.conv_in.weight.element_size()
        stages = self.decoder.stages(band_bytes(device), circular)
        num_frames = operator.index(num_frames)  # NumPy's integers are not torch's
        clip = (num_frames, *shape[1:])
        if budget is None:
            mode = mode or "device"
            most = num_frames if mode == "device" else 1
            return decode_plan(stages, clip, itemsize, mode, min(chunk or most, num_frames))
        own = has_own_memory(device)
        return choose_decode(stages, clip, itemsize, budget, own_memory=own, keep=chunk, mode=mode)

    def least_plan(
        self, shape: Sequence[int], num_frames: int, device: torch.device, circular: bool = False
    ) -> DecodePlan:
        """The `decode_plan` that takes the least device memory."""
        mode = "bands" if has_own_memory(device) else "device"
        return self.decode_plan(shape, num_frames, device, chunk=1, mode=mode, circular=circular)

    def decode_whole(self, z: Tensor, num_frames: int, circular: bool = False) -> Tensor:
        """`decode` as in the reference, each layer on all frames at once: for training, which needs gradients, and to
        test the streamed form, which equals it up to rounding."""
        return self.decoder(self._latents(z, num_frames), operator.index(num_frames), circular)

    def _latents(self, z: Tensor, num_frames: int) -> Tensor:
        _check_latents(z.shape, num_frames, self.config.latent_channels)
        z = self.backend.fit(z, self.decoder.conv_in.weight)
        return self.post_quant_conv(z) if self.config.decoder_quant else z


def _norm_silu(norm: nn.Module, images: Tensor) -> Tensor:
    return nn.functional.silu(norm(images), inplace=True)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _run(layers: Iterable[Callable[[Tensor], Tensor]], images: Tensor) -> Tensor:
    return reduce(lambda value, layer: layer(value), layers, images)


def _check_tensor(given: Tensor, network: str, name: str) -> None:
    if not isinstance(given, Tensor):
        raise InputError(f"{network} got {name} of class {type(given).__name__}; it needs a tensor: torch.as_tensor")


def _check_pixels(shape: Sequence[int]) -> None:
    shape = tuple(shape)
    if len(shape) != 4 or shape[1] != PIXEL_CHANNELS or 0 in shape:
        raise InputError(f"the encoder got pixels of shape {shape}; it needs (n, 3, H, W): pass RGB, channels first")
    height, width = shape[2:]
    if height % PIXELS_PER_LATENT or width % PIXELS_PER_LATENT:
        raise InputError(
            f"the encoder got a picture of {height}x{width} (height x width); both must be multiples of "
            f"{PIXELS_PER_LATENT}: crop, pad or resize it first"
        )


def _check_latents(shape: Sequence[int], num_frames: int, channels: int) -> None:
    shape = tuple(shape)
    if len(shape) != 4 or shape[1] != channels or 0 in shape:
        raise InputError(
            f"the decoder got latents of shape {shape}; it needs (N, {channels}, h, w), none of them 0: "
            "join clips and frames in the first axis, frame by frame"
        )
    if not is_whole(num_frames) or num_frames < 1 or shape[0] % num_frames:
        raise InputError(
            f"the decoder got {shape[0]} latents for clips of {num_frames} frames; it needs whole clips: "
            f"pass a num_frames of at least 1 that divides {shape[0]}"
        )


def _check_positive(value: int | None, name: str, unit: str) -> None:
    if value is not None and value < 1:
        raise InputError(f"{name} is {value}; it needs at least 1 ({unit}): pass a larger number or leave it out")
