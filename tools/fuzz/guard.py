"""Rules that no input may make the product break, checked from inside the process that handles it.

Python, including pickle and sockets, reports actions in advance to audit hooks (PEP 578). A hook cannot be removed, so
the guarded process does nothing else. Actions of native libraries are not seen here; to catch them, malicious paths
point to a pipe that nobody writes to, so that opening it never returns.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

CASE_SECONDS = 5
"""CPU seconds after which a case counts as a hang."""

MEMORY = 6 * 2**30
"""Bytes of address space that a case may add; more is a decompression bomb that was not refused. A picture of the
largest allowed size takes less than 4 GiB."""

NEVER = (
    *("pickle.find_class", "marshal.loads", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "webbrowser.open"),
)
"""Forbidden events: loading a pickle, starting a program, using the network. Imports may unmarshal compiled Python."""

CHANGES = (
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile", "tempfile.mkdtemp", "tempfile.mkstemp"),
)
"""Events that change files; the path is their first argument."""

OF_TWO_PATHS = ("os.rename", "os.link", "shutil.move")

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Broken(BaseException):
    """A rule was broken. A BaseException, so that no `except Exception` of the product can hide it."""


class TooSlow(Broken):
    """A case exceeded the limit on CPU time."""


class Guard:
    """Enforces the rules while a case runs. It may write to `folder` only; with `reads_anywhere` it may read any file
    that the input names, as for a command line or a recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.reads_anywhere = True
        self.broken: list[str] = []
        self._on = False
        self._ours = (self.folder, *map(os.path.realpath, (sys.prefix, sys.base_prefix, Path(__file__).parents[2])))

    def install(self) -> None:
        """Install the hooks for the rest of the process's life."""
        sys.addaudithook(self._hear)
        signal.signal(signal.SIGPROF, _too_slow)

    @contextmanager
    def watching(self, *, reads_anywhere: bool) -> Iterator[None]:
        """Raise Broken for the first rule that the body breaks, even if the body swallowed the exception."""
        self.broken.clear()
        self.reads_anywhere, self._on = reads_anywhere, True
        signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._on = False
        if self.broken:
            raise Broken(self.broken[0])

    def _hear(self, event: str, details: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in NEVER and not (event == "marshal.loads" and _importing()):
            self._refuse(f"{event} {details[:1]}")
        elif event == "open":
            self._hear_open(*details)
        elif event in CHANGES:
            for path in details[: 2 if event in OF_TWO_PATHS else 1]:
                self._check(path, event, (self.folder,))

    def _hear_open(self, path: object, mode: str | None, flags: int | None) -> None:
        writes = any(letter in mode for letter in "wax+") if mode else bool((flags or 0) & WRITING)
        if writes:
            self._check(path, "write", (self.folder,))
        elif not self.reads_anywhere:
            self._check(path, "read", self._ours)

    def _check(self, path: object, what: str, allowed: tuple[str, ...]) -> None:
        if isinstance(path, int) or path is None or os.fspath(path) in (os.devnull, os.fsencode(os.devnull)):
            return
        text = os.fsdecode(path)
        if "\0" in text:
            return  # the operating system rejects it
        place = os.path.realpath(text)
        if not any(place == each or place.startswith(each + os.sep) for each in allowed):
            self._refuse(f"{what} of {place!r}")

    def _refuse(self, what: str) -> None:
        self.broken.append(what)
        raise Broken(what)


def _importing() -> bool:
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap_external>":
        frame = frame.f_back
    return frame is not None


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {CASE_SECONDS} s of processor time")


def limit_memory() -> None:
    """Limit the address space to its current size plus MEMORY. Call after all imports, so that memory reserved by
    libraries does not count."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
