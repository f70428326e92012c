"""The first two stages: an autoencoder of single frames, then a temporal decoder.

The temporal decoder starts as the image decoder: spatial weights are copied, temporal layers start as the identity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from svd_core.config import LATENT_CHANNELS, LATENT_SCALE, PIXELS_PER_LATENT, VAEConfig
from svd_core.model.vae import VideoVAE
from svd_core.model.vae_blocks import TimeStack

from .data import ClipSource
from .loop import Batch
from .randomness import generator_for, whole_number
from .recipe import AutoencoderStage, TemporalStage
from .reconstruction import difference_loss, divergence, reconstruction_loss

LOG_VARIANCE = (-30.0, 20.0)
"""Limits to which a posterior's log-variance is clamped, as in the reference."""


def image_config(config: VAEConfig) -> VAEConfig:
    """The same autoencoder with the frame-wise decoder."""
    return dataclasses.replace(config, temporal=False)


@dataclass(frozen=True, slots=True)
class FrameSamples(Dataset):
    """Sample k: `frames` random frames of clip k, consecutive or not, and noise for their posteriors."""

    source: ClipSource
    frames: int
    seed: int
    consecutive: bool

    def __getitem__(self, number: int) -> Batch:
        """pixels (F, 3, H, W) in [-1, 1], noise (F, 4, H/8, W/8)."""
        pixels = self.source.clip(number).pixels
        generator = generator_for(self.seed, "frames", number)
        chosen = self._choose(len(pixels), generator)
        _, _, height, width = pixels.shape
        latent = (LATENT_CHANNELS, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
        return {"pixels": pixels[chosen], "noise": torch.randn(self.frames, *latent, generator=generator)}

    def _choose(self, available: int, generator: torch.Generator) -> Tensor:
        if self.consecutive:
            start = whole_number(0, available - self.frames, generator)
            return torch.arange(start, start + self.frames)
        return torch.randperm(available, generator=generator)[: self.frames]


def moments(vae: VideoVAE, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """pixels (N, 3, H, W) -> mean and log-variance of the posterior, (N, 4, H/8, W/8) each, unscaled."""
    both = vae.encoder(pixels)
    both = vae.quant_conv(both) if vae.config.encoder_quant else both
    mean, log_variance = both.chunk(2, dim=1)
    return mean, log_variance.clamp(*LOG_VARIANCE)


class ImageObjective(nn.Module):
    """Stage 1: encode a frame, sample its posterior, decode it."""

    def __init__(self, vae: VideoVAE, stage: AutoencoderStage) -> None:
        super().__init__()
        self.vae, self.stage = vae, stage

    def forward(self, batch: Batch) -> Tensor:
        pixels, noise = batch["pixels"].flatten(0, 1), batch["noise"].flatten(0, 1)
        mean, log_variance = moments(self.vae, pixels)
        restored = self.vae.decode_whole(mean + (log_variance / 2).exp() * noise, num_frames=1)
        loss = reconstruction_loss(restored.float(), pixels, self.stage.squared, self.stage.edges)
        return loss + self.stage.kl * divergence(mean.float(), log_variance.float())


class TemporalObjective(nn.Module):
    """Stage 2: decode clips encoded by the finished encoder. Trains the whole decoder, but not the encoder."""

    def __init__(self, vae: VideoVAE, stage: TemporalStage) -> None:
        super().__init__()
        self.vae, self.stage = vae, stage
        for name, parameter in vae.named_parameters():
            parameter.requires_grad_(name.startswith(("decoder.", "post_quant_conv.")))

    def forward(self, batch: Batch) -> Tensor:
        clips = batch["pixels"]
        pixels = clips.flatten(0, 1)
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):  # the encoder is always in float32
            latents = self.vae.encode(pixels)
        restored = self.vae.decode_whole(latents, num_frames=clips.shape[1]).float()
        loss = reconstruction_loss(restored, pixels, self.stage.squared, self.stage.edges)
        return loss + self.stage.differences * difference_loss(restored.view_as(clips), clips)


@torch.no_grad()
def copy_spatial(image: VideoVAE, video: VideoVAE) -> VideoVAE:
    """Copy all weights of an image autoencoder into a video autoencoder, and set its temporal layers to the identity,
    so that it decodes as the image decoder does. Returns it."""
    weights = image.state_dict()
    own = video.state_dict()
    unknown = weights.keys() - own.keys()
    if unknown:
        raise KeyError(f"{sorted(unknown)[0]} of the image autoencoder has no place in the video autoencoder")
    video.load_state_dict(own | weights)
    mix = video.decoder.conv_out.time_mix_conv
    mix.weight.zero_()
    mix.bias.zero_()
    centre = mix.weight[:, :, mix.weight.shape[2] // 2, 0, 0]
    centre.fill_diagonal_(1)
    for module in video.decoder.modules():
        if isinstance(module, TimeStack):
            module.out_layers[-1].weight.zero_()
            module.out_layers[-1].bias.zero_()
    return video


@torch.no_grad()
def latent_rms(vae: VideoVAE, frames: Iterable[Tensor]) -> Tensor:
    """Root mean square (4,) of each channel of unscaled latents over `frames`, (n, 3, H, W) each."""
    squares = [vae.encode(pixels).double().square().mean(dim=(0, 2, 3)) for pixels in frames]
    return torch.stack(squares).mean(dim=0).sqrt().float()


def rescale_latents(config: VAEConfig, weights: Mapping[str, Tensor], rms: Tensor) -> dict[str, Tensor]:
    """The weights of a `VideoVAE` with a factor for each latent channel folded into the last layer before the latent
    and the first one after it.

    Latents with root mean square `rms` (4,) > 0 get 1 / 0.18215, so that they have unit variance in sampler units, as
    the loss assumes. Decoded frames stay the same (class: rounding), because a factor, unlike a shift, commutes with
    the decoder's zero padding.
    """
    before = "quant_conv" if config.encoder_quant else "encoder.conv_out"
    after = "post_quant_conv.weight" if config.decoder_quant else "decoder.conv_in.weight"
    factor = (1 / (LATENT_SCALE * rms)).to(weights[after])
    # The second half is log-variances: the posterior's deviation scales with its mean.
    mean_factor = torch.cat([factor, torch.ones_like(factor)])
    shift = torch.cat([torch.zeros_like(factor), 2 * factor.log()])
    return {
        **weights,
        f"{before}.weight": weights[f"{before}.weight"] * mean_factor[:, None, None, None],
        f"{before}.bias": weights[f"{before}.bias"] * mean_factor + shift,
        after: weights[after] / factor[None, :, None, None],
    }
