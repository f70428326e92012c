"""Atomic writing of files and folders, and clean-up after killed processes."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from ..errors import OutputError
from .locks import FOLDERS_TOO, locked

SCRATCH = ".svd_core-"
"""Prefix of scratch folders' names. They are created next to the target, or in the empty folder to be filled, because
a move is atomic only within one file system."""

ABANDONED_SECONDS = 3600
"""Age after which an unlocked scratch folder is removed. A lock shows a live process, but maybe not to other machines,
hence the hour."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a scratch path next to the target, which is moved into place unless the body raises.

    If the target is an existing folder, or a link to one, it is kept and filled with the new folder's files, because it
    may be a mount point or a shell's current folder. It must be empty. A process that is killed meanwhile leaves the
    target intact, and a hidden scratch folder, which the first write there an hour later removes. Raises OutputError on
    system errors, and if an existing file cannot be replaced: the new one is then beside it, under a name of its own.
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
                _put(new, target)
    except OSError as error:
        raise OutputError(f"output {target} cannot be written: {reason_of(error)}, choose another place") from error


def _put(new: Path, target: Path) -> None:
    """Move what was written into place. Windows lets nobody replace a file that another program, such as a player, has
    open; hours of rendering are not thrown away for that."""
    try:
        os.replace(new, target)
    except PermissionError as error:
        if not (new.is_file() and target.is_file()):
            raise
        names = (target.with_stem(f"{target.stem}-{number}") for number in count(1))
        beside = next(path for path in names if not path.exists())
        os.replace(new, beside)  # fails in the same way where it is the folder that allows nothing
        raise OutputError(
            f"output {target} cannot be replaced ({reason_of(error)}), so it was written as {beside.name}: close the "
            "program that has the old one open"
        ) from error


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but scratch folders of killed or running processes."""
    return all(entry.name.startswith(SCRATCH) for entry in folder.iterdir())


def _fill(folder: Path, new: Path) -> None:
    """Move the contents of `new` into an empty folder; on failure, none of them. Only a kill during the moves can leave
    some of the files. Raises OSError."""
    lock = _lock(folder, wait=True)  # if two processes fill the same folder, the second finds it full
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
    """The system's message, worded to fit inside a sentence."""
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
    """Lock a folder and return the descriptor, which holds it until this process closes it or dies. Returns None if
    another process holds the lock (with `wait`, waits for it instead) and on systems without such locks."""
    if not FOLDERS_TOO:  # abandoned scratch folders are never removed there
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    if locked(descriptor, wait=wait):
        return descriptor
    os.close(descriptor)
    return None


def _remove_abandoned(folder: Path) -> None:
    """Remove scratch folders that no process has locked and that have not been touched for an hour."""
    for path in folder.glob(f"{SCRATCH}*"):
        with suppress(OSError):  # it vanished, or belongs to another user
            if _seconds_untouched(path) > ABANDONED_SECONDS and (lock := _lock(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _seconds_untouched(path: Path) -> float:
    """Seconds since the folder or an entry changed; negative if the clock was set back, which keeps the folder."""
    inside = [entry.lstat().st_mtime for entry in path.iterdir()]
    return time.time() - max([path.lstat().st_mtime, *inside])
