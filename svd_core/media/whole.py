"""Files that appear whole or not at all, and what a killed process leaves behind."""

from __future__ import annotations

import errno
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
"""How the names of scratch folders begin. They lie beside what is written, or in the empty folder that is to be filled,
because a file moves at once only within its own disk."""

ABANDONED_SECONDS = 3600
"""A lock tells whether the process that wrote still lives. Other machines may not see it, hence the hour."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a scratch path on the target's disk, beside it; moved into place unless the body raises.

    A folder that is there already, or that a link leads to, stays and takes the files of the new one: it may be where a
    disk is mounted, or where a shell stands. It must be empty. A process that is killed meanwhile leaves what was there
    whole, and a hidden scratch folder, which the first write there an hour later removes. Raises OutputError where the
    system refuses.
    """
    try:
        there = target.is_dir()
        folder = (target if there else target.parent).resolve()
        _remove_abandoned(folder)
        with _scratch(folder) as scratch:
            new = scratch / (target.name or folder.name or "new")
            yield new
            if new.is_dir() and target.is_dir():
                _fill(target.resolve(), new)
            else:
                os.replace(new, target)
    except OSError as error:
        raise OutputError(f"output {target} cannot be written: {reason_of(error)}, choose another place") from error


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but scratch folders, of killed processes or of others at work."""
    return all(entry.name.startswith(SCRATCH) for entry in folder.iterdir())


def _fill(folder: Path, new: Path) -> None:
    """Move what is in `new` into an empty folder: all of it, or on any failure nothing. Only a kill in the milliseconds
    of the moves leaves the first of the files. Raises OSError."""
    lock = _lock(folder, wait=True)  # of two processes that fill one folder, the second finds it full
    moved: list[Path] = []
    try:
        if not is_empty(folder):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        for path in sorted(new.iterdir()):
            moved.append(folder / path.name)
            os.replace(path, moved[-1])
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


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


def _lock(path: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds a folder until this process closes it or dies. None where another process holds it (or
    waits for that one), and where the system has no such locks."""
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
