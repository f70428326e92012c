"""What a recipe's values may be, so that one that cannot work is refused before the first step, not after days."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from svd_core.conditioning import MAX_AUGMENTATION, MAX_FPS, MAX_MOTION_BUCKET
from svd_core.config import GROUPS, LATENT_CHANNELS, PIXELS_PER_LATENT
from svd_core.errors import InputError

if TYPE_CHECKING:
    from svd_core.config import CLIPVisionConfig, ModelConfig, UNetConfig, VAEConfig

    from .recipe import Data, Noise, Optimisation

RAREST_DRAW = 6
"""Standard deviations within which all normal draws of a long training lie: one in 10^9 is above."""


def require(fits: bool, where: str, value: object, needed: str) -> None:
    """Raise InputError unless a value fits."""
    if not fits:
        raise InputError(f"{where} is {value}: needed {needed}, change the recipe")


def check_optimisation(chosen: Optimisation, where: str) -> None:
    """Raise InputError for the first value out of range."""
    _at_least(1, chosen, where, "steps", "batch", "accumulate")
    for name in ("learning_rate", "clip_norm"):
        value = getattr(chosen, name)
        require(0 < value < math.inf, f"{where}.{name}", value, "more than 0, and finite")
    decay = chosen.weight_decay
    require(0 <= decay < math.inf, f"{where}.weight_decay", decay, "at least 0, and finite")
    require(0 <= chosen.ema < 1, f"{where}.ema", chosen.ema, "at least 0 and less than 1")
    _at_least(0, chosen, where, "warmup")
    whole = chosen.batch % chosen.accumulate == 0
    require(whole, f"{where}.batch", chosen.batch, f"a multiple of accumulate ({chosen.accumulate})")


def check_data(data: Data) -> None:
    """Raise InputError for the first value out of range."""
    _at_least(1, data, "data", "frames")
    for name, side in (("width", data.width), ("height", data.height)):
        fits = side >= PIXELS_PER_LATENT and side % PIXELS_PER_LATENT == 0
        require(fits, f"data.{name}", side, f"a multiple of {PIXELS_PER_LATENT} pixels")
    speeds = bool(data.fps) and min(data.fps) >= 1 and max(data.fps) <= MAX_FPS
    require(speeds, "data.fps", data.fps, f"speeds of 1 to {MAX_FPS}")
    low, high = data.motion_buckets
    fits = 0 <= low <= high <= MAX_MOTION_BUCKET
    require(fits, "data.motion_buckets", (low, high), f"a low and a high bucket of 0 to {MAX_MOTION_BUCKET}")


def check_noise(noise: Noise, where: str) -> None:
    """Raise InputError for the first value out of range."""
    for name in ("p_mean", "augmentation_mean"):
        require(math.isfinite(getattr(noise, name)), f"{where}.{name}", getattr(noise, name), "a finite number")
    for name in ("p_std", "augmentation_std"):
        value = getattr(noise, name)
        require(0 <= value < math.inf, f"{where}.{name}", value, "at least 0, and finite")
    for name in ("drop_context", "drop_first"):
        require(0 <= getattr(noise, name) <= 1, f"{where}.{name}", getattr(noise, name), "a share from 0 to 1")
    require(noise.posterior in ("mean", "sample"), f"{where}.posterior", noise.posterior, "mean or sample")
    most = math.log(MAX_AUGMENTATION) - RAREST_DRAW * noise.augmentation_std
    needed = f"at most {most:.2f}, for noise of at most {MAX_AUGMENTATION:g}"
    require(noise.augmentation_mean <= most, f"{where}.augmentation_mean", noise.augmentation_mean, needed)


def check_model(model: ModelConfig) -> None:
    """Raise InputError for the first value that the networks, or the loader of exported files, would refuse."""
    _check_unet(model.unet)
    _check_vae(model.vae)
    _check_clip_vision(model.clip_vision)
    read = model.clip_vision.output_dim
    require(
        model.unet.context_dim == read, "model.unet.context_dim", model.unet.context_dim, f"the image encoder's {read}"
    )


def check_stated(model: ModelConfig, data: Data) -> None:
    """Raise InputError unless the exported file would state the clips that the model was trained on."""
    variant = model.variant
    needed = f"data.frames {data.frames}, which the exported file states"
    require(variant.frames == data.frames, "model.variant.frames", variant.frames, needed)
    sizes = (sorted((variant.width, variant.height)), sorted((data.width, data.height)))
    needed = f"data's {data.width}x{data.height} or the same upright, which the exported file states"
    require(sizes[0] == sizes[1], "model.variant's size", f"{variant.width}x{variant.height}", needed)


def _check_unet(unet: UNetConfig) -> None:
    where = "model.unet"
    _at_least(1, unet, where, "model_channels", "res_blocks", "transformer_depth", "head_channels", "vector_dim")
    require(unet.out_channels == LATENT_CHANNELS, f"{where}.out_channels", unet.out_channels, f"{LATENT_CHANNELS}")
    inputs = 2 * LATENT_CHANNELS
    require(unet.in_channels == inputs, f"{where}.in_channels", unet.in_channels, f"{inputs}, two latents")
    _check_widths(where, "model_channels", unet.model_channels, unet.channel_mult)
    levels = len(unet.channel_mult)
    require(len(unet.attention) == levels, f"{where}.attention", unet.attention, f"one for each of {levels} levels")
    attentive = [width for width, has in zip(unet.level_channels, unet.attention, strict=True) if has]
    _check_heads(where, unet.head_channels, [*attentive, unet.level_channels[-1]])
    require(unet.vector_dim % 3 == 0, f"{where}.vector_dim", unet.vector_dim, "a multiple of 3, for three equal parts")


def _check_vae(vae: VAEConfig) -> None:
    where = "model.vae"
    _at_least(1, vae, where, "channels", "res_blocks")
    require(
        vae.latent_channels == LATENT_CHANNELS, f"{where}.latent_channels", vae.latent_channels, f"{LATENT_CHANNELS}"
    )
    _check_widths(where, "channels", vae.channels, vae.channel_mult)
    levels = 1 + int(math.log2(PIXELS_PER_LATENT))
    fits = len(vae.channel_mult) == levels
    needed = f"{levels} numbers, for {PIXELS_PER_LATENT} pixels to a latent cell"
    require(fits, f"{where}.channel_mult", vae.channel_mult, needed)


def _check_clip_vision(clip: CLIPVisionConfig) -> None:
    where = "model.clip_vision"
    _at_least(1, clip, where, "layers", "width", "head_channels", "mlp_width", "patch", "output_dim")
    fits = clip.image_size >= clip.patch and clip.image_size % clip.patch == 0
    require(fits, f"{where}.image_size", clip.image_size, f"a multiple of its patch {clip.patch}")
    _check_heads(where, clip.head_channels, [clip.width])


def _at_least(least: int, table: object, where: str, *names: str) -> None:
    for name in names:
        require(getattr(table, name) >= least, f"{where}.{name}", getattr(table, name), f"at least {least}")


def _check_widths(where: str, name: str, base: int, multiples: tuple[int, ...]) -> None:
    require(base % GROUPS == 0, f"{where}.{name}", base, f"a multiple of {GROUPS}, the groups of every norm")
    fits = bool(multiples) and min(multiples) >= 1
    require(fits, f"{where}.channel_mult", multiples, "multiples of at least 1")


def _check_heads(where: str, head: int, widths: Iterable[int]) -> None:
    for width in widths:
        require(width % head == 0, f"{where}.head_channels", head, f"a divisor of the width {width}")
