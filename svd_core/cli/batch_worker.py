"""A worker of a batch, which runs in its own process, loads the model once and renders the pictures it is given."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

import torch

from ..clip import Progress, ProgressFn
from ..errors import StableVideoError
from ..pipeline import StableVideo
from ..recipe import Source
from .commands import Means, Order, load_model, order_from_flags, render_order


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one picture: said and noted are what `animate` would have printed on stdout and stderr; error is
    empty if the clip was written; lasting says that a retry would not help."""

    said: str = ""
    noted: str = ""
    error: str = ""
    lasting: bool = False


class _StoppedError(Exception):
    """The batch was interrupted."""


class Worker:
    """Renders one picture at a time with one model. Other threads may call `progress` and `stop` meanwhile."""

    def __init__(self, flags: dict[str, object], threads: int) -> None:
        self._flags, self._threads = flags, threads
        self._loaded: dict[bool, tuple[StableVideo, Source]] = {}
        self._progress: Progress | None = None
        self._stopped = False

    def render(self, image: str, output: str) -> Outcome:
        """Write the clip of a picture. Errors are returned in the outcome."""
        torch.set_num_threads(self._threads)  # here, because the setting is per thread
        args = Namespace(**self._flags, image=image, output=output)
        means = Means(load=self._load, bars=self._listening)
        said, noted = io.StringIO(), io.StringIO()
        error, lasting = "", False
        try:
            with redirect_stdout(said), redirect_stderr(noted):
                render_order(order_from_flags(args), args, means)
        except StableVideoError as refused:
            error, lasting = str(refused), True
        except Exception as failed:  # anything else may be due to this machine, not the picture
            error = f"{type(failed).__name__}: {' '.join(str(failed).split())}"
        finally:
            self._progress = None
        return Outcome(said.getvalue(), noted.getvalue(), error, lasting)

    def stop(self) -> None:
        """Stop rendering at the next progress report; a clip that is being written is finished."""
        self._stopped = True

    def progress(self) -> tuple[str, int, int] | None:
        """(stage, parts done, parts in total); None between pictures."""
        now = self._progress
        return None if now is None else (now.stage, now.index, now.total)

    def _load(self, order: Order, args: Namespace, stream_weights: bool) -> tuple[StableVideo, Source]:
        """The cached model. Whether its weights are streamed depends on the picture's size; a change reloads it."""
        if stream_weights not in self._loaded:
            self._loaded.clear()
            self._loaded[stream_weights] = load_model(order, args, stream_weights)
        return self._loaded[stream_weights]

    @contextmanager
    def _listening(self) -> Iterator[ProgressFn]:
        def heard(progress: Progress) -> None:
            self._progress = progress
            if self._stopped:
                raise _StoppedError

        yield heard
