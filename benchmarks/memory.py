"""Peak anonymous memory of this process: without file pages, which the system can drop at any time."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

INTERVAL_S = 0.02


def anonymous_bytes() -> int:
    """Resident anonymous memory of this process, from the kernel's own count (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not report RssAnon: this measurement needs Linux 4.5 or newer")


class PeakMemory:
    """Samples anonymous memory while the block runs; `peak` is the total in bytes, not the increase since the start."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous_bytes())

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self.peak = max(self.peak, anonymous_bytes())
