"""What one clip needs, from a picture, settings and controls: all defaults filled in, everything checked that can be
before a network runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import ModelConfig, Variant
from .controls import Controls
from .errors import InputError
from .media import as_image, default_size, fit_image, round_size
from .motion import (
    Brush,
    Windows,
    check_curves,
    check_depth,
    check_painted,
    curve_values,
    dragged,
    filmed,
    lowered_sigmas,
    require_loop,
    unstuck,
)
from .planning import Job
from .sampling import SamplingPlan, plan_sampling
from .settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One clip to make.

    picture (H, W, 3) in [0, 1]: the fitted still. end (1, 3, H, W) in [-1, 1]: the picture to end on. given
    (n, 3, H, W): frames that the first window continues. windows: None if the network sees the whole clip. drag (H, W)
    in [0, 1]: what travels by drag_move. depth (H, W) in [0, 1]: how near what the camera passes is. curves: motion
    bucket and augmentation by frame, (T,) each. fit_report: how the picture was fitted, in words.
    """

    settings: Settings
    controls: Controls
    sampling: SamplingPlan
    picture: np.ndarray
    end: Tensor | None
    given: Tensor | None
    windows: Windows | None
    brush: Brush | None
    drag: Tensor | None
    depth: Tensor | None
    curves: tuple[Tensor | None, Tensor | None]
    fit_report: str

    @classmethod
    def of(cls, variant: Variant, image: Any, settings: Settings, controls: Controls) -> Shot:
        """Raises InputError for settings and controls that do not fit the picture or each other."""
        settings = _unstuck(settings.for_variant(variant), controls.unstick)
        picture, settings, fit_report = fit_picture(image, settings, variant)
        windows = _windows(controls, variant.frames, settings.frames)
        shot = cls(
            settings=settings,
            controls=controls,
            sampling=_sampling(settings, controls, windows),
            picture=picture,
            end=None if controls.end is None else _of_its_size("the end picture", controls.end, settings),
            given=_given_pixels(controls, settings, windows),
            windows=windows,
            brush=_brush(controls, settings),
            drag=_drag(controls, settings),
            depth=_depth(controls, settings),
            curves=tuple(_curve(curve, settings.frames) for curve in (controls.motion_bucket, controls.augmentation)),
            fit_report=fit_report,
        )
        shot.check()
        return shot

    def check(self) -> None:
        """Raise InputError for curves out of range, and an end that the clip cannot reach, or not by the sampler."""
        check_curves(*self.curves)
        _check_length(self.controls, self.settings.frames)
        if self.controls.sequential and (self.settings.sampler != "euler" or self.settings.churn):
            raise InputError(
                f"sequential takes Euler steps of its own, and sampler {self.settings.sampler} with churn "
                f"{self.settings.churn:g} was asked for: set sampler to euler and churn to 0, or leave out sequential"
            )

    def job(self, config: ModelConfig, **place: Any) -> Job:
        """The shot as the memory planner sees it; `place` are the fields of `Job` on device and weights."""
        return job_of(config, self.settings, self.controls, **place)

    @property
    def still(self) -> Tensor:
        """The picture as the networks take it, (1, 3, H, W) in [-1, 1]."""
        return as_pixels(self.picture)

    @property
    def size(self) -> tuple[int, int, int]:
        """(T, H, W) of the finished clip: a loop drops its last frame, which repeats the first."""
        return self.settings.frames - self.controls.loop, self.settings.height, self.settings.width

    @property
    def is_moved(self) -> bool:
        """Whether each frame is shown a picture of its own."""
        return self.controls.camera is not None or self.controls.drag is not None

    def views(self) -> Tensor:
        """What each frame is shown, (T, 3, H, W) in [-1, 1]. With a depth map, one can take seconds."""
        controls, frames = self.controls, self.settings.frames
        views = self.still if self.drag is None else dragged(self.still, self.drag, controls.drag_move, frames)
        return views if controls.camera is None else filmed(views, controls.camera, frames, self.depth)

    @property
    def holds_still(self) -> bool:
        """Whether a method works with the picture's own latent."""
        return bool(self.controls.unstick > 0 or self.controls.sequential or self.windows or self.brush)


def job_of(config: ModelConfig, settings: Settings, controls: Controls, **place: Any) -> Job:
    """A clip of resolved settings as the memory planner sees it; `place` as in `Shot.job`. What the controls' pictures
    and clips hold does not matter. Raises InputError for windows and ends that do not fit the clip's length."""
    windows = _windows(controls, config.variant.frames, settings.frames)
    _check_length(controls, settings.frames)
    window = windows.length if windows else None
    return Job.of(config, settings, window=window, both_ends=controls.bounded, loop=controls.loop, **place)


def fit_picture(image: Any, settings: Settings, variant: Variant) -> tuple[np.ndarray, Settings, str]:
    """Fit a picture to the size of the clip: see `StableVideo.fit`."""
    array = as_image(image, settings.background)
    width, height = clip_size(array, settings, variant)
    fitted = fit_image(array, width, height, settings.fit, settings.background)
    return fitted.image, dataclasses.replace(settings, width=width, height=height), fitted.report


def clip_size(image: np.ndarray, settings: Settings, variant: Variant) -> tuple[int, int]:
    """Width and height, in pixels, of the clip of a picture (H, W, 3)."""
    width, height = default_size(image, variant)
    return round_size(settings.width or width, settings.height or height)


def _unstuck(settings: Settings, strength: float) -> Settings:
    if strength == 0:
        return settings
    chosen = unstuck(strength, settings.motion_bucket, settings.augmentation)
    return dataclasses.replace(settings, motion_bucket=chosen.motion_bucket, augmentation=chosen.augmentation)


def _sampling(settings: Settings, controls: Controls, windows: Windows | None) -> SamplingPlan:
    """The sampling inputs, with guidance for as many frames as the network sees at once."""
    seen = windows.length if windows else settings.frames
    plan = plan_sampling(dataclasses.replace(settings, frames=seen))
    if controls.unstick > 0:
        plan = dataclasses.replace(plan, sigmas=lowered_sigmas(plan.sigmas, unstuck(controls.unstick).sigma_start))
    if controls.guidance is not None:
        plan = dataclasses.replace(plan, guidance=curve_values(controls.guidance, seen))
    return plan


def _windows(controls: Controls, trained: int, frames: int) -> Windows | None:
    """The windows, checked against the clip's length; None without `window`."""
    if controls.window is None:
        return None
    windows = Windows.of(controls.window or trained, controls.fused, controls.overlap)
    windows.starts(frames)
    return windows


def _check_length(controls: Controls, frames: int) -> None:
    """Raise InputError for a clip that is too short to come to its end."""
    if controls.loop:
        require_loop(frames)
    if controls.end is not None and frames < 2:
        raise InputError("a clip of 1 frame has no end beside its start: ask for at least 2 frames")


def _brush(controls: Controls, settings: Settings) -> Brush | None:
    if controls.brush is None:
        return None
    mask = _array("the mask", controls.brush, np.float32)
    brush = Brush(torch.as_tensor(mask, device="cpu"))
    brush.check(settings.frames, settings.height, settings.width)
    return brush


def _drag(controls: Controls, settings: Settings) -> Tensor | None:
    if controls.drag is None:
        return None
    mask = torch.as_tensor(_array("the drag's mask", controls.drag, np.float32), device="cpu")
    check_painted(mask, settings.height, settings.width)
    return mask


def _depth(controls: Controls, settings: Settings) -> Tensor | None:
    if controls.depth is None:
        return None
    depth = torch.as_tensor(_array("the depth map", controls.depth, np.float32), device="cpu")
    check_depth(depth, 1, settings.height, settings.width)
    return depth


def _curve(curve: Any | None, frames: int) -> Tensor | None:
    return None if curve is None else curve_values(curve, frames)


def _given_pixels(controls: Controls, settings: Settings, windows: Windows | None) -> Tensor | None:
    """The frames (n, 3, H, W) of the clip to continue that the first window starts with, or None."""
    if controls.continued is None:
        return None
    frames = _array("the clip to go on from", controls.continued)
    if frames.ndim != 4 or not len(frames):
        raise InputError(f"the clip to go on from has shape {frames.shape}: give frames (T, H, W, 3)")
    if len(frames) < windows.overlap:
        raise InputError(
            f"the clip to go on from has {len(frames)} frames and windows share {windows.overlap}: give a longer clip, "
            "or a smaller overlap"
        )
    name = "a frame to go on from"
    return torch.cat([_of_its_size(name, frame, settings) for frame in frames[-windows.overlap :]])


def _array(name: str, given: Any, dtype: type | None = None) -> np.ndarray:
    try:
        return np.asarray(given, dtype)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a device
        raise InputError(f"{name} is no array ({type(given).__name__}): give one of NumPy") from error


def _of_its_size(name: str, picture: Any, settings: Settings) -> Tensor:
    """A picture (1, 3, H, W) in [-1, 1]. Raises InputError for what is no picture of the clip's size."""
    try:
        image = as_image(picture, settings.background)
    except InputError as error:
        raise InputError(f"{name} cannot be taken: {error}") from error
    height, width = image.shape[:2]
    if (width, height) != (settings.width, settings.height):
        size = f"{settings.width}x{settings.height}"
        raise InputError(f"{name} is {width}x{height} and the clip {size}: fit it to the same size")
    return as_pixels(image)


def as_pixels(image: np.ndarray) -> Tensor:
    """A picture (H, W, 3) in [0, 1] -> (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None] * 2 - 1
