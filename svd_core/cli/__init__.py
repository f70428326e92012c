"""The command line: `python -m svd_core animate | inspect | decode | plan | watermark | batch`.

Exit codes: 0 done, 2 something given cannot be used (one line on stderr says what), 130 interrupted, 143 ended by
SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress

from ..errors import OutputError, StableVideoError, out_of_memory, precision_notices, printable
from .interrupts import Interrupts, signal_of

UNUSABLE = 2
"""The exit code where something given cannot be used."""

BY_SIGNAL = 128
"""Exit codes of what a signal ended are its number and this, as shells count."""

_NOT_HALF = "interrupted: no file is left half-written"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `argv` is without the program's name; None takes the process's own."""
    _have_stderr()
    with Interrupts() as interrupts:
        try:
            _run(argv, interrupts)
        except BaseException as error:
            if number := interrupts.heard or signal_of(error):
                return _stop(_NOT_HALF, BY_SIGNAL + number)
            if reason := _reason(error):
                return _stop(f"error: {reason}", UNUSABLE)
            raise
        return _stop(_NOT_HALF, BY_SIGNAL + interrupts.heard) if interrupts.heard else 0


def _have_stderr() -> None:
    """Where it was closed (2>&-), what would be said there goes nowhere, and the work is done all the same. It stays
    open, as the process's own would have, for what is said after us."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115


def _run(argv: Sequence[str] | None, interrupts: Interrupts) -> None:
    from .flags import parser

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold letters that a terminal lacks
    try:
        args = parser().parse_args(argv)
        interrupts.run_whole(_import_libraries)
        with _notes():
            args.run(args)
    finally:
        _flush()


def _notes() -> AbstractContextManager[None]:
    """Our own warnings, each in one line like any other note."""
    from .notes import note

    return precision_notices(note)


def _import_libraries() -> None:
    from . import commands as commands


def _flush() -> None:
    """Before Python does at exit, which would report a failure in several lines."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        why = error.strerror.lower()
        raise OutputError(f"standard output cannot be written ({why}): send it to a file or a terminal") from error


def _reason(error: BaseException) -> str:
    """One line for what a user can do something about; empty for a mistake of ours."""
    if isinstance(error, StableVideoError):
        return str(error)
    if isinstance(error, OSError):
        name = error.filename or "standard output or a file"
        return printable(f"{name} cannot be used ({(error.strerror or str(error)).lower()}): choose another path")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and out_of_memory(error)):
        return "memory ran out: use a smaller --size, fewer --frames, a --budget such as 2GiB, or --dtype bfloat16"
    return ""


def _stop(line: str, code: int) -> int:
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
    return code
