"""Locks on open files and folders, which end with the process that holds them, however that ends."""

from __future__ import annotations

import errno

try:
    import fcntl
except ImportError:
    fcntl = None

FOLDERS_TOO = fcntl is not None
"""Whether folders can be locked, and waited for; Windows locks files alone."""

_HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
"""How systems say that another process holds a lock. Other errors mean a file system without locks."""


def locked(descriptor: int, *, wait: bool = False) -> bool | None:
    """Lock an open file or folder until its descriptor is closed. True: this process has the lock. False: another one
    has it, which is not waited for without `wait`. None: there are no locks there."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        else:
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True
