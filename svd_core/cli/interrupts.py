"""Ctrl-C, remembered: libraries turn the KeyboardInterrupt that it raises into other errors, or swallow it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

PATIENCE = 2.0
"""Seconds after Ctrl-C in which pressing it again changes nothing, so that scratch files can be removed."""


class Interrupts:
    """A context in which SIGINT raises KeyboardInterrupt and `heard` says that it did.

    Where SIGINT has another meaning already (ignored in a background job, or a host's own) it keeps that.
    """

    def __init__(self) -> None:
        self.heard = False
        self._last = -PATIENCE
        self._ours = False
        self._waiting = False

    def __enter__(self) -> Interrupts:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._ours = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def run_whole(self, work: Callable[[], None]) -> None:
        """Do short work that an exception would crash, as it does torch's import from C++; interrupt after it."""
        self._waiting = True
        try:
            work()
        finally:
            self._waiting = False
        if self.heard:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.heard = True
        now = time.monotonic()
        if not self._waiting and now - self._last >= PATIENCE:
            self._last = now
            raise KeyboardInterrupt
