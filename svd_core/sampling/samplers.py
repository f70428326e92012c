"""Samplers, which walk a noisy latent down a schedule and ask the model for the clean one at each level.

All have k-diffusion's signature, so hosts written for it can call them:

    sample_x(model, x, sigmas, extra_args=None, callback=None, disable=None, ...) -> x at the last sigma

model        `model(x, sigma (N,), **extra_args) -> denoised`, shaped like x.
x            (N, ...), in sampler units at the level sigmas[0]; never written to. Half precision is widened to float32.
sigmas       (steps + 1,), falling; a last step to 0 returns what the model denoised, exactly.
callback     called once per step, before it is taken, with a dict: x, i, sigma, sigma_hat, denoised.
disable      k-diffusion's switch for its progress bar; ignored, since the callback shows progress.
noise_sampler  `(sigma, sigma_next) -> unit normal noise shaped like x`, for samplers that add noise. Without one the
             noise comes from extra_args["seed"], where hosts put their seed, or else from seed 0; never from the global
             generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..conditioning import draw_noise, seeded_generator
from ..errors import InputError

Model = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], object]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]
Sampler = Callable[..., Tensor]

MAX_CHURN_PER_STEP = math.sqrt(2) - 1
"""Largest churn of one step; it doubles the variance of the noise (arXiv 2206.00364, algorithm 2)."""


def seeded_noise(seed: int, like: Tensor) -> NoiseSampler:
    """A noise sampler that draws float32 on the CPU and returns noise with the shape, dtype and device of `like`.

    Each call is the next draw of one generator, so steps get independent noise and a seed gives the same clip on every
    device. Raises InputError for a seed that does not fit in 64 bits.
    """
    generator = seeded_generator(seed)
    return lambda sigma, sigma_next: draw_noise(like.shape, generator).to(like)


@torch.no_grad()
def sample_euler(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Euler steps along the probability-flow ODE, with optional churn (Karras et al., arXiv 2206.00364, algorithm 2
    without its second-order correction). Without churn it is the sampler that the models are released with (spec 5.3).

    s_churn is spread over the steps: each step whose sigma is in [s_tmin, s_tmax] first raises its noise level by a
    factor of 1 + min(s_churn / steps, sqrt(2) - 1), with noise of standard deviation s_noise.
    """
    walk = _Walk(model, sigmas.cpu(), extra_args or {}, callback)
    churn = _Churn(s_churn / max(walk.steps, 1), s_tmin, s_tmax, s_noise, _noise_sampler(noise_sampler, x, extra_args))
    x = _widened(x)
    for i, sigma, sigma_next in walk:
        x, sigma_hat = churn(x, sigma)
        denoised = walk.look(i, x, sigma, sigma_hat)
        x = denoised if sigma_next == 0 else x + _slope(x, denoised, sigma_hat) * (sigma_next - sigma_hat)
    return x


@torch.no_grad()
def sample_heun(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Heun's method (Karras et al., arXiv 2206.00364, algorithm 2): second order, with two model calls per step except
    a last step to 0. Churn is as in `sample_euler`."""
    walk = _Walk(model, sigmas.cpu(), extra_args or {}, callback)
    churn = _Churn(s_churn / max(walk.steps, 1), s_tmin, s_tmax, s_noise, _noise_sampler(noise_sampler, x, extra_args))
    x = _widened(x)
    for i, sigma, sigma_next in walk:
        x, sigma_hat = churn(x, sigma)
        denoised = walk.look(i, x, sigma, sigma_hat)
        if sigma_next == 0:
            return denoised
        here, step = _slope(x, denoised, sigma_hat), sigma_next - sigma_hat
        ahead = x + here * step
        there = _slope(ahead, walk.denoise(ahead, sigma_next), sigma_next)
        x = x + (here + there) / 2 * step
    return x


@torch.no_grad()
def sample_euler_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Euler steps that overshoot and add noise back, as much as ancestral sampling of a diffusion (Ho et al.,
    arXiv 2006.11239) would at eta = 1; eta = 0 is plain Euler."""
    walk = _Walk(model, sigmas.cpu(), extra_args or {}, callback)
    noise = _noise_sampler(noise_sampler, x, extra_args)
    x = _widened(x)
    for i, sigma, sigma_next in walk:
        denoised = walk.look(i, x, sigma)
        if sigma_next == 0:
            return denoised
        down, up = _ancestral_levels(sigma, sigma_next, eta)
        x = x + _slope(x, denoised, sigma) * (down - sigma)
        if up > 0:
            x = x + noise(sigma, sigma_next) * s_noise * up
    return x


@torch.no_grad()
def sample_dpmpp_2m(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver++ (2M) (Lu et al., arXiv 2211.01095, algorithm 2): second order with one model call per step, using
    the previous step's denoised latent for the slope. This is `sample_dpmpp_2m_sde` without noise; `noise_sampler` is
    accepted so that all samplers can be called alike, and never used."""
    return sample_dpmpp_2m_sde(model, x, sigmas, extra_args, callback, disable, eta=0.0, noise_sampler=noise_sampler)


@torch.no_grad()
def sample_dpmpp_2m_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
) -> Tensor:
    """SDE-DPM-Solver++ (2M) (Lu et al., arXiv 2211.01095). eta scales the noise of the SDE, 0 is the ODE. solver_type
    is how the slope of the denoised latent enters: "midpoint" as in the paper, or "heun".

    Noise is independent from step to step, not taken from one Brownian path. Raises InputError for an unknown
    solver_type.
    """
    correction = _solver(solver_type)
    walk = _Walk(model, sigmas.cpu(), extra_args or {}, callback)
    noise = _noise_sampler(noise_sampler, x, extra_args)
    x = _widened(x)
    previous: tuple[Tensor, float] | None = None
    for i, sigma, sigma_next in walk:
        denoised = walk.look(i, x, sigma)
        if sigma_next == 0:
            return denoised
        h = math.log(float(sigma) / float(sigma_next))  # step in lambda, half the log signal-to-noise ratio
        decay = h * (1 + eta)
        x = float(sigma_next / sigma) * math.exp(-h * eta) * x - math.expm1(-decay) * denoised
        if previous is not None:
            before, h_before = previous
            x = x + correction(decay) * (h / h_before) * (denoised - before)
        if eta > 0:
            x = x + noise(sigma, sigma_next) * s_noise * float(sigma_next) * math.sqrt(-math.expm1(-2 * h * eta))
        if h > 0:  # a repeated level gives no slope
            previous = denoised, h
    return x


@torch.no_grad()
def sample_lcm(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Multistep consistency sampling (Song et al., arXiv 2303.01469, algorithm 1) for distilled checkpoints: jump to
    the clean latent, noise it to the next level, repeat. The noise is added at sigma_next itself, as hosts do; the
    paper subtracts the variance of its lowest level."""
    walk = _Walk(model, sigmas.cpu(), extra_args or {}, callback)
    noise = _noise_sampler(noise_sampler, x, extra_args)
    x = _widened(x)
    for i, sigma, sigma_next in walk:
        x = walk.look(i, x, sigma)
        if sigma_next > 0:
            x = x + sigma_next * noise(sigma, sigma_next)
    return x


SAMPLERS: dict[str, Sampler] = {
    "euler": sample_euler,
    "heun": sample_heun,
    "euler_ancestral": sample_euler_ancestral,
    "dpmpp_2m": sample_dpmpp_2m,
    "dpmpp_2m_sde": sample_dpmpp_2m_sde,
    "lcm": sample_lcm,
}
"""User-facing names."""


@dataclass(frozen=True, slots=True, eq=False)
class _Walk:
    """The common part of all samplers: iterate over the schedule, call the model, call back.

    sigmas are on the CPU, where reading one does not wait for the device.
    """

    model: Model
    sigmas: Tensor
    extra_args: dict[str, Any]
    callback: Callback | None

    @property
    def steps(self) -> int:
        return max(len(self.sigmas) - 1, 0)

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (step, its sigma, the next sigma), each sigma a 0-d tensor."""
        for i, (sigma, sigma_next) in enumerate(pairwise(self.sigmas.unbind())):
            yield i, sigma, sigma_next

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.model(x, sigma * x.new_ones(x.shape[0]), **self.extra_args).to(x)

    def look(self, i: int, x: Tensor, sigma: Tensor, sigma_hat: Tensor | None = None) -> Tensor:
        """Denoise at the beginning of step i, at sigma_hat if churn raised the level, and call back."""
        sigma_hat = sigma if sigma_hat is None else sigma_hat
        denoised = self.denoise(x, sigma_hat)
        if self.callback is not None:
            self.callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma_hat, "denoised": denoised})
        return denoised


@dataclass(frozen=True, slots=True, eq=False)
class _Churn:
    """Raises the noise level before a step (Karras et al., arXiv 2206.00364, algorithm 2, lines 4 to 6)."""

    per_step: float
    s_tmin: float
    s_tmax: float
    s_noise: float
    noise: NoiseSampler

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        if self.per_step <= 0 or not self.s_tmin <= sigma <= self.s_tmax:
            return x, sigma
        sigma_hat = sigma * (1 + min(self.per_step, MAX_CHURN_PER_STEP))
        return x + self.noise(sigma, sigma_hat) * self.s_noise * (sigma_hat**2 - sigma**2) ** 0.5, sigma_hat


def _widened(x: Tensor) -> Tensor:
    """x in float32 or wider: near sigma 700 half precision is coarser than the picture (spec 10)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _slope(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """dx / dsigma along the probability-flow ODE (arXiv 2206.00364, equations 1 and 3)."""
    return (x - denoised) / sigma


def _ancestral_levels(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """(level to step down to, standard deviation to add); their squares sum to that of sigma_next. At eta = 1 the
    second is that of the diffusion's posterior."""
    up = eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
    up = torch.minimum(up, sigma_next)
    return (sigma_next**2 - up**2) ** 0.5, up


def _solver(solver_type: str) -> Callable[[float], float]:
    """The factor of the denoised latent's slope, for a decay of h (1 + eta)."""
    solvers: dict[str, Callable[[float], float]] = {
        "midpoint": lambda decay: -math.expm1(-decay) / 2,
        "heun": lambda decay: 1 + math.expm1(-decay) / decay if decay else 0.0,
    }
    if solver_type not in solvers:
        raise InputError(f"solver_type {solver_type!r} is not known: choose one of {', '.join(solvers)}")
    return solvers[solver_type]


def _noise_sampler(given: NoiseSampler | None, x: Tensor, extra_args: dict[str, Any] | None) -> NoiseSampler:
    """The caller's noise sampler, or one seeded as the module docstring says. The seed is offset by one, as in ComfyUI
    on the CPU, because the starting noise was likely drawn from the seed itself and must not repeat."""
    like = _widened(x)
    if given is not None:
        return lambda sigma, sigma_next: given(sigma, sigma_next).to(like)
    seed = (extra_args or {}).get("seed") or 0
    return seeded_noise((seed + 1) % 2**64, like)
