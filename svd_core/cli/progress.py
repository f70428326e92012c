"""Progress of a render on a terminal: one bar a stage, with the time a step takes and the time left."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm import tqdm

from ..pipeline import Progress

_FORMAT = "{desc:<9} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{rate_inv_fmt}, {elapsed} gone, {remaining} left]"


class Bars:
    """A callback for `StableVideo.render` and the context of its bars. Silent where stderr is no terminal."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._stage = ""
        self._last_heard = time.time()

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._open(progress)
        self._bar.update(progress.index - self._bar.n)
        self._last_heard = time.time()

    def _open(self, progress: Progress) -> None:
        """A stage may first be heard of when its first step is done; it began when the one before ended."""
        self.close()
        self._stage = progress.stage
        self._bar = tqdm(
            total=progress.total, desc=progress.stage, unit="step", bar_format=_FORMAT, disable=None, mininterval=0
        )
        self._bar.start_t = self._bar.last_print_t = self._last_heard

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
