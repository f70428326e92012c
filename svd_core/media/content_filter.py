"""A hook for whatever content checker the user has installed. None comes with this package.

A checker is a function: frames (T, H, W, 3) float32 in [0, 1] -> a list of T booleans, True for a frame that must not
be shown; or frames of the same shape, in which it has blurred or blackened what must not be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

import numpy as np

from ..errors import InputError

Checker = Callable[[np.ndarray], Sequence[bool] | np.ndarray]

GROUP = "stable_video.content_filter"
"""Entry points in which packages offer a checker."""


@dataclass(frozen=True, slots=True)
class Checked:
    """frames (T, H, W, 3) as the checker leaves them; flagged, counted from 0, are those that it objects to; blurred
    says that these are made harmless in `frames`."""

    frames: np.ndarray
    flagged: tuple[int, ...]
    blurred: bool


@dataclass(frozen=True, slots=True)
class ContentFilter:
    """A checker and what errors call it."""

    name: str
    checker: Checker

    def check(self, frames: np.ndarray) -> Checked:
        """Raises InputError where the checker fails, or answers neither with booleans nor with frames."""
        try:
            answer = np.asarray(self.checker(frames.copy()))
        except Exception as error:  # the checker is anybody's code
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"the content filter {self.name} failed ({what}): repair it, or leave it out") from error
        if answer.shape == frames.shape and answer.dtype != bool:
            changed = (answer != frames).reshape(len(frames), -1).any(1)
            return Checked(answer.astype(np.float32), _places(changed), blurred=True)
        if answer.shape == (len(frames),) and answer.dtype == bool:
            return Checked(frames, _places(answer), blurred=False)
        raise InputError(
            f"the content filter {self.name} answered with {answer.dtype} of shape {answer.shape}: "
            f"it must give {len(frames)} booleans, or frames of shape {frames.shape}"
        )

    def require(self, frames: np.ndarray, what: str) -> None:
        """Raise InputError, naming the frames of `what`, where the checker objects to any."""
        if flagged := self.check(frames).flagged:
            which = f" in frames {', '.join(map(str, flagged))}" if len(frames) > 1 else ""
            raise InputError(f"{what} is refused by the content filter {self.name}{which}: nothing is written")


def filter_named(name: str) -> ContentFilter:
    """The function that `module:function` names. Raises InputError where there is none."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise InputError(f"content filter {name!r} is not module:function, such as my_checker:flag")
    try:
        found = getattr(import_module(module), function)
    except Exception as error:  # the name may be no name at all, and the module is anybody's code
        raise InputError(f"content filter {name} cannot be used ({error}): install it, or give another") from error
    if not callable(found):
        raise InputError(f"content filter {name} is no function: give module:function")
    return ContentFilter(name, found)


def installed_filters() -> list[ContentFilter]:
    """What installed packages offer, by name. Raises InputError for one that does not load."""
    return [_loaded(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]


def _loaded(point: EntryPoint) -> ContentFilter:
    try:
        return ContentFilter(point.name, point.load())
    except Exception as error:  # the module is anybody's code
        raise InputError(f"content filter {point.name} cannot be loaded ({error}): repair or remove it") from error


def _places(flags: np.ndarray) -> tuple[int, ...]:
    return tuple(int(place) for place in np.flatnonzero(flags))
