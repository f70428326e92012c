"""Initial weights for `svd_core`'s networks, which on their own only load weights from a file."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from svd_core.config import CLIPVisionConfig, UNetConfig, VAEConfig
from svd_core.model.backend import Backend
from svd_core.model.clip_vision import CLIPVision
from svd_core.model.resblock import TemporalResBlock, VideoResBlock
from svd_core.model.transformer import SpatialVideoTransformer
from svd_core.model.unet import VideoUNet
from svd_core.model.vae import VideoVAE
from svd_core.model.vae_blocks import TimeStack

Network = TypeVar("Network", bound=nn.Module)

_META = Backend(device="meta")
_UNIFORM = 5**0.5
"""Slope for which Kaiming's bound is 1 / sqrt(fan-in), torch's own choice for linear layers and convolutions."""


def new_unet(config: UNetConfig, generator: torch.Generator) -> VideoUNet:
    return initialise(VideoUNet(config, backend=_META), generator)


def new_vae(config: VAEConfig, generator: torch.Generator) -> VideoVAE:
    return initialise(VideoVAE(config, backend=_META), generator)


def new_clip_vision(config: CLIPVisionConfig, generator: torch.Generator) -> CLIPVision:
    return initialise(CLIPVision(config, backend=_META), generator)


@torch.no_grad()
def initialise(network: Network, generator: torch.Generator) -> Network:
    """Initialise a float32 network on the CPU, in place, from one generator. Returns it in training mode.

    Layers get torch's defaults, bare parameters of the image encoder are normal with variance 1 / width, blends are
    even, and the last layer of each branch that the reference zeroes is zero, so that a new block is the identity.
    """
    network.to_empty(device="cpu")
    for name, parameter in network.named_parameters(recurse=True):
        if name.rpartition(".")[2] == "mix_factor":
            parameter.zero_()
    for module in network.modules():
        _fill(module, generator)
    for module in network.modules():
        for layer in _zeroed(module):
            for parameter in layer.parameters(recurse=False):
                parameter.zero_()
    return network.train()


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_uniform_(module.weight, a=_UNIFORM, generator=generator)
        if module.bias is not None:
            bound = module.weight[0].numel() ** -0.5
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    else:
        _fill_bare(module, generator)


def _fill_bare(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise the parameters that a module holds directly, outside any layer."""
    for name, parameter in module.named_parameters(recurse=False):
        if name == "in_proj_bias":
            parameter.zero_()
        elif name != "mix_factor":
            width = parameter.shape[0] if name == "proj" else parameter.shape[-1]
            parameter.normal_(0, width**-0.5, generator=generator)


def _zeroed(module: nn.Module) -> tuple[nn.Module, ...]:
    """The layers of a module that are initialised to zero."""
    if isinstance(module, VideoResBlock | TemporalResBlock | TimeStack):
        return (module.out_layers[-1],)
    if isinstance(module, SpatialVideoTransformer):
        return (module.proj_out,)
    return (module.out[-1],) if isinstance(module, VideoUNet) else ()


def freeze_unread(unet: VideoUNet) -> VideoUNet:
    """Freeze parameters without effect for a context of one token: softmax over one key is 1, so queries, keys and the
    norm before them have no gradient (spec 11a)."""
    for name, parameter in unet.named_parameters():
        if any(part in name for part in (".attn2.to_q.", ".attn2.to_k.", ".norm2.")):
            parameter.requires_grad_(False)
    return unet
