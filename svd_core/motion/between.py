"""In-between: motion from one picture to another, and loops, with a model that only knows the first frame.

A clip played backwards begins with its end. So the model is called twice: forward from the start, and from the end with
the frames reversed. Time Reversal Fusion (Feng et al., arXiv 2403.14611) blends both results at every evaluation;
ViBiDSampler (Yang et al., arXiv 2410.05651) uses them one after the other, adding noise back in between, and fixes both
ends to the pictures' own latents, which is the closed form of its data consistency step when the measurement is a
frame.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor

from ..conditioning import Conditioning
from ..errors import InputError
from ..sampling.samplers import Callback, NoiseSampler, seeded_noise
from .denoiser import Around, ClipDenoiser


@dataclass(frozen=True, slots=True, eq=False)
class Between:
    """A denoiser with a given first and last picture. Makes two model calls per evaluation.

    end: the conditioning of the picture that the clip ends on; its vector is ignored, so both directions share the
    motion settings. held: latents (B, 4, h, w) of both pictures, sampler units, that replace the first and the last
    frame; with None the model predicts them, and they match their neighbours better. loop: both pictures are the same,
    so ends that are not held are made equal. around: entered for each pass from the end, in which frames are reversed,
    with their numbers. Raises InputError if the two pictures differ in size.
    """

    denoise: ClipDenoiser
    end: Conditioning
    held: tuple[Tensor, Tensor] | None = None
    loop: bool = False
    around: Around = nullcontext

    def __post_init__(self) -> None:
        if self.held is not None and self.held[0].shape != self.held[1].shape:
            first, last = (tuple(latent.shape) for latent in self.held)
            raise InputError(f"start latent {first} and end latent {last}: bring both pictures to one size")

    @property
    def num_frames(self) -> int:
        return self.denoise.num_frames

    def with_conditioning(self, change: Callable[[Conditioning], Conditioning]) -> Between:
        """A copy with the forward pass's conditioning changed; the end picture is kept."""
        return replace(self, denoise=self.denoise.with_conditioning(change))

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Blend both results, each frame mostly from the nearer end. The paper's weights are linear in time; these
        (3 t^2 - 2 t^3) are flat at both ends, so that frames near one end show no ghost of the other."""
        backward = self._predicted_from_end(x, sigma)
        time = torch.linspace(0, 1, self.num_frames, dtype=torch.float32, device=x.device)
        share = (time**2 * (3 - 2 * time)).repeat(x.shape[0] // self.num_frames)
        return self._hold(torch.lerp(self.denoise(x, sigma), backward, share[:, None, None, None]))

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The prediction from the start picture alone."""
        return self._hold(self.denoise(x, sigma))

    def backward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The prediction from the end picture alone; frames go in and come out in playback order."""
        return self._hold(self._predicted_from_end(x, sigma))

    def _predicted_from_end(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self._check(x)
        with self.around(self._reversed(torch.arange(len(x), device="cpu")).tolist()):
            return self._reversed(self.denoise.with_conditioning(self._from_end)(self._reversed(x), sigma))

    def _from_end(self, cond: Conditioning) -> Conditioning:
        vector = cond.vector.flip(1) if cond.vector.ndim == 3 else cond.vector
        end = self.end.to(cond.first.device)
        return Conditioning(end.context, end.first, vector)

    def _reversed(self, x: Tensor) -> Tensor:
        return rearrange(x, "(b t) ... -> b t ...", t=self.num_frames).flip(1).flatten(0, 1)

    def _hold(self, denoised: Tensor) -> Tensor:
        if self.held is None and not self.loop:
            return denoised
        clips = rearrange(denoised, "(b t) c h w -> b t c h w", t=self.num_frames).clone()
        mean = (clips[:, 0] + clips[:, -1]) / 2
        clips[:, 0], clips[:, -1] = (mean, mean) if self.held is None else (each.to(clips) for each in self.held)
        return clips.flatten(0, 1)

    def _check(self, x: Tensor) -> None:
        if self.end.first.shape[-2:] != x.shape[-2:]:
            end, clip = (tuple(8 * side for side in each.shape[-2:]) for each in (self.end.first, x))
            raise InputError(f"the end picture is {end} and the clip {clip} (height, width): fit it to the same size")


class BothWays(Protocol):
    """The model that `sample_sequential` needs, such as `Between`."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor: ...

    def backward(self, x: Tensor, sigma: Tensor) -> Tensor: ...


@torch.no_grad()
def sample_sequential(
    model: BothWays,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """ViBiDSampler (arXiv 2410.05651, algorithm 1) with Euler steps: go down one level with the forward prediction, add
    noise back to the previous level, go down again with the backward prediction. Two model calls per step.

    Uses the model's own guidance, not the paper's CFG++. Otherwise like the samplers of `svd_core.sampling`. Raises
    InputError for levels that rise.
    """
    sigmas, x = sigmas.cpu(), x.float()
    if bool((sigmas.diff() > 0).any()):
        raise InputError("the noise levels rise, and in turns only goes down: give falling sigmas, or choose fusion")
    noise = noise_sampler or seeded_noise((((extra_args or {}).get("seed") or 0) + 1) % 2**64, x)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas.unbind())):
        level = sigma * x.new_ones(x.shape[0])
        denoised = model.forward(x, level).to(x)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = _down(x, denoised, sigma, sigma_next)
        x = x + (sigma**2 - sigma_next**2) ** 0.5 * noise(sigma_next, sigma)
        x = _down(x, model.backward(x, level).to(x), sigma, sigma_next)
    return x


def _down(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return denoised if sigma_next == 0 else denoised + (x - denoised) * (sigma_next / sigma)
