"""Model configurations as frozen dataclasses, and the table of released variants.

The defaults describe the released models (spec 1.1, 2.1, 3). A small model differs only in these numbers, which the
rest of the package reads from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LATENT_SCALE = 0.18215
"""Factor between a VAE latent ("unscaled") and the sampler's units (spec 0, row 13)."""

LATENT_CHANNELS = 4
PIXELS_PER_LATENT = 8
"""Pixels along each side of one latent cell."""

GROUPS = 32
"""Groups of every GroupNorm (spec 1.6)."""

EMBEDDING_WIDTH_FACTOR = 4
"""Width of the time and vector embedding, in units of the model's channels (spec 1.2)."""

JOINT_GUIDANCE_CELLS = 2**15
"""Latent cells (frames x height x width) up to which both guidance branches share one pass. The result is the same
either way; above this the GPU is saturated and a joint pass only doubles the memory."""


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """The video UNet (spec 1.1). `attention[i]` says whether level i (downsampled i times) has transformers."""

    in_channels: int = 8
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    transformer_depth: int = 1
    head_channels: int = 64
    context_dim: int = 1024
    vector_dim: int = 768

    @property
    def embedding_dim(self) -> int:
        return EMBEDDING_WIDTH_FACTOR * self.model_channels

    @property
    def level_channels(self) -> tuple[int, ...]:
        return tuple(self.model_channels * mult for mult in self.channel_mult)


@dataclass(frozen=True, slots=True)
class VAEConfig:
    """The f8 autoencoder (spec 2). `temporal` selects the video decoder over the frame-wise image decoder."""

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    latent_channels: int = LATENT_CHANNELS
    temporal: bool = True
    encoder_quant: bool = True
    """The encoder is followed by `quant_conv` (the conditioner's encoder is, the temporal first stage's is not)."""
    decoder_quant: bool = False
    """The decoder is preceded by `post_quant_conv` (only in the image-decoder files)."""

    @property
    def level_channels(self) -> tuple[int, ...]:
        return tuple(self.channels * mult for mult in self.channel_mult)


@dataclass(frozen=True, slots=True)
class CLIPVisionConfig:
    """OpenCLIP's ViT image encoder (spec 3); the defaults are ViT-H/14."""

    layers: int = 32
    width: int = 1280
    head_channels: int = 80
    mlp_width: int = 5120
    patch: int = 14
    image_size: int = 224
    output_dim: int = 1024


@dataclass(frozen=True, slots=True)
class Variant:
    """What tensor shapes do not reveal about a released model: its trained number of frames and its recommended
    settings (spec 6)."""

    name: str
    frames: int
    steps: int
    min_guidance: float
    max_guidance: float
    height: int = 576
    width: int = 1024


_SVD = {"frames": 14, "steps": 25, "min_guidance": 1.0, "max_guidance": 2.5}
_SVD_XT = {"frames": 25, "steps": 30, "min_guidance": 1.5, "max_guidance": 3.0}

VARIANTS: dict[str, Variant] = {
    name: Variant(name=name, **settings)
    for name, settings in {
        "svd": _SVD,
        "svd_image_decoder": _SVD,
        "svd_xt": _SVD_XT,
        "svd_xt_1_1": _SVD_XT,
        "svd_xt_image_decoder": _SVD_XT,
    }.items()
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything needed to build the modules that one checkpoint fills."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    clip_vision: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    variant: Variant = VARIANTS["svd"]
