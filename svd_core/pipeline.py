"""The pipeline from a picture to a clip, without any host: checkpoint -> conditioning -> sampling -> decode."""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .clip import Clip, Progress, ProgressFn, silent
from .conditioning import Conditioning, MicroConditioning, augment, draw_noise
from .config import JOINT_GUIDANCE_CELLS, LATENT_CHANNELS, LATENT_SCALE, PIXELS_PER_LATENT, ModelConfig
from .controls import NO_CONTROLS, Controls
from .device_memory import free_bytes, has_own_memory, release_unused, spare_bytes
from .errors import InputError
from .model.clip_vision import CLIPVision
from .model.reuse import FeatureReuse
from .model.storage import stored_as
from .model.unet import VideoUNet
from .model.vae import VideoVAE
from .model.weights import visiting
from .motion import Wrap, view_latents
from .planning import Job, Plan, plan_or_leanest, plan_render
from .render import Render
from .sampling import (
    GuidanceInterval,
    GuidanceSplit,
    GuidedDenoiser,
    NoiseSampler,
    Sampler,
    SteppingDown,
    check_guidance,
    check_sigmas,
    check_size,
    noisy_start,
    sampler_named,
    seeded_noise,
)
from .settings import Settings, is_whole
from .shot import Shot, fit_picture


@dataclass(frozen=True, slots=True)
class StableVideo:
    """A loaded model. Its parts are ordinary modules, which the methods run in the reference's order (spec 0).

    The methods record no gradients, but not by `torch.inference_mode`: what they return may be changed in place and
    used in training."""

    config: ModelConfig
    unet: VideoUNet
    vae: VideoVAE
    clip_vision: CLIPVision
    device: torch.device
    dtype: torch.dtype
    variant_note: str = ""
    """One sentence if the variant had to be assumed or the caller overrode the checkpoint's; else empty."""

    @torch.no_grad()
    def condition(
        self,
        pixels: Tensor,
        fps: int = 7,
        motion_bucket: int = 127,
        augmentation: float = 0.02,
        noise: Tensor | None = None,
        seed: int = 0,
        *,
        budget: int | None = None,
    ) -> Conditioning:
        """Embed stills: pixels (B, 3, H, W) in [-1, 1], H and W multiples of 8, one still per clip (spec 4).

        `augmentation` is the standard deviation of the pixel noise, on the [-1, 1] scale; `noise` (B, 3, H, W), unit
        normal, takes precedence over `seed`. CLIP sees the clean still, the autoencoder the noisy one. `budget` (bytes)
        bounds the encoder's memory and changes no bit. Raises InputError for settings or sizes out of range.
        """
        micro = MicroConditioning(fps, motion_bucket, augmentation)
        _check_stills(pixels, "pixels")
        noise = draw_noise(pixels.shape, seed) if noise is None else noise
        _check_stills(noise, "noise")
        pixels = pixels.float().cpu()
        noisy = augment(pixels, micro.augmentation, noise.float().cpu())
        context = self.clip_vision.encode(pixels.to(self.device))
        first = self._encode(noisy, budget)
        vector = micro.vector(self.config.unet.vector_dim).expand(pixels.shape[0], -1)
        return Conditioning(context[:, None].float(), first, vector.to(self.device))

    @torch.no_grad()
    def encode_latents(self, pixels: Tensor, *, budget: int | None = None) -> Tensor:
        """Encode pictures (n, 3, H, W) in [-1, 1], one by one -> latents (n, 4, h, w) in sampler units, on the CPU;
        `budget` as in `condition`."""
        return torch.cat([self._encode(one, budget).cpu() for one in pixels.split(1)]) * LATENT_SCALE

    @torch.no_grad()
    def with_views(
        self, cond: Conditioning, views: Tensor, *, budget: int | None = None, callback: ProgressFn = silent
    ) -> Conditioning:
        """The conditioning of one still with a picture of its own for each frame: views (T, 3, H, W) in [-1, 1], the
        first of which is the still, as `motion.filmed` and `motion.dragged` make them; `first` becomes (1, T, 4, h, w).
        `budget` as in `condition`; callback hears of each view that is encoded. Raises InputError for other shapes."""
        _check_stills(views, "views")
        if views.ndim != 4 or not len(views) or views.shape[1] != 3 or cond.first.ndim != 4 or cond.rows != 1:
            given = f"views {tuple(views.shape)} and conditioning {tuple(cond.first.shape)}"
            raise InputError(f"{given}: give views (T, 3, H, W), and what `condition` gave for one still")
        encoded = itertools.count(1)

        def encode(view: Tensor) -> Tensor:
            latent = self._encode(view, budget)
            callback(Progress("condition", next(encoded), len(views)))
            return latent

        return replace(cond, first=view_latents(cond.first, views.float().cpu(), encode))

    def _encode(self, pixels: Tensor, budget: int | None) -> Tensor:
        """The unscaled latents of pixels from the host, in float32 on the device."""
        return self.vae.encode(pixels.to(self.device), budget=budget or self._free_for_encoding(pixels)).float()

    def _free_for_encoding(self, stills: Tensor) -> int | None:
        """The encoder's budget. Free memory is only an estimate, so it never drops below the leanest plan."""
        spare = spare_bytes(self.device)
        return spare and max(spare, self.vae.least_encode_plan(stills.shape, self.device).device_bytes)

    def _chunk_that_fits(self, shape: tuple[int, ...], circular: bool) -> int | None:
        """The chunk that fits the host's free memory when decoding latents (T, 4, h, w); None for a device with its own
        memory. A chunk rather than a budget, which decoding again in float32 after an overflow could exceed."""
        spare = None if has_own_memory(self.device) else spare_bytes(self.device)
        if spare is None:
            return None
        least = self.vae.least_plan(shape, shape[0], self.device, circular).device_bytes
        budget = max(spare, least)
        return self.vae.decode_plan(shape, shape[0], self.device, budget=budget, circular=circular).keep

    def sample(
        self,
        noise: Tensor,
        cond: Conditioning,
        sigmas: Tensor,
        guidance: Tensor,
        sampler: str | Sampler = "euler",
        callback: Callable[[dict[str, Any]], None] | None = None,
        **how: Any,
    ) -> Tensor:
        """Turn unit-normal noise (B * T, 4, h, w) into latents of the same shape, float32, in sampler units.

        Scales the noise as the reference does, then calls `sample_from`; see there for `how` and for what is raised.
        """
        check_sigmas(sigmas, may_rise=True)
        start = noisy_start(noise.to(self.device), sigmas)
        return self.sample_from(start, cond, sigmas, guidance, sampler, callback, **how)

    @torch.no_grad()
    def sample_from(
        self,
        x: Tensor,
        cond: Conditioning,
        sigmas: Tensor,
        guidance: Tensor,
        sampler: str | Sampler = "euler",
        callback: Callable[[dict[str, Any]], None] | None = None,
        *,
        seed: int = 0,
        joint: bool | None = None,
        interval: GuidanceInterval | None = None,
        stream_weights: bool | None = None,
        wrap: Wrap | None = None,
        split: GuidanceSplit | None = None,
        reuse: FeatureReuse | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample from a state x (B * T, 4, h, w) at the level sigmas[0], in sampler units; it stays on its device.

        sigmas (n + 1,): decreasing to 0, or to the level at which to stop. guidance (T,): one scale per frame.
        sampler: an entry of `SAMPLERS` or a function with their signature, such as k-diffusion's. seed: for samplers
        that take a `noise_sampler`. joint: whether both guidance branches share a pass, which changes memory and, up to
        rounding, not the result. stream_weights: whether the UNet's weights visit the device layer by layer; None means
        only if they were left on the host. wrap: replaces the denoiser by another (`svd_core.motion`). split: runs one
        branch here and the other in another process, with the same bits as `joint` False. reuse: approximates.
        callback: as in k-diffusion. options: passed to the sampler.

        If the device runs out of memory, its UNet weights are moved to the host and sampling continues with the same
        bits. Raises InputError if that is not enough, for an unknown sampler and for tensors that do not fit.
        """
        _check_sampling(x, cond, sigmas, guidance, sampler)
        run = sampler_named(sampler) if isinstance(sampler, str) else sampler
        joint = _fits_joint(cond.rows * len(guidance), x) if joint is None else joint
        network = self.unet if reuse is None else partial(self.unet, reuse=reuse)
        denoise = GuidedDenoiser(network, cond.to(self.device), guidance, joint, interval, self.dtype, split)
        options = _added_noise(run, seed, x) | options
        with self._lasting(denoise, stream_weights) as lasting:
            model = lasting if wrap is None else wrap(lasting)
            return run(model, x, sigmas, callback=callback, **options)

    @contextmanager
    def _lasting(self, denoise: GuidedDenoiser, stream_weights: bool | None) -> Iterator[SteppingDown]:
        """The denoiser with its weights available and recovery from running out of memory."""
        visit = not self._unet_is_there if stream_weights is None else stream_weights
        with ExitStack() as stack:
            stack.enter_context(self._weights_at_hand(visit))
            yield SteppingDown(denoise, self._leaner(stack, visit))

    @property
    def _unet_is_there(self) -> bool:
        return next(self.unet.parameters()).device.type == self.device.type

    def _weights_at_hand(self, visit: bool) -> AbstractContextManager[None]:
        """The UNet's weights on the device: all of them, or layer by layer from the host."""
        self.unet.to("cpu" if visit else self.device)
        return visiting(self.unet.layers(), self.device) if visit else nullcontext()

    def _leaner(self, stack: ExitStack, visit: bool) -> Iterator[None]:
        """Free more device memory at each step, after memory ran out; no step changes a bit."""
        release_unused(self.device)
        yield
        if has_own_memory(self.device) and not visit:
            stack.enter_context(self._weights_at_hand(visit=True))
            release_unused(self.device)
            yield

    def plan(
        self, frames: int, width: int, height: int, memory: int | None = None, *, reuse: bool = False
    ) -> Plan | None:
        """How a clip of this size would run in `memory` bytes of the device, model weights included; `reuse` says
        whether features are kept between steps.

        `memory` None plans for the free memory, falling back to the leanest plan if none fits; it returns None on a
        device other than CUDA. Raises InputError if a given `memory` is not enough.
        """
        return self._planned(Job(self.config, frames, width, height, reuse=reuse, **self._place), memory)

    @property
    def _place(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device": self.device, "weights": stored_as(self.unet)}

    def _planned(self, job: Job, memory: int | None) -> Plan | None:
        if memory is not None:
            return plan_render(job, memory)
        free = free_bytes(self.device)
        return None if free is None else plan_or_leanest(job, free + self._resident_bytes())

    def _resident_bytes(self) -> int:
        weights = (weight for part in (self.unet, self.vae, self.clip_vision) for weight in part.parameters())
        return sum(weight.nbytes for weight in weights if weight.device.type == self.device.type)

    @torch.no_grad()
    def decode_latents(
        self,
        latents: Tensor,
        *,
        chunk: int | None = None,
        budget: int | None = None,
        circular: bool = False,
        callback: ProgressFn | None = None,
    ) -> np.ndarray:
        """Decode latents (T, 4, h, w) of one clip, in sampler units -> (T, H, W, 3) float32 in [0, 1]; circular for a
        loop.

        Chunk and budget change no bit. Without either, free memory decides: on CUDA it is the budget; for a device that
        shares the host's memory it is only an estimate, so the leanest plan is always allowed. Raises InputError naming
        the frames of latents that are not finite.
        """
        _check_finite(latents)
        report = callback or silent
        report(Progress("decode", 0, 1))
        if chunk is None and budget is None:
            budget, chunk = free_bytes(self.device), self._chunk_that_fits(tuple(latents.shape), circular)
        z = (latents.float() / LATENT_SCALE).to(self.device)
        pixels = self.vae.decode(z, num_frames=z.shape[0], chunk=chunk, budget=budget, circular=circular)
        frames = ((pixels.float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        report(Progress("decode", 1, 1))
        return frames

    def check_decode(
        self, size: tuple[int, int, int], chunk: int | None, budget: int | None, circular: bool = False
    ) -> None:
        """Raise InputError if `decode_latents` would reject the chunk or budget for a clip of (T, H, W) pixels; called
        before the expensive work."""
        frames, *sides = size
        shape = (frames, LATENT_CHANNELS, *(side // PIXELS_PER_LATENT for side in sides))
        self.vae.decode_plan(shape, frames, self.device, chunk, budget, circular=circular)

    def animate(
        self,
        image: Any,
        frames: int | None = None,
        steps: int | None = None,
        *,
        seed: int = 0,
        chunk: int | None = None,
        budget: int | None = None,
        memory: int | None = None,
        callback: ProgressFn | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Animate a picture -> (T, H, W, 3) float32 frames in [0, 1].

        `image` is a PIL image or an array (H, W, 3), uint8 or float in [0, 1]; `settings` are the fields of `Settings`,
        in which None means the variant's own default. `chunk` (frames) and `budget` (bytes) bound the decoder's memory,
        `memory` (bytes) that of the whole render, weights included (see `plan`); none of them changes a pixel.
        """
        chosen = Settings(frames=frames, steps=steps, seed=seed, **settings)
        return self.render(image, chosen, chunk=chunk, budget=budget, memory=memory, callback=callback).frames

    def render(
        self,
        image: Any,
        settings: Settings,
        controls: Controls = NO_CONTROLS,
        *,
        chunk: int | None = None,
        budget: int | None = None,
        memory: int | None = None,
        callback: ProgressFn | None = None,
        joint: bool | None = None,
        split: GuidanceSplit | None = None,
    ) -> Clip:
        """`animate` with control over motion and length, which also returns the latents and all resolved settings;
        joint and split as in `sample_from`.

        With `split`, only the leading process decodes; the other's frames are empty, (0, H, W, 3). Raises InputError
        for controls that do not fit the clip, if possible before any network runs.
        """
        shot = Shot.of(self.config.variant, image, settings, controls)
        limits = {"chunk": chunk, "budget": budget, "memory": memory}
        return self.render_shot(shot, **limits, callback=callback, joint=joint, split=split)

    def render_shot(
        self,
        shot: Shot,
        *,
        chunk: int | None = None,
        budget: int | None = None,
        memory: int | None = None,
        callback: ProgressFn | None = None,
        joint: bool | None = None,
        split: GuidanceSplit | None = None,
    ) -> Clip:
        """`render` of a picture that is fitted and checked already; the shot must be one of this model's variant.
        Raises InputError for a chunk, budget or memory that it cannot be rendered in."""
        plan = self._planned(shot.job(self.config, **self._place), memory)
        encoding, budget = _bounds(plan, memory, budget)
        self.check_decode(shot.size, chunk, budget, shot.controls.loop)
        how = {"joint": joint, "split": split}
        return Render(self, shot, plan, encoding, callback or silent, how).clip(chunk, budget)

    def fit(self, image: Any, settings: Settings) -> tuple[np.ndarray, Settings, str]:
        """Fit a picture, as `animate` takes it, to the size of the clip. Returns it as (H, W, 3) float32 in [0, 1], the
        settings with that size, and a sentence on what was done."""
        return fit_picture(image, settings, self.config.variant)


def _check_sampling(x: Tensor, cond: Conditioning, sigmas: Tensor, guidance: Tensor, sampler: str | Sampler) -> None:
    """Raise InputError for tensors that do not fit together. Schedules may rise only for a sampler function, which may
    accept that."""
    check_sigmas(sigmas, may_rise=not isinstance(sampler, str))
    check_guidance(guidance)
    check_size(x, cond)
    _refuse_unless_finite(x, "the noise or latents that sampling starts from")
    _refuse_unless_finite(guidance, "guidance")


def _check_stills(stills: Tensor, name: str) -> None:
    """Raise InputError unless pixels or noise (B, 3, H, W) are a tensor of finite numbers."""
    if not isinstance(stills, Tensor):
        raise InputError(f"{name} of class {type(stills).__name__} are no tensor: give one of shape (B, 3, H, W)")
    _refuse_unless_finite(stills, name)


def _refuse_unless_finite(tensor: Tensor, name: str) -> None:
    if not torch.isfinite(tensor).all():
        raise InputError(f"NaN or infinity in {name} would spoil every frame: give finite numbers")


def _added_noise(run: Sampler, seed: int, x: Tensor) -> dict[str, NoiseSampler]:
    """The `noise_sampler` keyword for a sampler; empty if its function does not take one."""
    if not is_whole(seed):
        raise InputError(f"seed {seed!r} is not a whole number: give one that is not negative")
    if not _takes(run, "noise_sampler"):
        return {}
    # Offset the seed so that the added noise differs from the starting noise.
    return {"noise_sampler": seeded_noise((operator.index(seed) + 1) % 2**64, x)}


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled functions may have no signature
        return True
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _bounds(plan: Plan | None, memory: int | None, budget: int | None) -> tuple[int | None, int | None]:
    """Byte budgets of the encoder and the decoder. Without a plan or `memory`: None, and `budget` as given."""
    if plan is None or memory is None:
        return None, budget
    return plan.encode.device_bytes, min(budget or memory, plan.decode.device_bytes)


def _fits_joint(frames: int, x: Tensor) -> bool:
    """Whether `frames` frames of x are few enough for both guidance branches to share a pass."""
    return frames * x.shape[2] * x.shape[3] <= JOINT_GUIDANCE_CELLS


def _check_finite(latents: Tensor) -> None:
    bad = [index for index, frame in enumerate(latents) if not torch.isfinite(frame).all()]
    if bad:
        raise InputError(
            f"latents of frames {bad} hold NaN or infinity and cannot be decoded: sample again in float32 or bfloat16, "
            "with sigmas and guidance near the defaults"
        )
