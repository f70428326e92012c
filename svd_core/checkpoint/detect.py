"""Deriving a `ModelConfig` from tensor shapes; the file's name is never used."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..config import GROUPS, PIXELS_PER_LATENT, VARIANTS, CLIPVisionConfig, ModelConfig, UNetConfig, VAEConfig, Variant
from ..errors import CheckpointError
from .families import require_svd
from .header import AGAIN
from .hints import CONFIG_KEY, named_variant
from .keymaps import CLIP, CONDITIONER_VAE, FIRST_STAGE, UNET, VISUAL
from .source import TensorSource

MAX_LAYERS, MAX_SIDE = 256, 2**20
"""Far above any model of this kind; keeps a malicious file from costing hours."""

TEMPORAL_MARK = FIRST_STAGE + "decoder.mid.block_1.mix_factor"
"""Only the video decoder blends frames (spec 2.4)."""


@dataclass(frozen=True, slots=True)
class Detection:
    """The detected configuration of a checkpoint.

    `encoder_prefix` is the prefix of the conditioning encoder: the conditioner's own if it has one (spec 2.1).
    `variant_reason` says why the variant was chosen; `variant_assumed` that nothing in the checkpoint determines it;
    `overruled` is the variant that the checkpoint states, if the caller chose another.
    """

    config: ModelConfig
    encoder_prefix: str
    variant_reason: str
    variant_assumed: bool
    overruled: Variant | None = None

    @property
    def variant_note(self) -> str:
        """A user-facing sentence if the variant was assumed, or contradicts the checkpoint; empty if it is known."""
        run = self.config.variant
        if self.overruled:
            return f"the checkpoint says {_in_words(self.overruled)}: {_in_words(run)} was taken instead, as was asked"
        if not self.variant_assumed:
            return ""
        return (
            f"{run.name} with its {run.frames} frames is assumed ({self.variant_reason}): choose a variant to be sure"
        )


def detect(source: TensorSource, variant: str | Variant | None = None) -> Detection:
    """Derive the configuration from tensor shapes. `variant` overrides what the checkpoint says.

    Raises CheckpointError for another model family, missing parts, and contradictory shapes.
    """
    require_svd(source)
    _require_parts(source)
    own_encoder = CONDITIONER_VAE + "encoder.conv_in.weight" in source
    prefix = CONDITIONER_VAE if own_encoder else FIRST_STAGE
    vae = _vae(source, prefix)
    chosen, reason, assumed = _variant(source, vae.temporal, variant)
    config = ModelConfig(unet=_unet(source), vae=vae, clip_vision=_clip(source), variant=chosen)
    _check_joints(source, config)
    return Detection(config, prefix, reason, assumed, _overruled(source, chosen))


def _require_parts(source: TensorSource) -> None:
    parts = {VISUAL: "CLIP image encoder", FIRST_STAGE + "decoder.": "VAE decoder"}
    for prefix, part in parts.items():
        if not _any(source, prefix):
            raise CheckpointError(
                f"{source.path} has no {part}: some tools store the UNet alone, so use the whole checkpoint "
                "(ComfyUI's ImageOnlyCheckpointSave writes one)"
            )


def _check_joints(source: TensorSource, config: ModelConfig) -> None:
    """Raise CheckpointError unless UNet, VAE and CLIP fit each other."""
    pixels = 2 ** (len(config.vae.channel_mult) - 1)
    joints = (
        ("pixels to a latent cell in the VAE", pixels, PIXELS_PER_LATENT),
        ("latent channels of the VAE", config.vae.latent_channels, config.unet.out_channels),
        ("numbers in CLIP's embedding", config.clip_vision.output_dim, config.unet.context_dim),
    )
    for what, found, needed in joints:
        if found != needed:
            raise CheckpointError(f"{source.path}: {found} {what}, needs {needed} to fit the UNet: {AGAIN}")


# UNet


def _unet(source: TensorSource) -> UNetConfig:
    base, inputs, *_ = _shape(source, UNET + "input_blocks.0.0.weight", 4)
    blocks, ends = (_numbers(source, UNET, rf"input_blocks\.(\d+)\.{rest}") for rest in ("", r"0\.op\."))
    res_blocks = min(*ends, len(blocks)) - 1 if ends else len(blocks) - 1
    firsts = [1 + level * (res_blocks + 1) for level in range(len(ends) + 1)]
    widths = [_shape(source, f"{UNET}input_blocks.{first}.0.out_layers.3.weight", 4)[0] for first in firsts]
    attention = tuple(_any(source, f"{UNET}input_blocks.{first}.1.") for first in firsts)
    config = UNetConfig(
        in_channels=inputs,
        out_channels=_shape(source, UNET + "out.2.weight", 4)[0],
        model_channels=base,
        channel_mult=_multiples(source, widths, base, "the UNet"),
        res_blocks=res_blocks,
        attention=attention,
        transformer_depth=max(1, len(_numbers(source, UNET, r"middle_block\.1\.transformer_blocks\.(\d+)\."))),
        head_channels=source.hints.unet_head_channels or UNetConfig().head_channels,
        context_dim=_shape(source, UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        vector_dim=_shape(source, UNET + "label_emb.0.0.weight", 2)[1],
    )
    if config.in_channels != 2 * config.out_channels:
        raise CheckpointError(
            f"{source.path}: the UNet takes {inputs} channels and makes {config.out_channels}, needs twice as many in "
            "(noisy latent and the still's): it is another kind of video model, choose an SVD checkpoint"
        )
    attentive = [width for width, has in zip(widths, attention, strict=True) if has] + widths[-1:]
    _check_heads(source, "unet", attentive, config.head_channels)
    return config


# VAE


def _vae(source: TensorSource, prefix: str) -> VAEConfig:
    channels = _shape(source, prefix + "encoder.conv_in.weight", 4)[0]
    temporal = TEMPORAL_MARK in source
    levels = len(_numbers(source, prefix, r"encoder\.down\.(\d+)\.block\."))
    widths = [_shape(source, f"{prefix}encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    return VAEConfig(
        channels=channels,
        channel_mult=_multiples(source, widths, channels, "the VAE"),
        res_blocks=len(_numbers(source, prefix, r"encoder\.down\.0\.block\.(\d+)\.")),
        latent_channels=_shape(source, FIRST_STAGE + "decoder.conv_in.weight", 4)[1],
        temporal=temporal,
        # Only a temporal first stage lacks these (spec 2.1, 2.4); elsewhere their absence must be reported.
        encoder_quant=prefix == CONDITIONER_VAE or not temporal or _any(source, prefix + "quant_conv."),
        decoder_quant=not temporal or _any(source, FIRST_STAGE + "post_quant_conv."),
    )


# CLIP


def _clip(source: TensorSource) -> CLIPVisionConfig:
    width, _, patch, _ = _shape(source, VISUAL + "conv1.weight", 4)
    tokens = _shape(source, VISUAL + "positional_embedding", 2)[0]
    side = math.isqrt(max(tokens - 1, 0))
    if side * side != tokens - 1 or side == 0:
        raise CheckpointError(f"{source.path}: {tokens} positions in CLIP are not a square of patches and one: {AGAIN}")
    head_channels = source.hints.clip_head_channels or CLIPVisionConfig().head_channels
    _check_heads(source, "clip_vision", [width], head_channels)
    return CLIPVisionConfig(
        layers=len(_numbers(source, VISUAL, r"transformer\.resblocks\.(\d+)\.")),
        width=width,
        head_channels=head_channels,
        mlp_width=_shape(source, VISUAL + "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        patch=patch,
        image_size=side * patch,
        output_dim=_shape(source, VISUAL + "proj", 2)[1],
    )


# Variant


def _variant(source: TensorSource, temporal: bool, wanted: str | Variant | None) -> tuple[Variant, str, bool]:
    """(variant, reason, whether it is a guess). svd and svd_xt have the same tensors, so a bare file cannot tell."""
    if isinstance(wanted, Variant):
        return wanted, "chosen by the caller", False
    if wanted is not None:
        return named_variant(wanted, "variant"), "chosen by the caller", False
    if source.hints.variant is not None:
        return source.hints.variant, f"read from {source.hints.origin}", False
    if not temporal:
        reason = "the frame-wise decoder was released with 14 and with 25 frames, and the tensors are the same"
        return VARIANTS["svd_image_decoder"], reason, True
    if _as_released_in_half(source):
        reason = "stored whole in float16, as only svd_xt_1_1 was released"
        return VARIANTS["svd_xt_1_1"], reason, True
    return VARIANTS["svd"], "svd and svd_xt hold the same tensors, and nothing in the file says which it is", True


def _overruled(source: TensorSource, chosen: Variant) -> Variant | None:
    """The variant that the checkpoint states, if it differs from the chosen one. A folder only states its number of
    frames."""
    stated = source.hints.variant
    if stated is None or stated == chosen or (source.path.is_dir() and stated.frames == chosen.frames):
        return None
    return stated


def _in_words(variant: Variant) -> str:
    return f"{variant.name} ({variant.frames} frames of {variant.width}x{variant.height})"


def _as_released_in_half(source: TensorSource) -> bool:
    """Whether every tensor is float16 and the unused ones are present, which resaved files tend to drop."""
    leftovers = (CLIP + "token_embedding.weight", CONDITIONER_VAE + "decoder.conv_in.weight")
    whole = all(key in source for key in leftovers)
    return whole and all(source.info(key).dtype == torch.float16 for key in source)


# Reading shapes


def _shape(source: TensorSource, key: str, sides: int) -> tuple[int, ...]:
    """The shape of a required tensor. Raises CheckpointError unless it has `sides` sides of 1 to MAX_SIDE."""
    if key not in source:
        raise CheckpointError(f"{source.path}: {key} is missing, and the model's size is read from it: {AGAIN}")
    shape = source.info(key).shape
    if len(shape) != sides or not all(1 <= side <= MAX_SIDE for side in shape):
        raise CheckpointError(
            f"{source.path}: {key} has shape {shape}, needs {sides} sides of 1 to {MAX_SIDE}: {AGAIN}"
        )
    return shape


def _any(source: TensorSource, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in source)


def _numbers(source: TensorSource, prefix: str, pattern: str) -> set[int]:
    """The distinct numbers that the pattern's group matches in keys after `prefix`."""
    numbered = re.compile(re.escape(prefix) + pattern)
    found = {int(match[1]) for key in source if (match := numbered.match(key))}
    if len(found) > MAX_LAYERS:
        raise CheckpointError(
            f"{source.path} numbers {len(found)} layers under {prefix}: at most {MAX_LAYERS} can be meant, {AGAIN}"
        )
    return found


def _multiples(source: TensorSource, widths: Sequence[int], base: int, part: str) -> tuple[int, ...]:
    if not widths or base % GROUPS or any(width % base for width in widths):
        raise CheckpointError(
            f"{source.path}: {part} is {list(widths)} wide over a base of {base}, needs multiples of the base, and of "
            f"{GROUPS}: {AGAIN}"
        )
    return tuple(width // base for width in widths)


def _check_heads(source: TensorSource, part: str, widths: Sequence[int], head_channels: int) -> None:
    for width in widths:
        if width % head_channels:
            raise CheckpointError(
                f"{source.path}: {part} is {width} wide, not a multiple of the head width {head_channels}: give the "
                f'right one in metadata {CONFIG_KEY}, as {{"{part}": {{"head_channels": ...}}}}'
            )
