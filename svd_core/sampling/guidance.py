"""Classifier-free guidance with a weight for every frame (spec 5.4).

The first frames follow the still closely by themselves and need little guidance, the last ones need more; the released
models are therefore run with weights that rise from the first frame to the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..settings import is_whole
from .denoise import Denoiser, Network, check_frames

if TYPE_CHECKING:
    from ..conditioning import Conditioning
    from .split import GuidanceSplit

ROUNDING = 1e-6
"""Relative distance within which a sigma counts as equal to a bound: float32 schedules start a few units in the last
place off the sigma that they were asked for."""

FLOAT32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
"""Where numbers for the host are made, whatever torch's default dtype and device are."""

# Weights


def constant_guidance(num_frames: int, value: float) -> Tensor:
    """(T,) float32: the same weight for every frame. Raises InputError for no frames or a weight that is not finite."""
    _check_weights(num_frames, value)
    return torch.full((num_frames,), float(value), **FLOAT32)


def linear_guidance(num_frames: int, minimum: float, maximum: float) -> Tensor:
    """(T,) float32: rising evenly from minimum at the first frame to maximum at the last; one frame gets minimum.

    The released models use 1.0 to 2.5 (SVD) and 1.5 to 3.0 (SVD-XT). Raises InputError as `constant_guidance` does.
    """
    _check_weights(num_frames, minimum, maximum)
    return torch.linspace(minimum, maximum, num_frames, **FLOAT32)


def triangle_guidance(num_frames: int, minimum: float, maximum: float) -> Tensor:
    """(T,) float32: minimum at both ends, maximum in the middle (met only by an odd number of frames).

    Raises InputError as `constant_guidance` does.
    """
    _check_weights(num_frames, minimum, maximum)
    height = 1 - (2 * torch.linspace(0, 1, num_frames, **FLOAT32) - 1).abs()
    return minimum + (maximum - minimum) * height


def trapezoid_guidance(num_frames: int, minimum: float, maximum: float, edge: float = 0.1) -> Tensor:
    """(T,) float32: int(edge * T) frames rising from minimum to maximum, a plateau at maximum, the mirrored fall.

    An edge of one frame is minimum. The reference sets its plateau to 1 whatever the maximum (spec 5.4); this function
    does what it intended. Raises InputError unless 0 <= edge <= 0.5, and as `constant_guidance` does.
    """
    _check_weights(num_frames, minimum, maximum)
    if not 0 <= edge <= 0.5:
        raise InputError(f"edge {edge} is outside 0 to 0.5: it is the part of the clip on each side, 0.1 is usual")
    rise = torch.linspace(minimum, maximum, int(num_frames * edge), **FLOAT32)
    plateau = torch.full((num_frames - 2 * len(rise),), float(maximum), **FLOAT32)
    return torch.cat([rise, plateau, rise.flip(0)])


def curve_guidance(num_frames: int, points: Sequence[tuple[float, float]]) -> Tensor:
    """(T,) float32: straight lines through points (position, weight), position 0 the first frame and 1 the last.

    The weight is constant before the first point and after the last. Raises InputError unless positions rise strictly
    within [0, 1] and weights are finite.
    """
    if not points:
        raise InputError("a guidance curve without points: give at least one (position, weight)")
    _check_weights(num_frames, *(weight for _, weight in points))
    _check_positions([position for position, _ in points])
    positions = torch.linspace(0, 1, num_frames, dtype=torch.float64, device="cpu").tolist()
    return torch.tensor([_on_curve(position, points) for position in positions], **FLOAT32)


def _on_curve(position: float, points: Sequence[tuple[float, float]]) -> float:
    if position <= points[0][0]:
        return points[0][1]
    for (left, before), (right, after) in pairwise(points):
        if position <= right:
            return before + (after - before) * (position - left) / (right - left)
    return points[-1][1]


def _check_positions(positions: Sequence[float]) -> None:
    for before, after in pairwise([-math.inf, *positions]):
        if not (0 <= after <= 1 and before < after):
            raise InputError(f"curve position {after:g} after {before:g}: positions must rise, from 0 to 1 at most")


def _check_weights(num_frames: int, *weights: float) -> None:
    if isinstance(num_frames, bool) or not is_whole(num_frames) or num_frames < 1:
        raise InputError(f"{num_frames} frames cannot be guided: ask for at least 1, a whole number")
    for weight in weights:
        if not abs(weight) <= torch.finfo(torch.float32).max:
            raise InputError(f"guidance {weight} is not a finite number that float32 holds: 1 to 3 is usual")


def check_guidance(guidance: Tensor) -> None:
    """Raise InputError unless guidance is one weight per frame, (T,)."""
    if not isinstance(guidance, Tensor) or guidance.ndim != 1 or not len(guidance):
        given = f"shape {tuple(guidance.shape)}" if isinstance(guidance, Tensor) else f"class {type(guidance).__name__}"
        raise InputError(f"guidance of {given} is not (T,): give one weight a frame")


# Guided denoiser


@dataclass(frozen=True, slots=True)
class GuidanceInterval:
    """Guide only where sigma_low < sigma <= sigma_high (Kynkäänniemi et al., arXiv 2404.07724). Class: approximate.

    A sigma within `ROUNDING` of a bound counts as equal to it. Opt-in: steps outside the interval cost half, and the
    clip differs from one with guidance throughout. Raises InputError unless 0 <= sigma_low < sigma_high.
    """

    sigma_low: float
    sigma_high: float

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_low < self.sigma_high:
            raise InputError(
                f"guidance interval from {self.sigma_low} to {self.sigma_high} is empty: "
                "give two sigmas, 0 or more, the lower one first"
            )

    def holds(self, sigma: Tensor) -> Tensor:
        """Whether each sigma, of any shape, lies within; booleans of that shape."""
        return (sigma > self.sigma_low * (1 + ROUNDING)) & (sigma <= self.sigma_high * (1 + ROUNDING))


@dataclass(frozen=True, slots=True, eq=False)
class GuidedDenoiser:
    """`model(x, sigma) -> denoised`, guided: D = D_u + w_t (D_c - D_u) for frame t of each clip.

    unet, conditioning and dtype are as in `Denoiser`. guidance (T,) holds the weights w of a clip's T frames, best left
    on the CPU, where reading them does not wait for the device. joint runs both passes as one batch, the unconditional
    clips first; False runs them one after the other, slower and with half the memory. split runs one pass here and the
    other in another process, whatever joint says, with the bits of joint False. Results agree up to the rounding of
    different kernels. If every weight is exactly 1 the unconditional pass is skipped, which is exact; a single weight
    of 1 saves nothing, since frames see each other (spec 11 f).
    Raises InputError for guidance that is not one weight per frame.
    """

    unet: Network
    conditioning: Conditioning
    guidance: Tensor
    joint: bool = True
    interval: GuidanceInterval | None = None
    dtype: torch.dtype = torch.float32
    split: GuidanceSplit | None = None

    def __post_init__(self) -> None:
        check_guidance(self.guidance)

    @property
    def num_frames(self) -> int:
        return len(self.guidance)

    def with_conditioning(self, change: Callable[[Conditioning], Conditioning]) -> GuidedDenoiser:
        """A copy of the denoiser with its conditioning changed."""
        return replace(self, conditioning=change(self.conditioning))

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """x (N, 4, h, w) with N = clips * num_frames, sigma (N,) or one number above 0 -> (N, 4, h, w) in float32.

        Raises InputError if N does not fit the conditioning.
        """
        check_frames(x, self.conditioning, self.num_frames)
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        weights = self._weights(sigma)
        if bool((weights == 1).all()):
            return self._denoise(self.conditioning, x, sigma)
        without, given = self._both(x, sigma)
        return without + weights.to(x.device)[:, None, None, None] * (given - without)

    def _weights(self, sigma: Tensor) -> Tensor:
        """Guidance weights (N,) on the CPU; 1 outside the interval."""
        weights = self.guidance.cpu().float().repeat(self.conditioning.rows)
        if self.interval is None:
            return weights
        return torch.where(self.interval.holds(sigma.cpu()), weights, 1.0)

    def _both(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        if self.split is not None:
            return self._one_of_two(x, sigma, self.split)
        return self._both_at_once(x, sigma) if self.joint else self._one_by_one(x, sigma)

    def _one_of_two(self, x: Tensor, sigma: Tensor, split: GuidanceSplit) -> tuple[Tensor, Tensor]:
        conditioning = self.conditioning if split.guides else self.conditioning.unconditional()
        return split.exchange(self._denoise(conditioning, x, sigma))

    def _both_at_once(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        both = self.conditioning.unconditional().followed_by(self.conditioning)
        without, given = self._denoise(both, torch.cat([x, x]), torch.cat([sigma, sigma])).chunk(2)
        return without, given

    def _one_by_one(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        without = self._denoise(self.conditioning.unconditional(), x, sigma)
        return without, self._denoise(self.conditioning, x, sigma)

    def _denoise(self, conditioning: Conditioning, x: Tensor, sigma: Tensor) -> Tensor:
        return Denoiser(self.unet, conditioning, self.num_frames, self.dtype)(x, sigma)
