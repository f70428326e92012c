"""The contestants of `benchmarks.gpu`: UNets that share one set of random weights on one device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from svd_core.config import UNetConfig
from svd_core.model.backend import Backend
from svd_core.model.layout import laid_out
from svd_core.model.storage import STORES
from svd_core.model.unet import VideoUNet

from .peers import Weights
from .unet_peers import ComfyUI, Diffusers


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one forward: x (N, 8, h, w), c_noise (N,), context (N, 1, D), vector (N, V), N = clips * frames."""

    x: Tensor
    c_noise: Tensor
    context: Tensor
    vector: Tensor
    frames: int


Run = Callable[[Batch], Tensor]


@dataclass(frozen=True, slots=True)
class Contestant:
    """`build` takes weights by their official names and returns one forward pass, (N, 4, h, w)."""

    name: str
    build: Callable[[UNetConfig, Weights], Run]


def random_batch(config: UNetConfig, weights: Weights, clips: int, frames: int, size: tuple[int, int]) -> Batch:
    like = next(iter(weights.values()))
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like)

    def each_clip(*shape: int) -> Tensor:
        return draw(clips, *shape).repeat_interleave(frames, 0)

    x = draw(clips * frames, config.in_channels, *size)
    return Batch(x, each_clip(), each_clip(1, config.context_dim), each_clip(config.vector_dim), frames)


def ours(config: UNetConfig, weights: Weights, store: Callable[[nn.Module], None] = STORES["whole"]) -> Run:
    """Our UNet, with convolution weights in the memory layout of our loader, which copies them."""
    unet = VideoUNet(config, backend=Backend(device="meta")).eval()
    unet.load_state_dict({name: laid_out(weight) for name, weight in weights.items()}, strict=True, assign=True)
    store(unet)
    return lambda batch: unet(batch.x, batch.c_noise, batch.context, batch.vector, batch.frames)


def diffusers_eager(config: UNetConfig, weights: Weights) -> Run:
    return _diffusers_run(_diffusers(config, weights))


def diffusers_channels_last(config: UNetConfig, weights: Weights) -> Run:
    """diffusers' UNet with channels-last copies of the 2-D convolution weights: the memory format is a property of the
    storage. The network as a whole cannot be converted, because its 3-D convolutions do not support the format."""
    model = _diffusers(config, weights)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return _diffusers_run(model)


def diffusers_compiled(mode: str) -> Contestant:
    """diffusers' whole UNet compiled for a single shape; another shape needs another compilation."""

    def build(config: UNetConfig, weights: Weights) -> Run:
        model = _diffusers(config, weights)
        model.forward = torch.compile(model.forward, mode=mode, dynamic=False)
        return _diffusers_run(model)

    return Contestant(f"diffusers, compiled ({mode})", build)


def _diffusers(config: UNetConfig, weights: Weights) -> nn.Module:
    return Diffusers.build(config, weights, next(iter(weights.values())).dtype).unet


class _Given(nn.Module):
    """Replaces diffusers' embedding of the three ids, and returns the vector that they would give. One module is used
    for all calls, because a compiled network would be recompiled for every new module."""

    vector: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        return self.vector.reshape(ids.numel(), -1)


def _diffusers_run(model: nn.Module) -> Run:
    given = model.add_time_proj = _Given()

    def run(batch: Batch) -> Tensor:
        clips = batch.x.unflatten(0, (-1, batch.frames))
        first = slice(None, None, batch.frames)
        given.vector = batch.vector[first]
        ids = batch.x.new_zeros(len(clips), 3)
        out = model(clips, batch.c_noise[first], batch.context[first], ids, return_dict=False)[0]
        return out.flatten(0, 1)

    return run


def comfyui(config: UNetConfig, weights: Weights) -> Run:
    """ComfyUI's own network, built with the layers that it uses without offloading."""
    model = ComfyUI.build(config, weights, next(iter(weights.values())).dtype).unet
    return lambda batch: model(batch.x, batch.c_noise, batch.context, batch.vector, num_video_frames=batch.frames)


OURS = Contestant("ours", ours)
CONTESTANTS = (
    OURS,
    Contestant("ours, fp8 (quantised)", partial(ours, store=STORES["fp8"])),
    Contestant("diffusers, eager", diffusers_eager),
    Contestant("diffusers, channels last", diffusers_channels_last),
    Contestant("ComfyUI", comfyui),
)
