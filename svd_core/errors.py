"""Errors meant for people: one line that says what was given, what was needed, and what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StableVideoError(ValueError):
    """Base of every error this package raises on purpose. The command line prints it and exits with code 2.

    Its message is one line, and holds nothing that a terminal would obey, whatever names a file put into it."""

    def __str__(self) -> str:
        return printable(super().__str__())


class CheckpointError(StableVideoError):
    """A checkpoint that cannot be used: wrong family, damaged, incomplete, or not a format we read."""


class InputError(StableVideoError):
    """A picture, tensor or setting outside what the pipeline accepts."""


class OutputError(StableVideoError):
    """A result that cannot be written where or how it was asked for."""


MOST_CHARACTERS = 2000
"""Of a message: more comes from a file that puts a novel where a name should be."""


def printable(text: str) -> str:
    """The text on one line, with escapes such as \\x1b for what cannot be shown, and cut where it is endless."""
    line = " ".join(text.splitlines())
    line = line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}..."
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch's allocators say where there is no class to tell: on a GPU, on the CPU, and on the CPU of Windows."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the host, could not give memory: by the class that CUDA has for it, or in words."""
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _OUT_OF_MEMORY)


class PrecisionWarning(UserWarning):
    """Something was worked out again in higher precision: the result is right and took longer."""


@contextmanager
def precision_notices(tell: Callable[[str], object]) -> Iterator[None]:
    """While entered, our own warnings go to `tell`, each time; others go where they went."""
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
