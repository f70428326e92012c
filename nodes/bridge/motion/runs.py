"""Wrappers around a whole run: the memory reserved for it, and where it starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrappersMP

from ....svd_core.config import LATENT_SCALE
from ....svd_core.errors import InputError
from ....svd_core.motion import analytic_start, lowered_sigmas
from ...checks import whole_clips
from .combined import KEY

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor


def reserve_for_windows(patched: ModelPatcher, length: int) -> None:
    """Patch the MODEL so that ComfyUI reserves memory for one window, not for the whole clip."""

    def prepare(executor: Callable[..., Any], model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        shown = [min(noise_shape[0], length), *noise_shape[1:]]
        return executor(model, shown, *args, **kwargs)

    patched.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, KEY)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, prepare)


def start_lower(patched: ModelPatcher, sigma_start: float) -> None:
    """Patch the MODEL so that runs start at a lower noise level, and a new clip from its picture (Analytic-Init)."""

    def sample(
        executor: Callable[..., Tensor],
        noise: Tensor,
        latent: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callable[..., Any] | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
        **more: Any,
    ) -> Tensor:
        given_clip = bool(latent.any())
        if given_clip and sigmas[0] > sigma_start and not bool(noise.any()):
            raise InputError(
                "un-stick starts a whole run lower, and this one goes on from a latent without adding noise: sample in "
                "one part, or set un-stick to 0"
            )
        if sigmas[0] > sigma_start and not given_clip:
            latent = _picture_start(executor.class_obj.conds["positive"][0], latent, seed or 0)
        lowered = lowered_sigmas(sigmas, sigma_start)
        return executor(noise, latent, sampler, lowered, denoise_mask, callback, disable_pbar, seed, **more)

    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample)


def _picture_start(positive: dict[str, Any], latent: Tensor, seed: int) -> Tensor:
    """Starting latents from the picture, unscaled, shaped like the given ones."""
    frames = positive.get("num_video_frames", latent.shape[0])
    first = positive["concat_latent_image"].float()
    clips = whole_clips(latent.shape[0], frames)
    first = first[::frames] if len(first) > 1 else first.expand(clips, -1, -1, -1)
    return (analytic_start(first * LATENT_SCALE, frames, seed) / LATENT_SCALE).to(latent)
