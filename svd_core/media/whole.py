"""Files that appear whole or not at all, and what a killed process leaves behind."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError

try:
    import fcntl
except ImportError:  # Windows, where a killed process leaves its scratch folder for good
    fcntl = None

SCRATCH = ".svd_core-"
"""How the names of scratch folders begin. They lie beside what is written, because a file moves at once only within its
own disk."""

ABANDONED_SECONDS = 3600
"""A lock tells whether the process that wrote still lives. Other machines may not see it, hence the hour."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a scratch path with the target's name, beside it on the same disk; moved into place unless the body raises.

    A process that is killed meanwhile leaves what was there whole, and a hidden scratch folder, which the first write
    there an hour later removes. Raises OutputError where the system refuses.
    """
    try:
        folder = target.parent.resolve()
        _remove_abandoned(folder)
        with _scratch(folder) as scratch:
            yield scratch / target.name
            if target.is_dir():
                target.rmdir()  # empty, as checked; not every system lets a folder replace one
            os.replace(scratch / target.name, target)
    except OSError as error:
        raise OutputError(f"output {target} cannot be written: {reason_of(error)}, choose another place") from error


def reason_of(error: OSError) -> str:
    """What the system says, fit for the middle of a sentence."""
    return (error.strerror or str(error)).lower()


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=folder))
    lock = _lock(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor that holds a folder until this process closes it or dies. None where another process holds it, and
    where the system has no such locks."""
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(folder: Path) -> None:
    """Scratch folders that nobody holds and nobody has touched for an hour."""
    for path in folder.glob(f"{SCRATCH}*"):
        with suppress(OSError):  # it vanished, or is another user's
            if _seconds_untouched(path) > ABANDONED_SECONDS and (lock := _lock(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _seconds_untouched(path: Path) -> float:
    """Less than 0 where the clock was set back, so that the folder stays."""
    inside = [entry.lstat().st_mtime for entry in path.iterdir()]
    return time.time() - max([path.lstat().st_mtime, *inside])
