"""Samplers that make directions or windows one after the other, in place of the sampler chosen for a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.samplers
from comfy.patcher_extension import WrappersMP

from ....svd_core.errors import InputError
from ....svd_core.motion import Part, Windows, sample_in_turns, sample_sequential
from .combined import ASKED, KEY

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor


def directions_in_turns(patched: ModelPatcher) -> None:
    """Patch the MODEL to run ViBiDSampler in place of the chosen sampler."""
    _sample_with(patched, lambda chosen: _sample_directions)


def windows_in_turns(patched: ModelPatcher, windows: Windows) -> None:
    """Patch the MODEL so that the chosen sampler makes one window after the other."""
    _sample_with(patched, lambda chosen: partial(_sample_windows, windows=windows, sampler=_as_function(chosen)))


def with_chosen_sampler(patched: ModelPatcher) -> None:
    """Undo `directions_in_turns` and `windows_in_turns`: run the chosen sampler unchanged."""
    patched.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)


def _sample_with(patched: ModelPatcher, instead: Callable[[Any], Callable[..., Tensor]]) -> None:
    """Replace the sampler by `instead(sampler)`, a function with k-diffusion's signature."""

    def sample(executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        chosen = executor.class_obj
        replaced = comfy.samplers.KSAMPLER(instead(chosen), {}, getattr(chosen, "inpaint_options", {}))
        return replaced.sample(*args, **kwargs)

    with_chosen_sampler(patched)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, sample)


def _sample_directions(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
) -> Tensor:
    return sample_sequential(_ByDirection(model, extra_args), x, sigmas, extra_args, callback, disable)


@dataclass(frozen=True, slots=True, eq=False)
class _ByDirection:
    """ComfyUI's model of a run, evaluated in one direction at a time."""

    model: comfy.samplers.KSamplerX0Inpaint
    extra_args: dict[str, Any]
    caches: tuple[_StepCache, _StepCache] = field(default_factory=lambda: (_StepCache(), _StepCache()))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._evaluate("forward", x, sigma)

    def backward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._evaluate("backward", x, sigma)

    def _evaluate(self, direction: str, x: Tensor, sigma: Tensor) -> Tensor:
        given = {**self.extra_args["model_options"], ASKED: direction}
        options = self.caches[direction == "backward"].within(given, self.model)
        return self.model(x, sigma, **{**self.extra_args, "model_options": options})


def _sample_windows(
    model: comfy.samplers.KSamplerX0Inpaint,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    windows: Windows,
    sampler: Callable[..., Tensor],
) -> Tensor:
    return sample_in_turns(_ByWindow(model), x, sigmas, extra_args, callback, disable, windows=windows, sampler=sampler)


def _as_function(chosen: Any) -> Callable[..., Tensor]:
    """A ComfyUI sampler as a function with k-diffusion's signature. Raises InputError if it is not a KSAMPLER."""
    if not isinstance(chosen, comfy.samplers.KSAMPLER):
        raise InputError(
            f"a Long Take in turns runs a sampler once for each window, and {type(chosen).__name__} is not made for "
            "that: choose another sampler, or fusion on Stable Video Long Take"
        )
    return partial(chosen.sampler_function, **chosen.extra_options)


@dataclass(frozen=True, slots=True, eq=False)
class _ByWindow:
    """ComfyUI's model of a run, split into windows."""

    model: comfy.samplers.KSamplerX0Inpaint

    def part(self, part: Part) -> _OneWindow:
        return _OneWindow(self.model, part)


class _OneWindow(comfy.samplers.KSamplerX0Inpaint):
    """ComfyUI's model of a run, restricted to one window, for the sampler of that window."""

    def __init__(self, whole: comfy.samplers.KSamplerX0Inpaint, part: Part) -> None:
        super().__init__(whole.inner_model, whole.sigmas)
        self.latent_image, self.noise = whole.latent_image[part.frames], whole.noise[part.frames]
        self.window, self.cache = part, _StepCache()

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        denoise_mask: Tensor | None,
        model_options: dict[str, Any],
        seed: int | None = None,
    ) -> Tensor:
        mask = denoise_mask if denoise_mask is None or len(denoise_mask) == 1 else denoise_mask[self.window.frames]
        options = self.cache.within({**model_options, ASKED: self.window}, self)
        return super().__call__(x, sigma, mask, options, seed)


_STEP_CACHE = "easycache"
"""Key in `transformer_options` of what ComfyUI's EasyCache or LazyCache keeps from step to step."""


@dataclass(slots=True, eq=False)
class _StepCache:
    """What EasyCache or LazyCache keeps for one window or direction: they take each call for the next step of one clip,
    and EasyCache fails where the noise level rises again."""

    own: Any = None

    def within(self, options: dict[str, Any], model: comfy.samplers.KSamplerX0Inpaint) -> dict[str, Any]:
        """The options of an evaluation with a cache of its own in place of the run's, if that has one."""
        shared = options.get("transformer_options", {})
        if _STEP_CACHE not in shared:
            return options
        if self.own is None:
            self.own = shared[_STEP_CACHE].clone().prepare_timesteps(model.inner_model.inner_model.model_sampling)
        return {**options, "transformer_options": {**shared, _STEP_CACHE: self.own}}
