"""Device memory: how much is free, whether it is separate from the host's, and releasing what is unused."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from .errors import out_of_memory

Attempt = TypeVar("Attempt")
Result = TypeVar("Result")

USABLE = 0.8
"""Share of the free memory that activations may take; the rest is for libraries' workspaces and fragmentation."""

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
"""A container's control group as seen from inside: version 2, which every current one has."""


def has_own_memory(device: torch.device) -> bool:
    """Whether the device's memory is separate from the host's."""
    return device.type not in ("cpu", "mps")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that activations may take now on a CUDA device; None for other devices, which have no such limit."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, int(USABLE * (free + unused)))


def spare_bytes(device: torch.device) -> int | None:
    """`free_bytes`, or for a device that uses host memory the free bytes of that, if the system reports them."""
    if has_own_memory(device):
        return free_bytes(device)
    free = free_host_bytes()
    return None if free is None else max(1, int(USABLE * free))


def release_unused(device: torch.device) -> None:
    """Release the unused memory of PyTorch's allocator, so that free memory is in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def release_host(device: torch.device) -> None:
    """Release the unused memory of PyTorch's pinned allocator, which would otherwise keep it for good."""
    release = getattr(torch._C, "_host_emptyCache", None)  # not in every version, and public in none so far
    if device.type == "cuda" and release is not None:
        release()


def wait_for(device: torch.device) -> None:
    """Return when every copy from the device has arrived."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def leaner_if_full(run: Callable[[Attempt], Result], attempts: Sequence[Attempt]) -> Result:
    """Call `run` with the first of the attempts, or the next, which need less, whenever memory runs out."""
    *quicker, leanest = attempts
    for tried in quicker:
        try:
            return run(tried)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # The next attempt starts outside the handler, which keeps the failed attempt's tensors alive.
    return run(leanest)


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
    """Bytes left of the container's limit; None without one. Cached files count as used but are freed on demand; files
    in shared memory (tmpfs) are not."""
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
