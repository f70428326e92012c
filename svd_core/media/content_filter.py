"""A hook for a content checker that the user has installed. None comes with this package.

A checker is a function: frames (T, H, W, 3) float32 in [0, 1] -> a list of T booleans, True for a frame that must not
be shown; or frames of the same shape, in which such content has been blurred or blackened.
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
"""Entry point group in which packages offer a checker."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check: frames (T, H, W, 3) as returned by the checker; flagged, the indices of those that it
    objects to; blurred, whether those have been changed in `frames`."""

    frames: np.ndarray
    flagged: tuple[int, ...]
    blurred: bool


@dataclass(frozen=True, slots=True)
class ContentFilter:
    """A checker and its name in errors."""

    name: str
    checker: Checker

    def check(self, frames: np.ndarray) -> Checked:
        """Run the checker. Raises InputError if it fails or returns neither booleans nor frames."""
        try:
            answer = np.asarray(self.checker(frames.copy()))
        except Exception as error:  # the checker is third-party code
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
        """Raise InputError, naming the frames of `what`, if the checker objects to any."""
        if flagged := self.check(frames).flagged:
            which = f" in frames {', '.join(map(str, flagged))}" if len(frames) > 1 else ""
            raise InputError(f"{what} is refused by the content filter {self.name}{which}: nothing is written")


def filter_named(name: str) -> ContentFilter:
    """The filter given as `module:function`. Raises InputError if there is no such function."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise InputError(f"content filter {name!r} is not module:function, such as my_checker:flag")
    try:
        found = getattr(import_module(module), function)
    except Exception as error:  # the name may be invalid, and the module is third-party code
        raise InputError(f"content filter {name} cannot be used ({error}): install it, or give another") from error
    if not callable(found):
        raise InputError(f"content filter {name} is no function: give module:function")
    return ContentFilter(name, found)


def installed_filters() -> list[ContentFilter]:
    """The filters that installed packages offer, sorted by name. Raises InputError for one that does not load."""
    return [_loaded(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]


def _loaded(point: EntryPoint) -> ContentFilter:
    try:
        return ContentFilter(point.name, point.load())
    except Exception as error:  # the module is third-party code
        raise InputError(f"content filter {point.name} cannot be loaded ({error}): repair or remove it") from error


def _places(flags: np.ndarray) -> tuple[int, ...]:
    return tuple(int(place) for place in np.flatnonzero(flags))
