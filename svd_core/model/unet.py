"""The video UNet of Stable Video Diffusion (spec 1): 1,428 tensors under the names of the released files.

    input_blocks   downwards; the output of each is kept as a skip
    middle_block
    output_blocks  upwards; each joins the skip kept last

Shapes: B clips, T frames, N = B * T frame-major, (h, w) the latent's size.
"""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor, nn

from ..config import UNetConfig
from ..errors import InputError
from ..sinusoid import sinusoid
from .backend import TORCH, Backend
from .embedding import embedding_mlp
from .fused import NormActivated, doubled_convolved
from .resblock import VideoResBlock
from .reuse import SHALLOW, FeatureReuse, Kept, thinned
from .step import NO_HOOKS, BlockHooks, StepContext
from .transformer import SpatialVideoTransformer


class Downsample(nn.Module):
    """Halves height and width, rounding up."""

    def __init__(self, channels: int, *, backend: Backend) -> None:
        super().__init__()
        self.op = backend.conv(channels, channels, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.op(images)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to the size of the next skip, so that odd sizes work, then a convolution."""

    def __init__(self, channels: int, *, backend: Backend) -> None:
        super().__init__()
        self.conv = backend.conv(channels, channels)
        self.weights = backend.weights

    def forward(self, images: Tensor, size: torch.Size) -> Tensor:
        height, width = images.shape[-2:]
        if tuple(size) == (2 * height, 2 * width):
            return doubled_convolved(self.weights, self.conv, images)
        return self.conv(nn.functional.interpolate(images, size=size, mode="nearest"))


class Stage(nn.ModuleList):
    """The layers of one numbered block, in order."""

    def forward(self, images: Tensor, step: StepContext, size: torch.Size | None = None) -> Tensor:
        """`size` (H, W) is the output size of an Upsample."""
        for layer in self:
            if isinstance(layer, VideoResBlock | SpatialVideoTransformer):
                images = layer(images, step)
            elif isinstance(layer, Upsample):
                images = layer(images, size)
            else:
                images = layer(images)
        return images


class VideoUNet(nn.Module):
    """Predicts v from a noisy latent, its noise level, the picture's embedding and the micro-conditioning."""

    def __init__(self, config: UNetConfig, *, backend: Backend = TORCH) -> None:
        super().__init__()
        self.config, self.backend = config, backend
        base, emb = config.model_channels, config.embedding_dim
        self.time_embed = embedding_mlp(base, emb, emb, backend)
        self.label_emb = nn.Sequential(embedding_mlp(config.vector_dim, emb, emb, backend))
        layers = _Layers(config, backend)
        self.input_blocks, skips = _input_blocks(config, layers)
        self.middle_block = _middle_block(config, layers)
        self.output_blocks = _output_blocks(config, layers, skips)
        head = (backend.group_norm(base), nn.SiLU(), backend.conv(base, config.out_channels))
        self.out = NormActivated(backend.weights, *head)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        context: Tensor,
        vector: Tensor,
        num_frames: int,
        hooks: BlockHooks = NO_HOOKS,
        reuse: FeatureReuse | None = None,
    ) -> Tensor:
        """x (N, 8, h, w): the scaled noisy latent, then the still's latent; c_noise (N,) = ln(sigma) / 4; context (N,
        L, D), L = 1 in released models; vector (N, V). Returns (N, 4, h, w) in the network's dtype. `reuse` allows deep
        blocks to be skipped, which makes the result approximate.

        c_noise, context and vector may have one row for all frames instead of N. Raises InputError for other shapes, or
        if N is not a whole number of clips.
        """
        _check_shapes(self.config, x, c_noise, context, vector)
        _check_clips(x.shape[0], num_frames)
        x = self.backend.fit(x, self.out[-1].weight)
        step = StepContext(self.embed(c_noise, vector, x.dtype, hooks), context.to(x.dtype), num_frames, hooks)
        images = x.contiguous(memory_format=torch.channels_last)
        if reuse is not None:
            return self._run_again(images, reuse.find(x, c_noise, context), reuse, step)
        skips: list[Tensor] = []
        images = self._run_inputs(images, skips, step)
        images = self._run_middle(images, step)
        return self.out(self._run_outputs(images, skips, step).to(x.dtype))

    def layers(self) -> list[nn.Module]:
        """Every layer that holds weights, in the order in which they run."""
        stages = [*self.input_blocks, self.middle_block, *self.output_blocks]
        return [self.time_embed, self.label_emb, *(layer for stage in stages for layer in stage), self.out]

    def embed(self, c_noise: Tensor, vector: Tensor, dtype: torch.dtype, hooks: BlockHooks = NO_HOOKS) -> Tensor:
        """(N,), (N, V) -> the embedding (N, E) that every residual block reads."""
        noise = self.time_embed(sinusoid(c_noise, self.config.model_channels).to(dtype))
        return hooks.embedding(noise) + self.label_emb(vector.to(dtype))

    def _run_again(self, images: Tensor, kept: Kept, reuse: FeatureReuse, step: StepContext) -> Tensor:
        """Run the whole network, or only its shallow blocks around the deep features that an earlier call kept."""
        dtype, upwards = images.dtype, len(self.output_blocks) - SHALLOW
        skips: list[Tensor] = []
        images = self._run_inputs(images, skips, step, 0, SHALLOW)
        deep = reuse.deep(kept, thinned(images) - thinned(skips[0]))
        if deep is None:
            images = self._run_inputs(images, skips, step, SHALLOW)
            images = self._run_middle(images, step)
            deep = kept.deep = self._run_outputs(images, skips, step, 0, upwards)
        return self.out(self._run_outputs(deep, skips, step, upwards).to(dtype))

    def _run_inputs(
        self, images: Tensor, skips: list[Tensor], step: StepContext, first: int = 0, end: int | None = None
    ) -> Tensor:
        """Run input blocks `first` up to `end` and append their skips to `skips`."""
        for index in range(len(self.input_blocks))[first:end]:
            step.hooks.enter("input", index)
            images, skip = step.hooks.after_input(self.input_blocks[index](images, step))
            skips.append(skip)
        return images

    def _run_middle(self, images: Tensor, step: StepContext) -> Tensor:
        step.hooks.enter("middle", 0)
        return step.hooks.after_middle(self.middle_block(images, step))

    def _run_outputs(
        self, images: Tensor, skips: list[Tensor], step: StepContext, first: int = 0, end: int | None = None
    ) -> Tensor:
        """Run output blocks `first` up to `end`, each of which pops its skip from `skips`."""
        for index in range(len(self.output_blocks))[first:end]:
            step.hooks.enter("output", index)
            images, skip = step.hooks.before_output(images, skips.pop())
            joined = torch.cat([images, skip], dim=1)
            del images, skip
            images = self.output_blocks[index](joined, step, skips[-1].shape[-2:] if skips else None)
        return images


class _Layers:
    """Makes the layers that every level is built from."""

    def __init__(self, config: UNetConfig, backend: Backend) -> None:
        self.config, self.backend = config, backend

    def residual(self, channels: int, out: int) -> VideoResBlock:
        return VideoResBlock(channels, out, self.config.embedding_dim, backend=self.backend)

    def transformer(self, channels: int) -> SpatialVideoTransformer:
        config = self.config
        sizes = (channels, config.context_dim, config.head_channels, config.transformer_depth)
        return SpatialVideoTransformer(*sizes, backend=self.backend)


def _check_clips(frames: int, num_frames: int) -> None:
    if not isinstance(num_frames, Integral) or num_frames < 1 or frames % num_frames:
        raise InputError(
            f"a batch of {frames} frames is not a whole number of clips of {num_frames} frames: "
            f"pass a whole num_frames of at least 1 that divides {frames}"
        )


def _check_shapes(config: UNetConfig, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor) -> None:
    needs = (
        ("latents", x, ("N", config.in_channels, "h", "w"), "the noisy ones and the still's, joined"),
        ("noise levels", c_noise, ("N",), "one for each frame"),
        ("a context", context, ("N", "L", config.context_dim), "use conditioning that was made for this model"),
        ("a vector", vector, ("N", config.vector_dim), "use conditioning that was made for this model"),
    )
    for name, tensor, sizes, remedy in needs:
        needed = ", ".join(map(str, sizes))
        if not isinstance(tensor, Tensor):
            raise InputError(f"the UNet got {name} of class {type(tensor).__name__}; it needs a tensor ({needed})")
        shape = tuple(tensor.shape)
        fits = len(shape) == len(sizes) and (shape[0] == 1 or shape[0] == x.shape[0])
        if any(size == 0 for size in shape):
            raise InputError(f"the UNet got {name} of shape {shape}; it needs ({needed}), none of them 0: {remedy}")
        # Only ==: under torch.compile, looking for a symbolic size in a tuple gives wrong answers.
        if not fits or any(isinstance(need, int) and size != need for size, need in zip(shape, sizes, strict=True)):
            frames = f", N {x.shape[0]} or 1" if tensor is not x else ""
            raise InputError(f"the UNet got {name} of shape {shape}; it needs ({needed}){frames}: {remedy}")


def _input_blocks(config: UNetConfig, layers: _Layers) -> tuple[nn.ModuleList, list[int]]:
    """The blocks on the way down, and the channels of the skips they leave."""
    channels = config.model_channels
    blocks = [Stage([layers.backend.conv(config.in_channels, channels)])]
    skips = [channels]
    for level, out in enumerate(config.level_channels):
        for _ in range(config.res_blocks):
            transformers = [layers.transformer(out)] if config.attention[level] else []
            blocks.append(Stage([layers.residual(channels, out), *transformers]))
            channels = out
            skips.append(channels)
        if level < len(config.level_channels) - 1:
            blocks.append(Stage([Downsample(channels, backend=layers.backend)]))
            skips.append(channels)
    return nn.ModuleList(blocks), skips


def _middle_block(config: UNetConfig, layers: _Layers) -> Stage:
    deepest = config.level_channels[-1]
    return Stage([layers.residual(deepest, deepest), layers.transformer(deepest), layers.residual(deepest, deepest)])


def _output_blocks(config: UNetConfig, layers: _Layers, skips: list[int]) -> nn.ModuleList:
    """The blocks on the way up: one more residual block a level than on the way down, for the downsampler's skip."""
    channels = config.level_channels[-1]
    skips = list(skips)
    blocks = []
    for level, out in reversed(list(enumerate(config.level_channels))):
        for place in range(config.res_blocks + 1):
            stage = Stage([layers.residual(channels + skips.pop(), out)])
            channels = out
            if config.attention[level]:
                stage.append(layers.transformer(channels))
            if level and place == config.res_blocks:
                stage.append(Upsample(channels, backend=layers.backend))
            blocks.append(stage)
    return nn.ModuleList(blocks)
