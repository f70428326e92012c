"""All settings that determine the pixels of one clip, in a frozen dataclass that a recipe can store."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from .config import Variant
from .errors import InputError

Fit = Literal["crop", "pad", "stretch"]
Curve = Literal["constant", "linear", "triangle", "trapezoid"]
Schedule = Literal["edm", "align_your_steps"]
AttentionName = Literal["auto", "sage", "flash3"]
WeightsName = Literal["whole", "int8", "fp8"]

MAX_FRAMES = 1024
MAX_STEPS = 1000
MAX_SIDE = 8192
MAX_VALUES = MAX_STEPS + 1
"""Longest list that a recipe keeps, of noise levels or points of a curve."""

SIZE_MULTIPLE = 64
"""The UNet halves the latent three times and a latent cell is 8 pixels wide, so sides must be multiples of 64."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of `StableVideo.animate`. None means the variant's own default (spec 6).

    fps: frames per second, as played. motion_bucket: 0-1023 (trained to 255). augmentation: standard deviation of the
    noise on the still, on the [-1, 1] scale. background: colour under transparent pixels and around a padded picture.
    sigmas: replace schedule and steps when given. guidance_points: [(position in [0, 1], scale), ...], replace curve,
    minimum and maximum. churn: for the Euler and Heun samplers (Karras et al. 2022). reuse: threshold of
    `model.reuse.FeatureReuse`, which approximates; 0 is off.
    """

    frames: int | None = None
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    fit: Fit = "crop"
    background: tuple[int, int, int] = (255, 255, 255)
    fps: int = 7
    motion_bucket: int = 127
    augmentation: float = 0.02
    min_guidance: float | None = None
    max_guidance: float | None = None
    guidance_curve: Curve = "linear"
    guidance_points: tuple[tuple[float, float], ...] | None = None
    guidance_interval: tuple[float, float] | None = None
    schedule: Schedule = "edm"
    sigmas: tuple[float, ...] | None = None
    sampler: str = "euler"
    churn: float = 0.0
    seed: int = 0
    reuse: float = 0.0

    def for_variant(self, variant: Variant) -> Settings:
        """The settings with the variant's defaults filled in, checked, and converted to Python numbers and tuples that
        a recipe can store. Raises InputError."""
        defaults = {name: getattr(variant, name) for name in ("frames", "steps", "min_guidance", "max_guidance")}
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        filled = dataclasses.replace(self, **missing)._in_plain_numbers()
        filled.check()
        return filled

    def _in_plain_numbers(self) -> Settings:
        """Converted to Python numbers and tuples. Raises InputError for anything but numbers and lists of them."""
        plain: dict[str, object] = {name: _whole(name, getattr(self, name)) for name in (*_WHOLE, *_MOTION)}
        plain |= {name: _number(name, getattr(self, name)) for name in _NUMBERS}
        plain["background"] = tuple(_whole("background", each) for each in _listed("background", self.background))
        for name in ("sigmas", "guidance_interval"):
            plain[name] = tuple(_number(name, each) for each in _listed(name, getattr(self, name)))
        pairs = [_listed("guidance_points", pair) for pair in _listed("guidance_points", self.guidance_points)]
        plain["guidance_points"] = tuple(tuple(_number("guidance_points", each) for each in pair) for pair in pairs)
        given = {name: value for name, value in plain.items() if getattr(self, name) is not None}
        return dataclasses.replace(self, **given)

    def check(self) -> None:
        """Raise InputError naming the value, the limit and the remedy for the first setting out of range."""
        for name, limits in _WHOLE.items():
            _within(name, _whole(name, getattr(self, name)), *limits)
        for name, kinds in (("fit", Fit), ("guidance_curve", Curve), ("schedule", Schedule)):
            _one_of(name, getattr(self, name), get_args(kinds))
        for name in ("sigmas", "guidance_points"):
            check_count(name, getattr(self, name))
        if len(self.background) != 3 or not all(0 <= each <= 255 for each in self.background):
            raise InputError(f"background {self.background} is no colour: give red, green and blue, each 0 to 255")
        if self.guidance_interval is not None and len(self.guidance_interval) != 2:
            raise InputError(f"guidance_interval {self.guidance_interval}: give two noise levels, low and high")
        if any(len(pair) != 2 for pair in self.guidance_points or ()):
            raise InputError(f"guidance_points {self.guidance_points}: give pairs of a position in 0 to 1 and a scale")
        for name in ("min_guidance", "max_guidance", "churn"):
            _within(name, getattr(self, name), 0, 100, "guidance of 1 to 3 and churn of 0 are usual")
        _within("reuse", self.reuse, 0, 1, "0 is off, 0.05 to 0.2 is usual")


_TRAINED_SIZE = "1024x576 is what the model was trained on"

_WHOLE: dict[str, tuple[int, int, str]] = {
    "frames": (1, MAX_FRAMES, "14 for SVD, 25 for SVD-XT"),
    "steps": (1, MAX_STEPS, "25 is usual"),
    "width": (SIZE_MULTIPLE, MAX_SIDE, _TRAINED_SIZE),
    "height": (SIZE_MULTIPLE, MAX_SIDE, _TRAINED_SIZE),
    "seed": (0, 2**64 - 1, "give a whole number that is not negative"),
}
"""Minimum, maximum and remedy of each integer setting."""


_MOTION = {"fps": "7 is usual", "motion_bucket": "127 is usual"}
"""Integer settings whose range `conditioning.MicroConditioning` checks, and their remedies."""

_NUMBERS = ("augmentation", "min_guidance", "max_guidance", "churn", "reuse")
_MAY_BE_NONE = ("frames", "steps", "width", "height", "min_guidance", "max_guidance")


def _whole(name: str, value: Any) -> int | None:
    if value is None and name in _MAY_BE_NONE:
        return None
    if isinstance(value, bool) or not is_whole(value):
        remedy = _WHOLE[name][2] if name in _WHOLE else _MOTION.get(name, "give whole numbers")
        raise InputError(f"{name} {value!r} is not a whole number: {remedy}")
    return operator.index(value)


def _number(name: str, value: Any) -> float | None:
    """The value as a float; an int, or an allowed None, is kept."""
    if type(value) in (int, float) or (value is None and name in _MAY_BE_NONE):
        return value
    try:
        return float(value if hasattr(value, "__float__") else None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} {value!r} is not a number: give one") from error


def _listed(name: str, value: Any) -> Sequence[Any]:
    """The value as a list; None (use the default) becomes an empty list, except for background."""
    try:
        return [] if value is None and name != "background" else list(value)
    except TypeError as error:
        raise InputError(f"{name} {value!r} is no list: give several numbers") from error


def check_count(name: str, values: Sequence[Any] | None) -> None:
    """Raise InputError for a list longer than a recipe keeps."""
    if values is not None and len(values) > MAX_VALUES:
        raise InputError(f"{name} has {len(values)} values: give at most {MAX_VALUES}")


def is_number(value: object) -> bool:
    """True for a Python, NumPy or 0-d torch number; a numeric string does not count."""
    return isinstance(value, Real) or getattr(value, "ndim", None) == 0


def is_whole(value: object) -> bool:
    """Whether the value can be used as an integer: a Python, NumPy or torch one."""
    try:
        operator.index(value)
    except (TypeError, RuntimeError):
        return False
    return True


def _within(name: str, value: float | None, low: float, high: float, remedy: str) -> None:
    if value is not None and not low <= value <= high:
        raise InputError(f"{name} {value} is outside {low} to {high}: {remedy}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} {value!r} is not known: choose one of {', '.join(allowed)}")
