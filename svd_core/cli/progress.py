"""Progress of a render on a terminal: one bar per stage, with the time per step and the time left."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm import tqdm

from ..clip import Progress

_FORMAT = "{desc:<9} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{rate_inv_fmt}, {elapsed} gone, {remaining} left]"


class Bars:
    """A callback for `StableVideo.render` that draws bars; a context manager. Silent if stderr is not a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._stage = ""
        self._last_report = time.time()

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._open(progress)
        self._bar.update(progress.index - self._bar.n)
        self._last_report = time.time()

    def _open(self, progress: Progress) -> None:
        """Start a bar. A stage's first report may follow its first step, so time starts at the last report before."""
        self.close()
        self._stage = progress.stage
        self._bar = tqdm(
            total=progress.total, desc=progress.stage, unit="step", bar_format=_FORMAT, disable=None, mininterval=0
        )
        self._bar.start_t = self._bar.last_print_t = self._last_report

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
