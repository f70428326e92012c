"""The pipeline from a picture to a clip, without any host: checkpoint -> conditioning -> sampling -> decode."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .checkpoint import load_modules
from .conditioning import Conditioning, MicroConditioning, augment, draw_noise, seeded_generator
from .config import JOINT_GUIDANCE_CELLS, LATENT_CHANNELS, LATENT_SCALE, PIXELS_PER_LATENT, ModelConfig
from .device_memory import free_bytes, has_own_memory, release_unused, spare_bytes
from .errors import InputError
from .media import as_image, default_size, fit_image, round_size
from .model.attention_kinds import attention_named
from .model.backend import Backend, scaled_dot_product
from .model.clip_vision import CLIPVision
from .model.reuse import FeatureReuse
from .model.storage import STORES, stored_as
from .model.unet import VideoUNet
from .model.vae import VideoVAE
from .model.weights import visiting
from .motion import Wrap
from .planning import Job, Plan, plan_or_leanest, plan_render
from .sampling import (
    SAMPLERS,
    GuidanceInterval,
    GuidanceSplit,
    GuidedDenoiser,
    NoiseSampler,
    Sampler,
    SteppingDown,
    align_your_steps_sigmas,
    check_guidance,
    check_sigmas,
    check_size,
    constant_guidance,
    curve_guidance,
    edm_sigmas,
    linear_guidance,
    noisy_start,
    seeded_noise,
    sigmas_from_list,
    trapezoid_guidance,
    triangle_guidance,
)
from .settings import AttentionName, Settings, WeightsName, is_whole

_SCHEDULES = {"edm": edm_sigmas, "align_your_steps": align_your_steps_sigmas}
_CURVES = {"linear": linear_guidance, "triangle": triangle_guidance, "trapezoid": trapezoid_guidance}
_CHURNING = ("euler", "heun")


@dataclass(frozen=True, slots=True)
class Progress:
    """`index` of `total` parts of a stage are done."""

    stage: Literal["condition", "sample", "decode"]
    index: int
    total: int


ProgressFn = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Clip:
    """A finished clip and everything that determined it.

    frames (T, H, W, 3) float32 in [0, 1]; latents (T, 4, h, w) float32 in sampler units; settings with every default
    filled in; sigmas as sampled; fit_report says in words how the picture was resized, reuse_report what was
    approximated ("" if nothing was).
    """

    frames: np.ndarray
    latents: Tensor
    settings: Settings
    sigmas: tuple[float, ...]
    fit_report: str
    reuse_report: str = ""


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
        first = self.vae.encode(noisy.to(self.device), budget=budget or self._free_for_encoding(noisy))
        vector = micro.vector(self.config.unet.vector_dim).expand(pixels.shape[0], -1)
        return Conditioning(context[:, None].float(), first.float(), vector.to(self.device))

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
        weights = stored_as(self.unet)
        job = Job(self.config, frames, width, height, self.dtype, self.device, reuse, weights)
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
        report = callback or _silent
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
        *,
        chunk: int | None = None,
        budget: int | None = None,
        memory: int | None = None,
        callback: ProgressFn | None = None,
        joint: bool | None = None,
        split: GuidanceSplit | None = None,
    ) -> Clip:
        """`animate`, but also returns the latents and all resolved settings; joint and split as in `sample_from`.

        With `split`, only the leading process decodes; the other's frames are empty, (0, H, W, 3).
        """
        report = callback or _silent
        settings = settings.for_variant(self.config.variant)
        plan = plan_sampling(settings)
        still, settings, fit_report = self.fit(image, settings)
        pixels = as_pixels(still)
        way = self.plan(settings.frames, settings.width, settings.height, memory, reuse=settings.reuse > 0)
        encoding, budget = _bounds(way, memory, budget)
        self.check_decode((settings.frames, settings.height, settings.width), chunk, budget)
        pixel_noise, noise = draw(pixels, settings)

        report(Progress("condition", 0, 1))
        micro = (settings.fps, settings.motion_bucket, settings.augmentation)
        cond = self.condition(pixels, *micro, pixel_noise, budget=encoding)
        report(Progress("condition", 1, 1))
        reuse = reuse_for(settings)
        how = {"joint": joint, "split": split, "reuse": reuse}
        latents = self._sample(noise, cond, plan, settings, way, report, how)
        found = (plan.sigmas, settings, fit_report, reported(reuse))
        if split is not None and not split.leads:
            return _clip(np.empty((0, settings.height, settings.width, 3), np.float32), latents, *found)
        frames = self.decode_latents(latents, chunk=chunk, budget=budget, callback=report)
        return _clip(frames, latents, *found)

    def _sample(
        self,
        noise: Tensor,
        cond: Conditioning,
        plan: SamplingPlan,
        settings: Settings,
        way: Plan | None,
        report: ProgressFn,
        how: dict[str, Any],
    ) -> Tensor:
        """`sample` with the options from the settings and `how` -> (T, 4, h, w) on the CPU."""
        steps = len(plan.sigmas) - 1
        report(Progress("sample", 0, steps))

        def step_done(state: dict[str, Any]) -> None:
            report(Progress("sample", state["i"] + 1, steps))

        stream = None if way is None else way.stream_weights
        more = {"seed": settings.seed, "interval": plan.interval, "stream_weights": stream, **how, **plan.options}
        return self.sample(noise, cond, plan.sigmas, plan.guidance, settings.sampler, step_done, **more).cpu()

    def fit(self, image: Any, settings: Settings) -> tuple[np.ndarray, Settings, str]:
        """Fit a picture, as `animate` takes it, to the size of the clip. Returns it as (H, W, 3) float32 in [0, 1], the
        settings with that size, and a sentence on what was done."""
        array = as_image(image, settings.background)
        width, height = default_size(array, self.config.variant)
        width, height = round_size(settings.width or width, settings.height or height)
        fitted = fit_image(array, width, height, settings.fit, settings.background)
        return fitted.image, replace(settings, width=width, height=height), fitted.report


NETWORK_DTYPES = torch.float32, torch.bfloat16, torch.float16, torch.float64
"""Dtypes that the networks can compute in."""


def load_checkpoint(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    variant: str | None = None,
    stream_weights: bool = False,
    attention: AttentionName = "auto",
    weights: WeightsName = "whole",
) -> StableVideo:
    """Load an official single file or a diffusers folder.

    stream_weights: leave the UNet's weights in host memory and copy them to the device layer by layer; the same bits,
    slower, about 2.5 GiB less device memory (in 16 bits). attention: "sage" (quantised) or "flash3" (differs by
    rounding) runs the UNet's long sequences on a CUDA device with that package. weights: "int8" (quantised) stores the
    UNet's matrices in 8 bits, which halves the memory of 16 bits and is slower; "fp8" (quantised) multiplies 8-bit
    floats in its transformers, meant for CUDA devices of capability 8.9 or higher and slower elsewhere. variant: an
    entry of `VARIANTS`, for files that do not say whether they are the 14 or the 25 frame model.

    Raises CheckpointError for anything that is not a usable Stable Video Diffusion checkpoint, and InputError for an
    attention package that is not installed, unknown weights, "fp8" on a device without such floats, a missing device
    and an unsupported dtype.
    """
    if weights not in STORES:
        raise InputError(f"weights {weights!r} are not known: choose one of {', '.join(STORES)}")
    if weights == "fp8" and str(device).startswith("mps"):
        raise InputError(f"weights fp8 on {device}, which has no floats of 8 bits: choose int8 or whole")
    if dtype not in NETWORK_DTYPES:
        names = ", ".join(map(str, NETWORK_DTYPES))
        raise InputError(f"dtype {dtype!r} is not one that the networks compute in: give one of {names}")
    device = known_device(device)
    unet_device = "cpu" if stream_weights or weights != "whole" else device
    backend = Backend(attention=attention_named(attention, scaled_dot_product))
    places = {"device": device, "dtype": dtype, "unet_device": unet_device}
    modules = load_modules(path, **places, backend=backend, variant=variant)
    STORES[weights](modules.unet)
    if not stream_weights:
        modules.unet.to(device)
    parts = (modules.config, modules.unet, modules.vae, modules.clip_vision)
    return StableVideo(*parts, device, dtype, modules.detection.variant_note)


def known_device(device: torch.device | str) -> torch.device:
    """Parse a device. Raises InputError if torch does not know it or this machine does not have it."""
    try:
        known = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device {str(device)!r} is not known: give cpu, cuda, cuda:1 or mps") from error
    if not _is_there(known):
        raise InputError(f"device {str(device)!r} is not on this machine: give cpu, or cuda or mps where there is one")
    return known


def _is_there(device: torch.device) -> bool:
    """Whether this machine has the device and can store values on it; found by trying, since not every device type can
    be enumerated."""
    try:
        torch.empty(0, device=device)
    except Exception:  # missing backends raise various errors
        return False
    return device.type != "meta"


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Sampling inputs derived from resolved settings: sigmas (n + 1,), guidance (T,), its interval, and options of the
    sampler."""

    sigmas: Tensor
    guidance: Tensor
    interval: GuidanceInterval | None
    options: dict[str, float]


def plan_sampling(settings: Settings) -> SamplingPlan:
    """Derive and check everything about sampling before any network runs. Raises InputError."""
    sampler_named(settings.sampler)
    if settings.churn and settings.sampler not in _CHURNING:
        raise InputError(
            f"churn {settings.churn} with sampler {settings.sampler}, which has none: "
            f"set churn to 0 or choose {' or '.join(_CHURNING)}"
        )
    interval = GuidanceInterval(*settings.guidance_interval) if settings.guidance_interval else None
    options = {"s_churn": settings.churn} if settings.churn else {}
    return SamplingPlan(sigmas_for(settings), guidance_for(settings), interval, options)


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


def sampler_named(name: str) -> Sampler:
    """An entry of `SAMPLERS`. Raises InputError listing them for an unknown name."""
    if name not in SAMPLERS:
        raise InputError(f"sampler {name!r} is not known: choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def sigmas_for(settings: Settings) -> Tensor:
    """The noise levels (n + 1,) that resolved settings ask for."""
    if settings.sigmas is not None:
        return sigmas_from_list(settings.sigmas)
    return _SCHEDULES[settings.schedule](settings.steps)


def guidance_for(settings: Settings) -> Tensor:
    """The guidance scales (T,) that resolved settings ask for."""
    frames = settings.frames
    if settings.guidance_points is not None:
        return curve_guidance(frames, settings.guidance_points)
    if settings.guidance_curve == "constant":
        return constant_guidance(frames, settings.max_guidance)
    return _CURVES[settings.guidance_curve](frames, settings.min_guidance, settings.max_guidance)


def reuse_for(settings: Settings) -> FeatureReuse | None:
    """A feature cache for one run, or None if the settings do not ask for reuse."""
    return FeatureReuse(settings.reuse) if settings.reuse > 0 else None


def reported(reuse: FeatureReuse | None) -> str:
    """A sentence on what was approximated in a run ("" without reuse). Clears the cache."""
    if reuse is None:
        return ""
    reuse.forget()
    return reuse.report()


def as_pixels(image: np.ndarray) -> Tensor:
    """A picture (H, W, 3) in [0, 1] -> (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None] * 2 - 1


def draw(pixels: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """The noise on the still, shaped like pixels, and on the clip, (T, 4, h, w), drawn by one CPU generator in the
    reference's order (spec 6)."""
    generator = seeded_generator(settings.seed)
    size = (settings.height // PIXELS_PER_LATENT, settings.width // PIXELS_PER_LATENT)
    on_still = draw_noise(pixels.shape, generator)
    return on_still, draw_noise((settings.frames, LATENT_CHANNELS, *size), generator)


def _bounds(way: Plan | None, memory: int | None, budget: int | None) -> tuple[int | None, int | None]:
    """Byte budgets of the encoder and the decoder. Without a plan or `memory`: None, and `budget` as given."""
    if way is None or memory is None:
        return None, budget
    return way.encode.device_bytes, min(budget or memory, way.decode.device_bytes)


def _clip(
    frames: np.ndarray, latents: Tensor, sigmas: Tensor, settings: Settings, fit_report: str, reuse_report: str
) -> Clip:
    return Clip(frames, latents, settings, tuple(sigmas.tolist()), fit_report, reuse_report)


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


def _silent(_: Progress) -> None:
    """The default callback: does nothing."""
