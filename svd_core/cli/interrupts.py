"""Signal handling that remembers Ctrl-C and similar, because libraries swallow or replace KeyboardInterrupt."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

PATIENCE = 2.0
"""Seconds after Ctrl-C during which further presses are ignored, so that scratch files can be removed."""

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; `docker stop` or `timeout`; and a closed terminal (SIGHUP does not exist on Windows)."""


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP was received.

    A separate class because after a plain KeyboardInterrupt within a library's `exec`, Python exits with SIGINT's
    status, whatever the exit code.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def signal_of(error: BaseException) -> int:
    """The number of the signal that caused an exception; 0 if none did."""
    if isinstance(error, Ended):
        return error.number
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0


class Interrupts:
    """A context in which SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt; `first` is the first one's number,
    0 before any.

    Signals that already have another handler (ignored in a background job or under nohup, or a host's own) keep it.
    """

    def __init__(self) -> None:
        self.first = 0
        self._last_raised = -PATIENCE
        self._before: dict[int, Any] = {}
        self._deferred = False

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            if signal.getsignal(number) == usual:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run_uninterrupted(self, work: Callable[[], None]) -> None:
        """Run short work that an exception would crash (such as importing torch, in C++), and interrupt after it."""
        self._deferred = True
        try:
            work()
        finally:
            self._deferred = False
        if self.first:
            raise _as_exception(self.first)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.first = self.first or number
        now = time.monotonic()
        if not self._deferred and now - self._last_raised >= PATIENCE:
            self._last_raised = now
            raise _as_exception(number)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore our signal handlers after a library has replaced them, as Ray does for SIGTERM; a SystemExit from the
    library's handler becomes Ended."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    except SystemExit as error:
        raise Ended(signal.SIGTERM) from error
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)


def _as_exception(number: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if number == signal.SIGINT else Ended(number)
