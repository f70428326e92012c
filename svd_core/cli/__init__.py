"""The command line: `python -m svd_core animate | inspect | decode | plan | watermark | batch`.

Exit codes: 0 success, 2 unusable input (explained in one line on stderr), 130 interrupted, 143 ended by SIGTERM, 129 by
SIGHUP, 141 if whoever read the output stopped, such as `head`.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress

from ..errors import InputError, StableVideoError, out_of_memory, precision_notices, printable, too_old
from .interrupts import Interrupts, signal_of
from .notes import no_output

UNUSABLE = 2
"""Exit code for unusable input."""

BY_SIGNAL = 128
"""Added to a signal's number to give the exit code, as shells do."""

PIPE_CLOSED = BY_SIGNAL + 13
"""Exit code of Unix tools when their output's reader has gone (SIGPIPE, which Windows lacks): normal use, so without a
word."""

_INTERRUPTED = "interrupted: no file is left half-written"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `argv` excludes the program's name; None means the process's own."""
    ready_output()
    with Interrupts() as interrupts:
        try:
            _run(argv, interrupts)
        except BaseException as error:
            if number := interrupts.first or signal_of(error):
                return end_with(_INTERRUPTED, BY_SIGNAL + number)
            if isinstance(error, BrokenPipeError):
                return PIPE_CLOSED
            if reason := _reason(error):
                return end_with(f"error: {reason}", UNUSABLE)
            raise
        return end_with(_INTERRUPTED, BY_SIGNAL + interrupts.first) if interrupts.first else 0


def ready_output() -> None:
    """Make stdout spell any path in letters that its encoding has, and replace a closed stderr (2>&-) by the null
    device, so that the command still runs. Like a real stderr it is never closed, since later code may write to it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115


def _run(argv: Sequence[str] | None, interrupts: Interrupts) -> None:
    from .flags import parser

    try:
        args = parser().parse_args(argv)
        interrupts.run_uninterrupted(_import_libraries)
        with _warnings_as_notes():
            args.run(args)
    finally:
        _flush()


def _warnings_as_notes() -> AbstractContextManager[None]:
    """Print our own warnings as notes of one line each."""
    from .notes import note

    return precision_notices(note)


def _import_libraries() -> None:
    """Raises InputError if a package is missing, or PyTorch too old to import the rest with."""
    try:
        import torch

        if old := too_old("torch", torch.__version__):
            raise InputError(f"this cannot run: {old}")
        from . import commands as commands
    except ModuleNotFoundError as error:
        raise InputError(
            f"the package {error.name} is missing from {sys.executable}: pip install it, or run the Python that has it"
        ) from error


def _flush() -> None:
    """Flush stdout before Python does at exit, where a failure would be reported in several lines."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise no_output(error) from error


def _reason(error: BaseException) -> str:
    """A line that describes an error the user can do something about; empty for bugs."""
    if isinstance(error, StableVideoError):
        return str(error)
    if isinstance(error, OSError):
        name = error.filename or "standard output or a file"
        return printable(f"{name} cannot be used ({(error.strerror or str(error)).lower()}): choose another path")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and out_of_memory(error)):
        return "memory ran out: use a smaller --size, fewer --frames, a --budget such as 2GiB, or --dtype bfloat16"
    return ""


def end_with(line: str, code: int) -> int:
    """Say a line on stderr, if it can be written, and return the exit code."""
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
    return code
