"""Work in a forked child, which may be killed, lose its rights or fill its disk without taking the tests along."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable

NOBODY = 65534
"""The user that owns nothing."""


def in_a_child(work: Callable[[], object]) -> str:
    """What `work` returns as text, or "Kind: message" of what it raises; "killed" where a SIGKILL ended it."""
    reading, writing = os.pipe()
    child = _fork()
    if child == 0:
        os.close(reading)
        os.write(writing, _outcome(work).encode("utf-8", "backslashreplace")[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    return _ended(child) or said


def at_once(*works: Callable[[], object]) -> list[str]:
    """Each in a child of its own, all running at the same time."""
    gate, go = os.pipe()
    children = []
    for work in works:
        child = _fork()
        if child == 0:
            os.close(go)
            os.read(gate, 1)  # returns for all of them together, when the other end is closed
            outcome = _outcome(work)
            os._exit(0 if outcome == "None" else 1)
        children.append(child)
    os.close(gate)
    os.close(go)
    return [_ended(child) for child in children]


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which torch has; the child uses none of them
        return os.fork()


def _outcome(work: Callable[[], object]) -> str:
    try:
        return str(work())
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def _ended(child: int) -> str:
    """Empty for a child that ended well."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "" if code == 0 else "killed" if code == -signal.SIGKILL else f"ended with {code}"


def kill_this_process(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
