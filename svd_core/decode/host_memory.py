"""How much host memory is free, if the system reports it."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
"""A container's control group as seen from inside: version 2, which every current one has."""


def free_host_bytes() -> int | None:
    """Bytes that new work may take without swapping, on the machine and in its container; None if neither is known."""
    known = [free for free in (_of_machine(), _of_container()) if free is not None]
    return max(0, min(known)) if known else None


def _of_machine() -> int | None:
    lines = (line.split() for line in _text(MEMINFO).splitlines())
    available = next((1024 * int(words[1]) for words in lines if words[:1] == ["MemAvailable:"]), None)
    return _half_of_machine() if available is None else available


def _half_of_machine() -> int | None:
    """Half of the installed memory, for systems other than Linux, such as macOS. None on Windows, which has no
    `sysconf`."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _of_container() -> int | None:
    """What is left of the container's limit. Cached files count as used there but are given up on demand; files in
    shared memory (tmpfs) are not."""
    limit, used = _text(CGROUP / "memory.max").strip(), _text(CGROUP / "memory.current").strip()
    if not (limit.isdecimal() and used.isdecimal()):
        return None
    kinds = dict(line.split() for line in _text(CGROUP / "memory.stat").splitlines() if len(line.split()) == 2)
    return int(limit) - int(used) + max(0, int(kinds.get("file", 0)) - int(kinds.get("shmem", 0)))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
