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
from .model.vae_networks import PIXEL_CHANNELS
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
class Noise:
    """Unit-normal noise for the still, (1, 3, H, W), and for the clip, (T, 4, h, w)."""

    still: Tensor
    clip: Tensor

    @classmethod
    def drawn(cls, settings: Settings) -> Noise:
        """Both by one CPU generator, in the reference's order (spec 6)."""
        generator, size = seeded_generator(settings.seed), (settings.height, settings.width)
        cells = (side // PIXELS_PER_LATENT for side in size)
        still = draw_noise((1, PIXEL_CHANNELS, *size), generator)
        return cls(still, draw_noise((settings.frames, LATENT_CHANNELS, *cells), generator))


@dataclass(frozen=True, slots=True, eq=False)
class Conditioned:
    """What sampling takes from the pictures: the conditioning of the still and of the end picture, the latents of both,
    (1, 4, h, w), and of the frames to continue, (n, 4, h, w), in sampler units. What no method asks for is None."""

    cond: Conditioning
    end: Conditioning | None
    still: Tensor | None
    last: Tensor | None
    continued: Tensor | None


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
        noise = Noise.drawn(shot.settings)
        latents = self._sample(self._condition(noise), noise, reuse)[: shot.size[0]]
        approximated = _reported(reuse)
        if split is not None and not split.leads:
            frames = np.empty((0, *shot.size[1:], 3), np.float32)
        else:
            limits = {"chunk": chunk, "budget": budget}
            frames = self.svd.decode_latents(latents, circular=shot.controls.loop, callback=self.report, **limits)
            frames = _finished(frames, shot)
        sigmas = tuple(shot.sampling.sigmas.tolist())
        return Clip(frames, latents, shot.settings, sigmas, shot.fit_report, approximated)

    def _condition(self, noise: Noise) -> Conditioned:
        shot = self.shot
        parts = shot.settings.frames if shot.is_moved else 1
        self.report(Progress("condition", 0, parts))
        cond = with_curves(self._shown(self._seen(shot.still, noise)), *shot.curves)
        end = None if shot.end is None else self._seen(shot.end, noise)
        still = self._encoded(shot.still if shot.holds_still else None)
        last = self._encoded(shot.end if shot.controls.sequential else None)
        conditioned = Conditioned(cond, end, still, last, self._encoded(shot.given))
        self.report(Progress("condition", parts, parts))
        return conditioned

    def _seen(self, pixels: Tensor, noise: Noise) -> Conditioning:
        chosen = self.shot.settings
        micro = (chosen.fps, chosen.motion_bucket, chosen.augmentation)
        return self.svd.condition(pixels, *micro, noise.still, budget=self.encoding)

    def _shown(self, cond: Conditioning) -> Conditioning:
        """The conditioning with a view of the still for each frame, if anything moves it."""
        if not self.shot.is_moved:
            return cond
        return self.svd.with_views(cond, self.shot.views(), budget=self.encoding, callback=self.report)

    def _encoded(self, pixels: Tensor | None) -> Tensor | None:
        return None if pixels is None else self.svd.encode_latents(pixels, budget=self.encoding)

    def _sample(self, inputs: Conditioned, noise: Noise, reuse: FeatureReuse | None) -> Tensor:
        """The clip's latents (T, 4, h, w), on the CPU."""
        shot, sampling = self.shot, self.shot.sampling
        steps = len(sampling.sigmas) - 1
        self.report(Progress("sample", 0, steps))

        def step_done(state: dict[str, Any]) -> None:
            self.report(Progress("sample", state["i"] + 1, steps))

        methods = _all(self._methods(inputs))
        more = {"seed": shot.settings.seed, "interval": sampling.interval, "reuse": reuse, "wrap": methods, **self.how}
        more["stream_weights"] = self.plan and self.plan.stream_weights
        args = (self._start(inputs, noise), inputs.cond, sampling.sigmas, sampling.guidance, _sampler(shot), step_done)
        return self.svd.sample_from(*args, **more, **sampling.options).cpu()

    def _start(self, inputs: Conditioned, noise: Noise) -> Tensor:
        """The state that sampling starts from: on the host for clips in windows, else on the device."""
        shot, settings = self.shot, self.shot.settings
        latent = analytic_start(inputs.still, settings.frames, settings.seed) if shot.controls.unstick > 0 else None
        place = "cpu" if shot.windows else self.svd.device
        return noisy_start(noise.clip.to(place), shot.sampling.sigmas, latent)

    def _methods(self, inputs: Conditioned) -> list[Wrap]:
        """The denoiser wrappers to apply, innermost first."""
        shot, made = self.shot, []
        if shot.controls.bounded:
            made.append(_between(shot, inputs))
        if shot.windows:
            made.append(self._long_take(inputs))
        if shot.brush:
            cells, levels = shot.brush.cells(), shot.sampling.sigmas[:-1].tolist()
            made.append(lambda denoise: Brushed(denoise, cells, inputs.still, levels[-1], levels[0]))
        return made

    def _long_take(self, inputs: Conditioned) -> Wrap:
        windows, colour, hold = self.shot.windows, Statistics.of(inputs.still), self.shot.controls.colour_hold
        return lambda denoise: LongTake(denoise, windows, self.svd.device, colour, hold, inputs.continued)


def _between(shot: Shot, inputs: Conditioned) -> Wrap:
    end, last = inputs.end or inputs.cond, inputs.still if inputs.last is None else inputs.last
    held = (inputs.still, last) if shot.controls.sequential else None
    return lambda denoise: Between(denoise, end, held, shot.controls.loop)


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
