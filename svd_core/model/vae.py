"""The f8 autoencoder: picture -> latent, and latents -> frames through a decoder that sees across frames (spec 2).

`VideoVAE` plans and runs `vae_networks.py`, which joins the layers of `vae_blocks.py`. Attribute names in all three are
the official parameter names.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import PIXELS_PER_LATENT, VAEConfig
from ..decode.pictures import EncodePlan, choose_encode, encode_modes, encode_plan, run_encode
from ..decode.places import MODES, Mode, band_bytes
from ..decode.plan import DecodePlan, choose_decode, decode_plan
from ..decode.rescue import rescued
from ..decode.run import run_plan
from ..device_memory import has_own_memory
from ..errors import InputError
from ..settings import is_whole
from .backend import TORCH, Backend
from .vae_networks import PIXEL_CHANNELS, Encoder, ImageDecoder, TemporalDecoder


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
