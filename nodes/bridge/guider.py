"""GUIDER: guidance with a weight for every frame, on our MODEL and on ComfyUI's own.

Errors in the connected inputs are reported before the model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch

from ...svd_core.config import PIXELS_PER_LATENT
from ...svd_core.errors import InputError
from ...svd_core.motion import curve_values
from ..checks import damaged_frames, require_latents, whole_clips
from .model import StableVideoModel
from .motion.combined import guidance_of, require_one_clip, require_sampler, windows_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor

Weights = Callable[[int], "Tensor"]
"""Function from the number of frames T to guidance weights (T,)."""

WRAPPER_KEY = "stable_video"

WIDEST = 16
"""Lower bound on the values per channel and latent cell at the UNet's widest point."""

_LEFT_BY_A_RUN = ("conds", "inner_model", "loaded_models")
"""Attributes that ComfyUI's guider drops at the end of a run, but keeps, on the device, if the run was cancelled."""


@dataclass(frozen=True, slots=True)
class Clips:
    """A batch of frames: `count` clips of `num_frames`."""

    count: int
    num_frames: int


class ClipGuider(comfy.samplers.CFGGuider):
    """A native guider whose scale follows the frames of each clip: D = D_u + w_t (D_c - D_u).

    Replaces any guidance that earlier nodes put on the model. If every weight is 1 the unconditional pass is skipped,
    as ComfyUI does for a scale of 1.
    """

    def __init__(self, patcher: ModelPatcher, positive: list, negative: list, weights: Weights) -> None:
        require_video_model(patcher)
        super().__init__(patcher)
        self.set_conds(positive, negative)
        drawn = guidance_of(patcher)
        self.weights = weights if drawn is None else partial(curve_values, drawn)

    def require(self, sampler: Any, clips: Clips) -> None:
        """Raise InputError for a sampler that the MODEL's methods do not support."""
        require_sampler(self.model_patcher, _name_of(sampler), clips.num_frames)

    def sample(self, noise: Tensor, latent_image: Tensor, sampler: Any, *args: Any, **kwargs: Any) -> Tensor:
        """`CFGGuider.sample` for latents (B * T, 4, h, w). Raises InputError if latent, conditioning, sampler and model
        do not match."""
        clips = self.clips(latent_image)
        self.require(sampler, clips)
        given = self.model_options
        self.model_options = self._guided(given, clips)
        try:
            return super().sample(noise, latent_image, sampler, *args, **kwargs)
        finally:
            self.model_options = given
            for name in _LEFT_BY_A_RUN:
                self.__dict__.pop(name, None)

    def clips_of(self, latent: dict[str, Any]) -> Clips:
        """`clips` of a LATENT, whose own clip length has to be that of the conditioning. Raises InputError."""
        clips = self.clips(latent["samples"])
        wanted = self.original_conds["positive"][0].get("num_video_frames")
        own = latent.get("num_video_frames", wanted)
        if wanted is not None and own != wanted:
            raise InputError(
                f"the latent is for clips of {own} frames and the conditioning for clips of {wanted}: take positive, "
                "negative and latent from the same Stable Video Conditioning"
            )
        return clips

    def clips(self, latent: Tensor) -> Clips:
        """How the frames of a latent group into clips, according to the conditioning. Raises InputError."""
        require_latents(latent)
        positive = self.original_conds["positive"][0]
        num_frames = positive.get("num_video_frames", latent.shape[0])
        clips = Clips(whole_clips(latent.shape[0], num_frames), num_frames)
        require_methods(clips, self.model_patcher)
        require_same_clips(positive, latent, clips)
        require_embedding(positive, self.model_patcher)
        require_memory(latent, self.model_patcher)
        return clips

    def _guided(self, given: dict[str, Any], clips: Clips) -> dict[str, Any]:
        """The model's options for one run."""
        weights = self.weights(frames_at_once(self.model_patcher, clips.num_frames))
        options = comfy.model_patcher.create_model_options_clone(given)
        options.pop("sampler_cfg_function", None)
        self.set_cfg(weights.max().item())
        if bool((weights != 1).any()):
            scales = weights.repeat(clips.count)[:, None, None, None].to(self.model_patcher.load_device)
            options |= {"sampler_cfg_function": _per_frame(scales), "disable_cfg1_optimization": True}
        if not _shares_branches(options, self.model_patcher):
            options["sampler_calc_cond_batch_function"] = _branches_apart
        if clips.count > 1 and not isinstance(self.model_patcher.model, StableVideoModel):
            kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
            wrapper = _clips_apart(clips.num_frames)
            comfy.patcher_extension.add_wrapper_with_key(kind, WRAPPER_KEY, wrapper, options, is_model_options=True)
        return options


def _name_of(sampler: Any) -> str:
    """ComfyUI's name for the function of a sampler, empty if it has none."""
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")


def _per_frame(scales: Tensor) -> Callable[[dict[str, Any]], Tensor]:
    """ComfyUI's guidance function for scales (N, 1, 1, 1); it works on x - denoised."""

    def guide(args: dict[str, Any]) -> Tensor:
        cond, uncond = args["cond"], args["uncond"]
        return uncond + scales.to(cond) * (cond - uncond)

    return guide


def _branches_apart(args: dict[str, Any]) -> list[Tensor]:
    """Run both guidance branches one after the other. ComfyUI batches them when enough memory is free, which rounds
    differently: the same seed would not always give the same bits. Batching is no faster (spec 5.4)."""
    conds, x = args["conds"], args["input"]

    def alone(place: int) -> Tensor:
        # The other branches are given as None and not left out: patches tell a branch by its place.
        given = [cond if other == place else None for other, cond in enumerate(conds)]
        return comfy.samplers.calc_cond_batch(args["model"], given, x, args["sigma"], args["model_options"])[place]

    return [alone(place) if cond else torch.zeros_like(x) for place, cond in enumerate(conds)]


def _shares_branches(options: dict[str, Any], patcher: ModelPatcher) -> bool:
    """Whether something else already controls how branches run: a cache that needs both, or several GPUs. ComfyUI puts
    the MODEL's own wrappers into the options only when the run begins."""
    kind = comfy.patcher_extension.WrappersMP.CALC_COND_BATCH
    wrapped = comfy.patcher_extension.get_all_wrappers(kind, options, is_model_options=True)
    own = patcher.get_all_wrappers(kind)
    return bool(wrapped or own) or "multigpu_clones" in options or "sampler_calc_cond_batch_function" in options


def _clips_apart(num_frames: int) -> Callable[..., Tensor]:
    """Wrapper that passes the clip length to ComfyUI's SVD model, which treats a batch as one clip."""

    def apply(executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return executor(*args, **(kwargs | {"num_video_frames": num_frames}))

    return apply


# Checks


def require_video_model(patcher: ModelPatcher) -> None:
    """Raise InputError for a MODEL of another family."""
    if not isinstance(patcher.model, comfy.model_base.SVD_img2vid):
        raise InputError(
            f"this MODEL is {type(patcher.model).__name__}, not Stable Video Diffusion: connect the model of a video "
            "checkpoint"
        )


def require_same_clips(positive: dict[str, Any], latent: Tensor, clips: Clips) -> None:
    """Raise InputError unless the conditioning's pictures match the latent in size and number."""
    first = positive.get("concat_latent_image")
    if first is None:
        raise InputError("positive holds no picture: connect Stable Video Conditioning, this model reads no text")
    if first.shape[-2:] != latent.shape[-2:]:
        given, needed = _pixels(latent), _pixels(first)
        raise InputError(
            f"the latent is for {given} pixels and the conditioning for {needed}: use the latent of the same Stable "
            "Video Conditioning, or fit its picture to the latent's size"
        )
    if "num_video_frames" in positive and first.shape[0] not in (1, latent.shape[0]):
        described, rest = divmod(first.shape[0], clips.num_frames)
        if rest:
            raise InputError(
                f"the conditioning holds {first.shape[0]} pictures for {clips.count} clips of {clips.num_frames} "
                "frames: take both from the same nodes, without one that cuts or repeats the latent between"
            )
        raise InputError(
            f"the latent holds {clips.count} clips and the conditioning {described}: use the latent of the same Stable "
            "Video Conditioning"
        )


def require_methods(clips: Clips, patcher: ModelPatcher) -> None:
    """Raise InputError if a model set up for one clip gets several, or a clip that its windows do not fit."""
    require_one_clip(patcher, clips.count)
    windows = windows_of(patcher)
    if windows is not None:
        windows.starts(clips.num_frames)


def replaced_guidance(patcher: ModelPatcher) -> str:
    """A sentence if nodes before put a guidance of their own on the MODEL, which `ClipGuider` replaces; else empty."""
    if patcher.model_options.get("sampler_cfg_function") is None:
        return ""
    return (
        "Guidance that a node put on the MODEL, such as RescaleCFG or VideoLinearCFGGuidance, is replaced by this "
        "node's: use ComfyUI's KSampler to keep it."
    )


def frames_at_once(patcher: ModelPatcher, frames: int) -> int:
    """How many frames of a clip the network processes at a time."""
    windows = windows_of(patcher)
    return frames if windows is None else windows.length


def require_embedding(positive: dict[str, Any], patcher: ModelPatcher) -> None:
    """Raise InputError if the picture's embedding does not have the model's context width."""
    width, needed = positive["cross_attn"].shape[-1], patcher.model.model_config.unet_config["context_dim"]
    if width != needed:
        raise InputError(
            f"the conditioning has {width} numbers for the picture and this model reads {needed}: connect the "
            "CLIP_VISION of the same checkpoint to Stable Video Conditioning"
        )


def require_memory(latent: Tensor, patcher: ModelPatcher) -> None:
    """Raise InputError for more frames than the device's whole memory can hold at the widest layer.

    A lower bound: the feed-forward of the finest level alone has 16 values per channel and latent cell (8 for value and
    gate, 4 for the activated gate, 4 for their product). A clip that passes may still exceed the free memory. Context
    windows run part of the frames at a time.
    """
    model = patcher.model
    channels = model.model_config.unet_config["model_channels"]
    frames, _, height, width = latent.shape
    one = WIDEST * channels * height * width * model.get_dtype_inference().itemsize
    native = patcher.model_options.get("context_handler")
    at_once = frames_at_once(patcher, frames) if native is None else min(frames, native.context_length)
    whole = comfy.model_management.get_total_memory(patcher.load_device)
    if at_once * one > whole:
        raise InputError(
            f"{at_once} frames of {_pixels(latent)} need at least {at_once * one / 2**30:.1f} GiB and "
            f"{patcher.load_device} has {whole / 2**30:.1f} GiB: ask for {int(whole // one)} frames at most, or a "
            "smaller picture"
        )


def require_sampled(samples: Tensor, patcher: ModelPatcher) -> None:
    """Raise InputError if the sampled latents hold NaN or infinity."""
    bad = damaged_frames(samples)
    if bad:
        dtype = str(patcher.model_dtype()).removeprefix("torch.")
        raise InputError(
            f"sampling in {dtype} gave NaN or infinity in frames {bad}: start ComfyUI with --bf16-unet or --fp32-unet, "
            "and take out LoRAs and model patches one by one if it stays so"
        )


def _pixels(latent: Tensor) -> str:
    height, width = latent.shape[-2:]
    return f"{width * PIXELS_PER_LATENT}x{height * PIXELS_PER_LATENT}"
