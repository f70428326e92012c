"""The tensors of an official file, derived from the modules themselves (spec 1.8), and how a given file differs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..config import ModelConfig
from ..errors import CheckpointError
from ..model.backend import Backend
from ..model.clip_vision import CLIPVision
from ..model.unet import VideoUNet
from ..model.vae_networks import Encoder, ImageDecoder, TemporalDecoder
from .detect import Detection
from .header import AGAIN, some
from .keymaps import CLIP, CONDITIONER_VAE, FIRST_STAGE, UNET, VISUAL
from .source import TensorSource

_META = Backend(device="meta")
_TEXT_POSITIONS, _TEXT_TOKENS = 77, 49408
"""Rows of the embeddings of OpenCLIP's text tower, which official files include and nothing reads."""


@dataclass(frozen=True, slots=True)
class Expected:
    """One tensor of an official file. Inference reads the `required` ones; the others may be missing."""

    shape: tuple[int, ...]
    required: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """Differences between a checkpoint and its inventory, by official key; `misshapen` maps to (found, needed) shapes,
    `mistyped` to dtypes that are not floating-point."""

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    mistyped: dict[str, torch.dtype]


def inventory(config: ModelConfig, encoder_prefix: str = CONDITIONER_VAE) -> dict[str, Expected]:
    """Every tensor of the official file of this configuration; 2,446 or 2,322 at the released size.

    `encoder_prefix` is where inference reads the encoder from; the tensors of the other encoder are optional.
    """
    expected: dict[str, Expected] = {}

    def add(prefix: str, module: nn.Module, required: bool) -> None:
        shapes = {prefix + key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        expected.update({key: Expected(shape, required) for key, shape in shapes.items()})

    add(UNET, VideoUNet(config.unet, backend=_META), True)
    add(VISUAL, CLIPVision(config.clip_vision, backend=_META), True)
    expected.update(_text_tower(config.clip_vision.output_dim))
    own = encoder_prefix == CONDITIONER_VAE
    latent, temporal, quant = config.vae.latent_channels, config.vae.temporal, config.vae.encoder_quant
    add(CONDITIONER_VAE + "encoder.", Encoder(config.vae, backend=_META), own)
    add(CONDITIONER_VAE + "decoder.", ImageDecoder(config.vae, backend=_META), False)
    add(CONDITIONER_VAE + "quant_conv.", _pointwise(2 * latent), own and quant)
    add(CONDITIONER_VAE + "post_quant_conv.", _pointwise(latent), False)
    decoder = TemporalDecoder if temporal else ImageDecoder
    add(FIRST_STAGE + "encoder.", Encoder(config.vae, backend=_META), not own)
    add(FIRST_STAGE + "decoder.", decoder(config.vae, backend=_META), True)
    if not temporal or (quant and not own):
        add(FIRST_STAGE + "quant_conv.", _pointwise(2 * latent), not own and quant)
    if not temporal or config.vae.decoder_quant:
        add(FIRST_STAGE + "post_quant_conv.", _pointwise(latent), config.vae.decoder_quant)
    return expected


def _pointwise(channels: int) -> nn.Module:
    return _META.conv(channels, channels, 1)


def _text_tower(width: int) -> dict[str, Expected]:
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (_TEXT_POSITIONS, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (_TEXT_TOKENS, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    return {CLIP + key: Expected(shape, False) for key, shape in shapes.items()}


def difference(source: TensorSource, detection: Detection) -> Difference:
    """Compare a checkpoint with the inventory of its detected configuration. Reads headers only.

    Shapes and dtypes are compared only for tensors that inference reads.
    """
    expected = inventory(detection.config, detection.encoder_prefix)
    required = {key: spec.shape for key, spec in expected.items() if spec.required}
    infos = {key: source.info(key) for key in required if key in source}
    return Difference(
        missing=tuple(sorted(required.keys() - infos.keys())),
        unknown=tuple(sorted(set(source) - expected.keys())),
        misshapen={key: (info.shape, required[key]) for key, info in infos.items() if info.shape != required[key]},
        mistyped={key: info.dtype for key, info in infos.items() if not info.dtype.is_floating_point},
    )


def require_match(source: TensorSource, detection: Detection) -> None:
    """Raise CheckpointError unless all required tensors are present with the right shapes and float dtypes, and no
    unknown tensor is."""
    found = difference(source, detection)
    if found.missing:
        raise CheckpointError(f"{source.path}: {_tensors(len(found.missing))} missing ({some(found.missing)}): {AGAIN}")
    if found.unknown:
        raise CheckpointError(
            f"{source.path}: {_tensors(len(found.unknown))} unknown ({some(found.unknown)}): use the released "
            "checkpoint, or save it again without them"
        )
    for key, (shape, needed) in found.misshapen.items():
        raise CheckpointError(f"{source.path}: {key} has shape {shape}, the rest of the file needs {needed}: {AGAIN}")
    for key, dtype in found.mistyped.items():
        raise CheckpointError(f"{source.path}: {key} is stored as {dtype}, needs a float: use a float16 file")


def _tensors(count: int) -> str:
    return f"{count} tensor is" if count == 1 else f"{count} tensors are"
