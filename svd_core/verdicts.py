"""Verdicts: which of several forms of an operation runs, where the clock decides.

All forms are as accurate, but they round differently. Where two are about as quick, two processes may decide otherwise,
and frames differ in their last bits. So a recipe records the verdicts that its clip was made by, and making it again
settles them: probes still refuse what is wrong on this machine, and ask no clock.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Recorded = tuple[tuple[str, str], ...]
"""Questions, each with the name of the form that was chosen."""


@dataclass(slots=True)
class Verdicts:
    """The verdicts of a process: answers by question.

    known: all that were given. used: by this clip. settled: by the recipe of an earlier one. asked: the question that a
    probe is at, or "". clips: counts them, so that each use of an answer is noted once a clip.
    """

    known: dict[str, str] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    settled: dict[str, str] = field(default_factory=dict)
    asked: str = ""
    clips: int = 0

    def begin(self, settled: Recorded = ()) -> None:
        """Begin a clip, whose recipe may have settled some verdicts."""
        self.used, self.settled = {}, dict(settled)
        self.clips += 1

    def answer(self, question: str) -> str | None:
        """An answer that was given, unless a recipe says otherwise."""
        answer = self.known.get(question)
        return answer if answer == self.settled.get(question, answer) else None

    @contextmanager
    def asking(self, question: str) -> Iterator[None]:
        """Context of the probe of a question, which may ask others."""
        before, self.asked = self.asked, question
        try:
            yield
        finally:
            self.asked = before

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
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
