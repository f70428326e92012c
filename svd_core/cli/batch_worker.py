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
from .order import Order, order_from_flags
from .render import load_model, render_order


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one picture: stdout and stderr are what `animate` would have printed there; error is empty if the
    clip was written; permanent says that a retry would not help."""

    stdout: str = ""
    stderr: str = ""
    error: str = ""
    permanent: bool = False


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
        stdout, stderr = io.StringIO(), io.StringIO()
        error, permanent = "", False
        try:
            with redirect_stdout(stdout), redirect_stderr(stderr):
                render_order(order_from_flags(args), args, self._load, self._progress_kept)
        except StableVideoError as refused:
            error, permanent = str(refused), True
        except Exception as failed:  # anything else may be due to this machine, not the picture
            error = f"{type(failed).__name__}: {' '.join(str(failed).split())}"
        finally:
            self._progress = None
        return Outcome(stdout.getvalue(), stderr.getvalue(), error, permanent)

    def stop(self) -> None:
        """Stop rendering at the next progress report; a clip that is being written is finished."""
        self._stopped = True

    def progress(self) -> tuple[str, int, int] | None:
        """(stage, parts done, parts in total); None between pictures."""
        now = self._progress
        return None if now is None else (now.stage, now.index, now.total)

    def _load(self, order: Order, source: Source | None, stream_weights: bool) -> tuple[StableVideo, Source]:
        """The cached model. Whether its weights are streamed depends on the picture's size; a change reloads it."""
        if stream_weights not in self._loaded:
            self._loaded.clear()
            self._loaded[stream_weights] = load_model(order, source, stream_weights)
        return self._loaded[stream_weights]

    @contextmanager
    def _progress_kept(self) -> Iterator[ProgressFn]:
        def keep(progress: Progress) -> None:
            self._progress = progress
            if self._stopped:
                raise _StoppedError

        yield keep
