"""Errors with user-facing messages: one line that says what was given, what was needed and what to do."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StableVideoError(ValueError):
    """Base of every error this package raises on purpose. The command line prints it and exits with code 2.

    Its message is one line without control characters, even when it quotes names from a file."""

    def __str__(self) -> str:
        return printable(super().__str__())


class CheckpointError(StableVideoError):
    """A checkpoint that cannot be used: wrong family, damaged, incomplete, or not a format we read."""


class InputError(StableVideoError):
    """A picture, tensor or setting outside what the pipeline accepts."""


class OutputError(StableVideoError):
    """A result that cannot be written where or how it was asked for."""


MOST_CHARACTERS = 2000
"""Length at which messages are cut; only absurdly long names from a file make longer ones."""


def printable(text: str) -> str:
    """The text on one line, with unprintable characters escaped (such as \\x1b), cut after MOST_CHARACTERS."""
    line = " ".join(text.splitlines())
    line = line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}..."
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


OLDEST = {"torch": (2, 4), "av": (14, 2)}
"""The first versions with everything that is used here."""


def too_old(package: str, version: str) -> str:
    """Why an installed version of a package of `OLDEST` cannot be used, and what to do; "" if it can."""
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    needed = ".".join(map(str, OLDEST[package]))
    return "" if found >= OLDEST[package] else f"{package} {version} is too old, install {needed} or newer"


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""Messages of torch's allocators that have no exception class of their own: GPU, CPU, and CPU on Windows."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device or the host ran out of memory, judged by the exception's class (CUDA) or its message."""
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _OUT_OF_MEMORY)


class PrecisionWarning(UserWarning):
    """Something was recomputed in higher precision: the result is right but took longer."""


@contextmanager
def precision_notices(tell: Callable[[str], object]) -> Iterator[None]:
    """Send every PrecisionWarning to `tell`, repeats included, while entered; other warnings are unaffected."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, PrecisionWarning):
                tell(str(message))
            else:
                others(message, category, *place, **more)

        warnings.showwarning = show
        warnings.simplefilter("always", PrecisionWarning)
        yield
