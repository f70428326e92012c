"""The third stage: the video UNet, trained together with the image encoder whose embedding it reads.

The released models took their image encoder from CLIP, which was trained on captioned pictures. Here there are no
captions and no text tower: the encoder learns whatever helps the UNet, and no other model can use its embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from svd_core.conditioning import Conditioning, MicroConditioning, augment
from svd_core.config import LATENT_SCALE
from svd_core.errors import CheckpointError
from svd_core.model.clip_vision import CLIPVision
from svd_core.model.unet import VideoUNet
from svd_core.model.vae import VideoVAE

from .autoencoder import moments
from .checkpoint import load_tensors, save_tensors
from .data import Clip, ClipSource
from .distributed import Group
from .loop import Batch
from .loss import draw, v_loss
from .randomness import generator_for, whole_number
from .recipe import Noise, Posterior

CLIPS_PER_SHARD = 50
PIXELS_AT_ONCE = 2**20
"""Pixels whose posteriors are computed at a time: a whole clip of 1024x576 would need more memory than training on it.
Frames are encoded independently."""


@dataclass(frozen=True, slots=True)
class VideoSamples(Dataset):
    """Sample k: clip k and everything drawn for it, on the CPU."""

    source: ClipSource
    noise: Noise
    vector_width: int
    seed: int

    def __getitem__(self, number: int) -> Batch:
        """pixels (T, 3, H, W) in [-1, 1], plus the entries of `drawn_for`."""
        clip = self.source.clip(number)
        drawn = drawn_for(clip, len(clip.pixels), self.noise, self.vector_width, self.seed, number)
        return {"pixels": clip.pixels, **drawn}


@dataclass(frozen=True, slots=True)
class CachedSamples(Dataset):
    """Samples from already encoded clips: sample k is a random one, so that each clip is seen with many noises."""

    shards: Sequence[Mapping[str, Tensor]]
    noise: Noise
    vector_width: int
    seed: int

    def __getitem__(self, number: int) -> Batch:
        """latents (T, 4, h, w) in sampler units, plus the entries of `drawn_for`."""
        generator = generator_for(self.seed, "cached", number)
        shard, place = self._drawn(generator)
        encoded = {name: shard[name][place].float() for name in ("latents", "log_variance") if name in shard}
        still = shard["still"][place].float() / 127.5 - 1
        clip = Clip(still[None], float(shard["fps"][place]), float(shard["motion_bucket"][place]))
        drawn = drawn_for(clip, len(encoded["latents"]), self.noise, self.vector_width, self.seed, number)
        return {"latents": clean(encoded, drawn), **drawn}

    def _drawn(self, generator: torch.Generator) -> tuple[Mapping[str, Tensor], int]:
        """A random shard and index, uniform over all clips: an index beyond the end of a short shard is redrawn."""
        longest = max(len(shard["latents"]) for shard in self.shards)
        while True:
            shard = self.shards[whole_number(0, len(self.shards) - 1, generator)]
            place = whole_number(0, longest - 1, generator)
            if place < len(shard["latents"]):
                return shard, place


def drawn_for(clip: Clip, frames: int, noise: Noise, vector_width: int, seed: int, number: int) -> Batch:
    """still (3, H, W), the clean first frame, and noisy_still, the augmented one; vector (V,); sigma, keep_context and
    keep_first, scalars; noise (T, 4, h, w), and on_posterior of the same shape unless the mean is wanted."""
    still = clip.pixels[0]
    drawn = draw(noise, frames, *still.shape[1:], generator_for(seed, "noise", number))
    augmentation = float(drawn.augmentation)
    micro = MicroConditioning(clip.fps, clip.motion_bucket, augmentation)
    return {
        "still": still,
        "noisy_still": augment(still[None], augmentation, drawn.on_still[None])[0],
        "vector": micro.vector(vector_width)[0],
        "sigma": drawn.sigma,
        "keep_context": drawn.keep_context,
        "keep_first": drawn.keep_first,
        "noise": drawn.on_latent,
        **({} if drawn.on_posterior is None else {"on_posterior": drawn.on_posterior}),
    }


class VideoObjective(nn.Module):
    """The v-loss of clips. Freezes the autoencoder; the other two are trained if their parameters require gradients.

    `dtype` is the compute dtype of the two outside autocast. The autoencoder's encoder and the loss are float32, also
    under autocast, as in the reference.
    """

    def __init__(
        self, unet: VideoUNet, clip_vision: CLIPVision, vae: VideoVAE, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.unet, self.clip_vision = unet, clip_vision
        self.vae = vae.requires_grad_(False)
        self.dtype = dtype

    def forward(self, batch: Batch) -> Tensor:
        conditioning = self.condition(batch).to(dtype=self.dtype)
        latents = batch["latents"] if "latents" in batch else self.encode(batch)
        frames = latents.shape[1]
        flat = (latents.flatten(0, 1), batch["noise"].flatten(0, 1))
        return v_loss(self.unet, *flat, batch["sigma"], conditioning, frames)

    def condition(self, batch: Batch) -> Conditioning:
        """Conditioning with one row per clip; dropped parts are zero, as in `Conditioning.unconditional`."""
        context = self.clip_vision.encode(batch["still"])[:, None] * batch["keep_context"][:, None, None]
        still = batch["noisy_still"]
        with torch.no_grad(), torch.autocast(still.device.type, enabled=False):
            first = self.vae.encode(still)
        return Conditioning(context, first * batch["keep_first"][:, None, None, None], batch["vector"])

    def encode(self, batch: Batch) -> Tensor:
        """The clean latents (B, T, 4, h, w) of a batch's pixels, float32 in sampler units."""
        clips = batch["pixels"]
        encoded = encode(self.vae, clips.flatten(0, 1), "sample" if "on_posterior" in batch else "mean")
        return clean({name: each.unflatten(0, clips.shape[:2]) for name, each in encoded.items()}, batch)


@torch.no_grad()
def encode(vae: VideoVAE, pixels: Tensor, posterior: Posterior) -> dict[str, Tensor]:
    """pixels (N, 3, H, W) in [-1, 1] -> latents (N, 4, h, w), the posterior's mean, and for a sample its log_variance,
    both of latents in sampler units. float32, also under autocast."""
    with torch.autocast(pixels.device.type, enabled=False):
        if posterior == "mean":
            return {"latents": vae.encode(pixels) * LATENT_SCALE}
        rows = max(1, PIXELS_AT_ONCE // (pixels.shape[-2] * pixels.shape[-1]))
        parts = [moments(vae, part) for part in pixels.split(rows)]
    mean, log_variance = (torch.cat(each) for each in zip(*parts, strict=True))
    return {"latents": mean * LATENT_SCALE, "log_variance": log_variance + 2 * math.log(LATENT_SCALE)}


def clean(encoded: Mapping[str, Tensor], drawn: Batch) -> Tensor:
    """The latents to be denoised, from what `encode` gave: the posterior's mean, or a sample with the noise drawn."""
    if "log_variance" not in encoded:
        return encoded["latents"]
    return encoded["latents"] + (encoded["log_variance"] / 2).exp() * drawn["on_posterior"]


def cached_shards(
    folder: Path, source: ClipSource, vae: VideoVAE, clips: int, posterior: Posterior, digest: str, group: Group
) -> list[dict[str, Tensor]]:
    """Encode clips 0 to `clips` - 1 into files of 50, skipping files that exist, and load them all.

    Processes share the work. `digest` identifies the source, the encoder and the posterior; a shard with another digest
    raises CheckpointError.
    """
    parts = [range(start, min(clips, start + CLIPS_PER_SHARD)) for start in range(0, clips, CLIPS_PER_SHARD)]
    paths = [folder / f"{number:04d}.safetensors" for number in range(len(parts))]
    for path, numbers in list(zip(paths, parts, strict=True))[group.rank :: group.size]:
        if not path.exists():
            save_tensors(path, encode_clips(source, vae, numbers, posterior, group), {"digest": digest})
    group.wait()
    return [_open_shard(path, digest, len(numbers)) for path, numbers in zip(paths, parts, strict=True)]


def _open_shard(path: Path, digest: str, clips: int) -> dict[str, Tensor]:
    shard, metadata = load_tensors(path)
    if metadata.get("digest") != digest or len(shard["latents"]) != clips:
        raise CheckpointError(
            f"{path} was encoded from other clips, from another number of them, for another posterior or by another "
            f"autoencoder: remove the folder {path.parent}"
        )
    return shard


@torch.no_grad()
def encode_clips(
    source: ClipSource, vae: VideoVAE, numbers: Sequence[int], posterior: Posterior, group: Group
) -> dict[str, Tensor]:
    """What `encode` gives (n, T, 4, h, w) in float16, still (n, 3, H, W) uint8, fps, motion_bucket (n,) float32."""
    clips = [source.clip(number) for number in numbers]
    encoded = [encode(vae, clip.pixels.to(group.device), posterior) for clip in clips]
    return {
        **{name: torch.stack([each[name].half().cpu() for each in encoded]) for name in encoded[0]},
        "still": torch.stack([((clip.pixels[0] + 1) * 127.5).round().to(torch.uint8) for clip in clips]),
        "fps": torch.tensor([clip.fps for clip in clips]),
        "motion_bucket": torch.tensor([float(clip.motion_bucket) for clip in clips]),
    }
