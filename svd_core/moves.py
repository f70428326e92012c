"""Ways that a camera or a thing can go along a clip, as plain numbers, which a recipe stores. `motion` shows them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

from .errors import InputError

MAX_WAY, MAX_ZOOM, MAX_ROLL = 1.0, 4.0, 180.0

_SHARE = (-MAX_WAY, MAX_WAY, "0.2 is a fifth of the picture")
_CAMERA_RANGES = {
    "pan_x": _SHARE,
    "pan_y": _SHARE,
    "zoom": (1 / MAX_ZOOM, MAX_ZOOM, "1.2 comes closer, 0.8 goes back"),
    "roll": (-MAX_ROLL, MAX_ROLL, "degrees, 5 is a slight turn"),
}

MAX_SCALE, MAX_TURN = 4.0, 360.0

_DRAG_RANGES = {
    "right": _SHARE,
    "down": _SHARE,
    "scale": (1 / MAX_SCALE, MAX_SCALE, "1.5 grows as what comes closer does"),
    "turn": (-MAX_TURN, MAX_TURN, "degrees, 45 is an eighth of a turn"),
}


@dataclass(frozen=True, slots=True)
class CameraMove:
    """Where the camera is at the end of the clip; it starts at the still and moves evenly, or gently at both ends.

    pan_x, pan_y: -1 to 1, how far it travels right and down, as a share of the picture's width and height. zoom: 0.25
    to 4, how much larger the picture's middle is at the end. roll: -180 to 180, degrees that the camera turns
    clockwise, so that the picture turns the other way. Raises InputError for what is out of range.
    """

    pan_x: float = 0.0
    pan_y: float = 0.0
    zoom: float = 1.0
    roll: float = 0.0
    ease: bool = False

    def __post_init__(self) -> None:
        for name, (least, most, usual) in _CAMERA_RANGES.items():
            object.__setattr__(self, name, _checked(f"camera {name}", getattr(self, name), least, most, usual))
        _check_ease(self.ease)

    @property
    def moves(self) -> bool:
        return (self.pan_x, self.pan_y, self.zoom, self.roll) != (0, 0, 1, 0)

    def progress(self, frames: int) -> list[float]:
        """The share of the way that is behind the camera at each frame: 0 at the first, 1 at the last."""
        return _shares(frames, self.ease)


@dataclass(frozen=True, slots=True)
class ObjectMove:
    """Where a thing is at the end of the clip; it starts where it is, and moves evenly, or gently at both ends.

    right, down: -1 to 1, its way as a share of the picture's width and height. scale: 0.25 to 4, how much larger it is
    at the end. turn: -360 to 360, degrees clockwise. Raises InputError for what is out of range.
    """

    right: float = 0.0
    down: float = 0.0
    scale: float = 1.0
    turn: float = 0.0
    ease: bool = False

    def __post_init__(self) -> None:
        for name, (least, most, usual) in _DRAG_RANGES.items():
            object.__setattr__(self, name, _checked(f"drag {name}", getattr(self, name), least, most, usual))
        _check_ease(self.ease)

    @property
    def moves(self) -> bool:
        return (self.right, self.down, self.scale, self.turn) != (0, 0, 1, 0)

    def progress(self, frames: int) -> list[float]:
        """The share of its way that is done at each frame: 0 at the first, 1 at the last."""
        return _shares(frames, self.ease)


def _shares(frames: int, ease: bool) -> list[float]:
    """The share of a way that is done at each frame: 0 at the first, 1 at the last; gently at both ends, or evenly."""
    times = [frame / max(1, frames - 1) for frame in range(frames)]
    return [time * time * (3 - 2 * time) for time in times] if ease else times


def _checked(name: str, given: Any, least: float, most: float, usual: str) -> float:
    """The value as a Python float, which a recipe can store. Raises InputError unless it is from least to most."""
    value = given.item() if getattr(given, "ndim", None) == 0 else given
    if not isinstance(value, Real) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"{name} {given!r:.40} is no number from {least:g} to {most:g}: {usual}")
    return float(value)


def _check_ease(ease: Any) -> None:
    if not isinstance(ease, bool):
        raise InputError(f"ease {ease!r} is not true or false: true starts and ends gently")
