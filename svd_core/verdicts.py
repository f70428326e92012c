"""Verdicts: which of several forms of an operation runs, where the clock decides.

All forms are as accurate, but they round differently. Where two are about as quick, two processes may decide otherwise,
and frames differ in their last bits. So a recipe records the verdicts that its clip was made by, and making it again
settles them: probes still refuse what is wrong on this machine, and ask no clock. Of two processes that split guidance,
the recipe has the verdicts of the one that leads.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Recorded = tuple[tuple[str, str], ...]
"""Questions, each with the name of the form that was chosen."""


@dataclass(slots=True)
class Verdicts:
    """The verdicts of a process, which makes one clip at a time: answers by question.

    known: all that were given. used: by this clip. settled: by the recipe of an earlier one. made: what those who ask
    keep for this clip, each under keys of its own.
    """

    known: dict[str, str] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    settled: dict[str, str] = field(default_factory=dict)
    made: dict[Hashable, Any] = field(default_factory=dict)
    _probes: threading.local = field(default_factory=threading.local)

    def begin(self, settled: Recorded = ()) -> None:
        """Begin a clip, whose recipe may have settled some verdicts."""
        self.used, self.made, self.settled = {}, {}, dict(settled)

    def answer(self, question: str) -> str | None:
        """An answer that was given, unless a recipe says otherwise."""
        answer = self.known.get(question)
        return answer if answer == self.settled.get(question, answer) else None

    @contextmanager
    def probing(self, settled: bool | None) -> Iterator[None]:
        """Context of a probe, whose answer a recipe may have settled. It may ask others."""
        outer = self._answers
        self._probes.answers = (*outer, settled)
        try:
            yield
        finally:
            self._probes.answers = outer

    @property
    def in_probe(self) -> bool:
        """Whether this thread is in a probe."""
        return bool(self._answers)

    @property
    def settled_here(self) -> bool | None:
        """What a recipe says of the question that this thread's probe is at, if anything."""
        return self._answers[-1] if self._answers else None

    @property
    def _answers(self) -> tuple[bool | None, ...]:
        return getattr(self._probes, "answers", ())

    def recorded(self, most: int) -> Recorded:
        """The verdicts for the clip's recipe, at most the last `most`; those of the one that it repeats come first."""
        return tuple((self.settled | self.used).items())[-most:]


@cache
def verdicts() -> Verdicts:
    """The verdicts of this process, a singleton."""
    return Verdicts()


@cache
def machine(device: torch.device) -> str:
    """The model of a GPU, or of the processor, as far as the system says: verdicts hold for that one alone."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    lines = (line.partition(":") for line in processor().splitlines())
    names = (value.strip() for name, _, value in lines if name.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def processor() -> str:
    """What the system says of the processor: on Linux in many lines."""
    info = Path("/proc/cpuinfo")
    return info.read_text(errors="replace") if info.is_file() else platform.processor()
