"""The motion meter: measures a clip's motion and flaws as numbers with units."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..errors import InputError
from .camera import Visibility, fit_camera
from .flow import LEAST_CLIP_SIDE, flow_between, luma_of, require_clip, shrunk, warped

MEASURED_SIDE = 512
"""Larger frames are shrunk by an integer factor to at most this many pixels a side before computing their flow."""

PAIRS = 8
"""Steps measured at once, which bounds the memory whatever the clip's length."""

FLICKER_BLOCKS = 8
"""Flicker is averaged over squares whose side is the shorter side over this; in finer ones the flow's own error would
dominate."""

STILL_CHANGE = 1e-4
"""Changes and spreads below this fraction of white count as none; the seam is divided by at least this."""

LEAST_SLOPE = 1e-4
"""Smallest divisor of the sharpness, for a first frame without any detail."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One number about a clip: its name, value and unit, and a phrase on what it means."""

    name: str
    value: float
    unit: str
    says: str

    @property
    def figure(self) -> str:
        """The value with two decimals; never -0.00."""
        return f"{round(self.value, 2) + 0.0:.2f}"

    def __str__(self) -> str:
        return f"{self.name:10} {self.figure:>8} {self.unit:13} {self.says}"


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Measurements of a clip of T frames, as float64 arrays.

    Per step, (T - 1,): motion, mean length of the flow over the picture, pixels per frame; camera, mean length of the
    affine part that most of the picture shares; subject, mean visible length of the remaining flow; pan_x and pan_y,
    the camera's shift at the centre (positive right and down), pixels per frame; zoom, percent per frame (positive
    closer); roll, degrees per frame (positive clockwise); flicker, change of brightness after motion is compensated,
    percent of white; change, mean absolute difference of neighbouring frames, percent of white.
    Per frame, (T,): drift, the largest difference of the channels' means and spreads from the first frame's, percent of
    white; sharpness, root mean square slope of luma as a multiple of the first frame's.
    Per clip: seam, the change from the last frame to the first over the median change within the clip.
    """

    motion: np.ndarray
    camera: np.ndarray
    subject: np.ndarray
    pan_x: np.ndarray
    pan_y: np.ndarray
    zoom: np.ndarray
    roll: np.ndarray
    flicker: np.ndarray
    change: np.ndarray
    drift: np.ndarray
    sharpness: np.ndarray
    seam: float

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The clip in eleven numbers: means over steps, the worst drift, the median sharpness after the first frame,
        and the seam."""
        per_frame = "px a frame"
        return (
            Reading("motion", _mean(self.motion), per_frame, "all that is seen to move, averaged over the picture"),
            Reading("camera", _mean(self.camera), per_frame, "what most of the picture does together"),
            Reading("subject", _mean(self.subject), per_frame, "what moves against that"),
            Reading("pan x", _mean(self.pan_x), per_frame, "contents go right above 0, left below"),
            Reading("pan y", _mean(self.pan_y), per_frame, "contents go down above 0, up below"),
            Reading("zoom", _mean(self.zoom), "% a frame", "contents grow above 0, shrink below"),
            Reading("roll", _mean(self.roll), "deg a frame", "contents turn clockwise above 0"),
            Reading("flicker", _mean(self.flicker), "% of white", "brightness that changes without moving"),
            Reading("drift", float(self.drift.max()), "% of white", "worst departure from the first frame's colours"),
            Reading("sharpness", float(np.median(self.sharpness[1:])), "x first", "below 1 the clip blurs"),
            Reading("seam", self.seam, "x median", "last to first frame against a usual step: 1 loops"),
        )

    def report(self) -> str:
        """The number of frames, then one line per reading."""
        return "\n".join([f"{len(self.drift)} frames", *(str(each) for each in self.readings)])

    def to_json(self) -> str:
        """One line of JSON: every reading with its unit, and the curves behind them."""
        curves = {name: np.round(getattr(self, name), 5).tolist() for name in CURVES}
        numbers = {each.name: {"value": round(each.value, 5), "unit": each.unit} for each in self.readings}
        return json.dumps({"frames": len(self.drift), "numbers": numbers, "curves": curves}, allow_nan=False)


STEP_CURVES = ("motion", "camera", "subject", "pan_x", "pan_y", "zoom", "roll", "flicker", "change")
FRAME_CURVES = ("drift", "sharpness")
CURVES = (*STEP_CURVES, *FRAME_CURVES)


def measure(frames: np.ndarray, side: int = MEASURED_SIDE) -> Measured:
    """Measure a clip (T, H, W, 3) in [0, 1]. Distances are in pixels of the given frames, which are shrunk to at most
    `side` pixels a side to compute the flow.

    Raises InputError for fewer than 2 frames, frames below 16 pixels a side, and NaN or infinity.
    """
    frames = _measurable(frames)
    small, factor = shrunk(frames, side)
    luma = luma_of(small)
    parts = [_steps(luma[start : start + PAIRS + 1], factor) for start in range(0, len(luma) - 1, PAIRS)]
    steps = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    slopes = _slope(luma)
    sharpness = slopes / max(slopes[0], LEAST_SLOPE)
    return Measured(
        **steps, change=100 * _changes(frames), drift=_drift(frames), sharpness=sharpness, seam=seam(frames)
    )


def seam(frames: np.ndarray) -> float:
    """Change from the last frame to the first over the median change between neighbours: 1 is a seamless loop, 0 a clip
    whose last frame equals its first. Changes are mean absolute differences. Raises InputError as `measure` does."""
    frames = _measurable(frames)
    closing = float(np.abs(frames[0] - frames[-1]).mean())
    return closing / max(float(np.median(_changes(frames))), STILL_CHANGE)


def _measurable(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    require_clip(frames)
    if not np.issubdtype(frames.dtype, np.floating):
        raise InputError(f"frames are of {frames.dtype}: needed floats in [0, 1], divide bytes by 255")
    if min(frames.shape[1:3]) < LEAST_CLIP_SIDE:
        given = f"frames are {frames.shape[2]}x{frames.shape[1]}"
        raise InputError(f"{given}: needed at least {LEAST_CLIP_SIDE} pixels a side to see motion, give larger frames")
    frames = np.asarray(frames, np.float32)
    bad = [index for index, frame in enumerate(frames) if not np.isfinite(frame).all()]
    if bad:
        raise InputError(f"frames {bad} hold NaN or infinity and cannot be measured: make them again")
    return frames


def _steps(luma: Tensor, factor: int) -> dict[str, np.ndarray]:
    """All per-step curves except `change`, from luma (n + 1, 1, h, w) shrunk by `factor`."""
    even = _even(luma)
    flow = flow_between(even[:-1], even[1:])
    seen = Visibility.of(even[:-1])
    camera = fit_camera(flow, seen)
    shared = camera.flow(*flow.shape[-2:])
    curves = {
        "motion": factor * flow.norm(dim=1).mean(dim=(1, 2)),
        "camera": factor * shared.norm(dim=1).mean(dim=(1, 2)),
        "subject": factor * seen.length(flow - shared).mean(dim=(1, 2)),
        "pan_x": factor * camera.offset[:, 0],
        "pan_y": factor * camera.offset[:, 1],
        "zoom": camera.zoom,
        "roll": camera.roll,
        "flicker": 100 * _flicker(luma, flow),
    }
    return {name: values.double().numpy() for name, values in curves.items()}


def _even(luma: Tensor) -> Tensor:
    """Luma with every frame normalised to the first one's mean and spread, so that flicker is not taken for motion."""
    mean, spread = luma.mean(dim=(1, 2, 3), keepdim=True), luma.std(dim=(1, 2, 3), keepdim=True)
    gain = torch.where(spread > STILL_CHANGE, spread[:1] / spread.clamp(min=STILL_CHANGE), 1.0)
    return (luma - mean) * gain + mean[:1]


def _flicker(luma: Tensor, flow: Tensor) -> Tensor:
    """Flicker of each step, (n,), as a fraction of white: mean absolute change of brightness over squares, after
    warping back along the flow."""
    back, seen = warped(luma[1:], flow)
    side = max(min(luma.shape[-2:]) // FLICKER_BLOCKS, 1)
    weight = avg_pool2d(seen, side)
    left = avg_pool2d((back - luma[:-1]) * seen, side) / weight.clamp(min=1e-6)
    return (left.abs() * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3)).clamp(min=1e-6)


def _slope(luma: Tensor) -> np.ndarray:
    """Root mean square slope of luma, (T,), as a fraction of white per pixel."""
    x, y = luma.diff(dim=-1).square().mean(dim=(1, 2, 3)), luma.diff(dim=-2).square().mean(dim=(1, 2, 3))
    return (x + y).sqrt().double().numpy()


def _changes(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of neighbouring frames, (T - 1,), as a fraction of white."""
    return np.array([np.abs(after - before).mean() for before, after in pairwise(frames)])


def _drift(frames: np.ndarray) -> np.ndarray:
    """Colour drift of each frame from the first, (T,), in percent of white."""
    statistics = np.stack([np.stack([frame.mean(axis=(0, 1)), frame.std(axis=(0, 1))]) for frame in frames])
    return 100 * np.abs(statistics.astype(np.float64) - statistics[0]).max(axis=(1, 2))


def _mean(values: np.ndarray) -> float:
    return float(values.mean())
