"""One process at a time for a stage's files: two would overwrite each other's states."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from svd_core.errors import InputError, OutputError
from svd_core.media.locks import locked


@contextmanager
def held(folder: Path, stage: str) -> Iterator[None]:
    """Hold the lock of a stage in an existing folder; without effect on file systems without locks.

    The empty lock file stays: removed, it could be locked twice, by a process that had opened it and by one that makes
    it anew. Raises InputError if another run holds it, OutputError if the folder cannot be written.
    """
    try:
        descriptor = _opened(folder, f".{stage}.lock")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}): choose another folder") from error
    try:
        if locked(descriptor) is False:
            raise InputError(f"another run trains the stage {stage} in {folder}: wait for it, or give another folder")
        yield
    finally:
        os.close(descriptor)


def _opened(folder: Path, name: str) -> int:
    """The lock file's descriptor. Raises OSError also where the lock file exists but no other file can be made."""
    with tempfile.TemporaryFile(dir=folder):
        return os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
