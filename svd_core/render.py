"""The stages of a render in order: conditioning, sampling, decode.

The methods of `motion` wrap the denoiser, change what it starts from, or finish the decoded frames; without controls
none of them is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .clip import Clip, Progress, ProgressFn
from .conditioning import Conditioning, draw_noise, seeded_generator
from .config import LATENT_CHANNELS, PIXELS_PER_LATENT
from .model.reuse import FeatureReuse
from .motion import (
    Between,
    Brushed,
    ClipDenoiser,
    LongTake,
    Statistics,
    Wrap,
    analytic_start,
    composite,
    hold_colours,
    sample_in_turns,
    sample_sequential,
    with_curves,
)
from .planning import Plan
from .sampling import Sampler, noisy_start, sampler_named
from .settings import Settings
from .shot import Shot

if TYPE_CHECKING:
    from .pipeline import StableVideo


@dataclass(frozen=True, slots=True, eq=False)
class Render:
    """A shot on its way through the networks.

    plan: how it runs in the device's memory, or None where that is not planned. encoding: the encoder's budget in
    bytes, None for what is free. how: more options of `StableVideo.sample_from`.
    """

    svd: StableVideo
    shot: Shot
    plan: Plan | None
    encoding: int | None
    report: ProgressFn
    how: dict[str, Any]

    def clip(self, chunk: int | None, budget: int | None) -> Clip:
        """The finished clip. chunk and budget are the decoder's; where another process decodes, frames are empty."""
        shot, split = self.shot, self.how.get("split")
        reuse = FeatureReuse(shot.settings.reuse) if shot.settings.reuse > 0 else None
        latents = self._sample(self._condition(), reuse)[: shot.size[0]]
        approximated = _reported(reuse)
        if split is not None and not split.leads:
            frames = np.empty((0, *shot.size[1:], 3), np.float32)
        else:
            how = {"chunk": chunk, "budget": budget, "circular": shot.controls.loop, "callback": self.report}
            frames = _finished(self.svd.decode_latents(latents, **how), shot)
        sigmas = tuple(shot.sampling.sigmas.tolist())
        return Clip(frames, latents, shot.settings, sigmas, shot.fit_report, approximated)

    def _condition(self) -> Conditioning:
        self.report(Progress("condition", 0, 1))
        cond = with_curves(self._conditioned(self.shot.still), *self.shot.curves)
        self.report(Progress("condition", 1, 1))
        return cond

    def _conditioned(self, pixels: Tensor) -> Conditioning:
        chosen = self.shot.settings
        micro = (chosen.fps, chosen.motion_bucket, chosen.augmentation)
        return self.svd.condition(pixels, *micro, draw(pixels, chosen)[0], budget=self.encoding)

    def _encoded(self, pixels: Tensor) -> Tensor:
        return self.svd.encode_latents(pixels, budget=self.encoding)

    def _sample(self, cond: Conditioning, reuse: FeatureReuse | None) -> Tensor:
        """The clip's latents (T, 4, h, w), on the CPU."""
        shot, sampling = self.shot, self.shot.sampling
        steps = len(sampling.sigmas) - 1
        self.report(Progress("sample", 0, steps))

        def step_done(state: dict[str, Any]) -> None:
            self.report(Progress("sample", state["i"] + 1, steps))

        still = self._encoded(shot.still) if shot.holds_still else None
        more = {"seed": shot.settings.seed, "interval": sampling.interval, "reuse": reuse, **self.how}
        more |= {"stream_weights": self.plan and self.plan.stream_weights, "wrap": _all(self._methods(cond, still))}
        args = (self._start(still), cond, sampling.sigmas, sampling.guidance, _sampler(shot), step_done)
        return self.svd.sample_from(*args, **more, **sampling.options).cpu()

    def _start(self, still: Tensor | None) -> Tensor:
        """The state that sampling starts from: on the host for clips in windows, else on the device."""
        shot, settings = self.shot, self.shot.settings
        latent = analytic_start(still, settings.frames, settings.seed) if shot.controls.unstick > 0 else None
        noise = draw(shot.still, settings)[1].to("cpu" if shot.windows else self.svd.device)
        return noisy_start(noise, shot.sampling.sigmas, latent)

    def _methods(self, cond: Conditioning, still: Tensor | None) -> list[Wrap]:
        """The denoiser wrappers to apply, innermost first."""
        shot, made = self.shot, []
        if shot.controls.bounded:
            made.append(self._between(cond, still))
        if shot.windows:
            made.append(self._long_take(still))
        if shot.brush:
            cells, levels = shot.brush.cells(), shot.sampling.sigmas[:-1].tolist()
            made.append(lambda denoise: Brushed(denoise, cells, still, levels[-1], levels[0]))
        return made

    def _between(self, cond: Conditioning, still: Tensor | None) -> Wrap:
        shot = self.shot
        end = cond if shot.end is None else self._conditioned(shot.end)
        held = None
        if shot.controls.sequential:
            held = still, still if shot.end is None else self._encoded(shot.end)
        return lambda denoise: Between(denoise, end, held, shot.controls.loop)

    def _long_take(self, still: Tensor) -> Wrap:
        shot = self.shot
        given = None if shot.given is None else self._encoded(shot.given)
        colour, hold = Statistics.of(still), shot.controls.colour_hold
        return lambda denoise: LongTake(denoise, shot.windows, self.svd.device, colour, hold, given)


def _all(methods: Sequence[Wrap]) -> Wrap:
    def wrap(denoise: ClipDenoiser) -> ClipDenoiser:
        return reduce(lambda inner, method: method(inner), methods, denoise)

    return wrap


def _sampler(shot: Shot) -> str | Sampler:
    if shot.windows and not shot.controls.fused:
        return partial(sample_in_turns, windows=shot.windows, sampler=sampler_named(shot.settings.sampler))
    return sample_sequential if shot.controls.sequential else shot.settings.sampler


def _finished(frames: np.ndarray, shot: Shot) -> np.ndarray:
    """Decoded frames with the methods that work on pixels applied."""
    if shot.windows:
        frames = hold_colours(frames, shot.controls.colour_hold)
    if shot.brush is None:
        return frames
    opacity = shot.brush.opacity(shot.controls.feather).numpy()
    return composite(frames, shot.picture, opacity[: len(frames)] if len(opacity) > 1 else opacity)


def _reported(reuse: FeatureReuse | None) -> str:
    """A sentence on what was approximated ("" without reuse). Frees the kept features."""
    if reuse is None:
        return ""
    reuse.forget()
    return reuse.report()


def draw(pixels: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """The noise on the still, shaped like pixels, and on the clip, (T, 4, h, w), drawn by one CPU generator in the
    reference's order (spec 6)."""
    generator = seeded_generator(settings.seed)
    size = (settings.height // PIXELS_PER_LATENT, settings.width // PIXELS_PER_LATENT)
    on_still = draw_noise(pixels.shape, generator)
    return on_still, draw_noise((settings.frames, LATENT_CHANNELS, *size), generator)
