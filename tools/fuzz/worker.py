"""The process that runs cases: `python -m tools.fuzz.worker FOLDER NAME:FIRST:COUNT ...`, started by tools.fuzz.

FOLDER/now holds the current case, to identify it if the process dies or hangs. Failures and summaries go to stdout as
JSON, one per line.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from svd_core.errors import StableVideoError

from .guard import CASE_SECONDS, Broken, Guard, limit_memory
from .targets import TARGETS, Case, Target, lay_lure

MOST_CHARACTERS = 4000
"""Maximum length of an error message."""


@dataclass(slots=True)
class Now:
    """The current case, and counts of the previous ones; seconds are CPU time."""

    target: str = ""
    seed: int = 0
    taken: int = 0
    refused: int = 0
    slowest: float = 0.0
    slowest_seed: int = 0


class Worker:
    """Runs cases. `folder` is recreated for every case, next to the corpora and the lure outside it."""

    def __init__(self, base: Path) -> None:
        self.base, self.folder = base, base / "case"
        self.guard = Guard(self.folder)
        self.now = Now()
        self._file = os.open(base / "now", os.O_CREAT | os.O_WRONLY)

    def run(self, jobs: list[tuple[str, int, int]]) -> None:
        lay_lure(self.base / "outside")
        cases = {name: self._prepared(name) for name, _, _ in jobs}
        limit_memory()
        self.guard.install()
        for name, first, count in jobs:
            self.now = Now(name)
            for seed in range(first, first + count):
                self._one(TARGETS[name], cases[name], seed)
            self._note(end=True)

    def _prepared(self, name: str) -> Case:
        corpus = self.base / f"corpus-{name}"
        corpus.mkdir()
        return TARGETS[name].prepare(corpus)

    def _one(self, target: Target, case: Case, seed: int) -> None:
        self.now.seed = seed
        self._note()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        os.chdir(self.folder)  # relative paths are written here
        rng = random.Random(f"{self.now.target} {seed}")  # seeding with a string is the same on every platform
        began = time.process_time()
        try:
            with self.guard.watching(reads_anywhere=target.reads_anywhere):
                case(rng, self.folder)
            self.now.taken += 1
        except StableVideoError as error:
            self.now.refused += 1
            self._check_message(str(error))
        except (Exception, Broken) as error:
            self._fail(f"{type(error).__name__}: {error}", traceback.format_exc())
        self._check_time(time.process_time() - began)

    def _check_message(self, message: str) -> None:
        if not message.isprintable() or not 10 <= len(message) <= MOST_CHARACTERS:
            self._fail(f"a refusal that is not one line: {message!r}"[:500])

    def _check_time(self, seconds: float) -> None:
        if seconds > self.now.slowest:
            self.now.slowest, self.now.slowest_seed = seconds, self.now.seed
        if seconds > CASE_SECONDS:
            self._fail(f"took {seconds:.1f} s of processor time")

    def _fail(self, what: str, trace: str = "") -> None:
        line = {"target": self.now.target, "seed": self.now.seed, "what": what[:1000], "trace": trace[-3000:]}
        print(json.dumps(line), flush=True)

    def _note(self, *, end: bool = False) -> None:
        os.pwrite(self._file, json.dumps({**asdict(self.now), "end": end}).ljust(200).encode(), 0)
        if end:
            print(json.dumps(asdict(self.now)), flush=True)


def _job(text: str) -> tuple[str, int, int]:
    name, first, count = text.split(":")
    return name, int(first), int(count)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # from other packages
    torch.set_num_threads(1)
    Worker(Path(sys.argv[1])).run([_job(text) for text in sys.argv[2:]])
