"""Run the cases in a worker process, and start another one if it dies or hangs."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .guard import CASE_SECONDS
from .shares import WEIGHTS, shares

NIGHTLY = 100_000
START_SECONDS = 120.0
"""Allowed wall time for imports and for creating the valid inputs, on a busy machine."""

STUCK_SECONDS = 60.0
"""Wall time after which a case that uses no CPU time is stuck; `guard.CASE_SECONDS` limits CPU time."""

Job = tuple[str, int, int]
"""(target, first seed, number of cases)."""


@dataclass(slots=True)
class Report:
    """Failures with their seeds, and a summary of each target: cases accepted and refused, and the slowest."""

    failures: list[dict[str, Any]] = field(default_factory=list)
    done: list[dict[str, Any]] = field(default_factory=list)

    def lines(self) -> list[str]:
        rows = [
            f"{each['target']:<16}{each['taken'] + each['refused']:>8,} cases, {each['taken']:,} taken, "
            f"{each['refused']:,} refused, slowest {each['slowest']:.2f} s (seed {each['slowest_seed']})"
            for each in self.done
        ]
        for each in self.failures:
            rows += ["", f"FAILED {each['what']}", *each["trace"].splitlines()[-12:], f"again: {again(each)}"]
        return rows


def again(failure: dict[str, Any]) -> str:
    """The command that repeats a failing case."""
    return f"python -m tools.fuzz {failure['target']} --seed {failure['seed']} --cases 1"


def fuzz(jobs: Sequence[Job]) -> Report:
    """Run all cases."""
    report, left = Report(), list(jobs)
    while left:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as base:
            left = _run(Path(base), left, report)
    return report


def _run(base: Path, jobs: list[Job], report: Report) -> list[Job]:
    """Run one process. Returns the jobs that are left because it died or hung."""
    command = [sys.executable, "-m", "tools.fuzz.worker", str(base), *(":".join(map(str, job)) for job in jobs)]
    with (base / "said").open("wb") as said, (base / "noise").open("wb") as noise:
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=said, stderr=noise)
        ended = _await_end(process, base / "now")
    trace = (base / "noise").read_text(encoding="utf-8", errors="replace")[-3000:]  # includes output of decoders
    lines = [json.loads(line) for line in (base / "said").read_text(encoding="utf-8").splitlines()]
    report.failures += [line for line in lines if "what" in line]
    report.done += [line for line in lines if "taken" in line]
    if ended == "whole":
        return []
    now = _now(base / "now")
    if now is None:
        raise SystemExit(f"{trace}\nerror: the fuzzer itself {ended} before its first case")
    what = f"the process {ended}, after {now['taken']} taken and {now['refused']} refused"
    report.failures.append({"target": now["target"], "seed": now["seed"], "what": what, "trace": trace})
    return _after(jobs, now["target"], now["seed"])


def _await_end(process: subprocess.Popen, now: Path) -> str:
    """Wait for the process. Returns "whole" if it succeeded, else a description of how it ended."""
    seen, since, patience = b"", time.monotonic(), START_SECONDS
    while process.poll() is None:
        time.sleep(0.05)
        current = now.read_bytes() if now.exists() else b""
        if current != seen:
            seen, since, patience = current, time.monotonic(), STUCK_SECONDS
        if time.monotonic() - since > patience:
            process.kill()
            process.wait()
            return f"was stuck for {patience:.0f} s (and killed)"
    return "whole" if process.returncode == 0 else f"died with status {process.returncode}"


def _now(file: Path) -> dict[str, Any] | None:
    text = file.read_text(encoding="ascii").strip() if file.exists() else ""
    return json.loads(text) if text else None


def _after(jobs: list[Job], target: str, seed: int) -> list[Job]:
    """The jobs left after a case that ended its process."""
    place = next(place for place, job in enumerate(jobs) if job[0] == target)
    name, first, count = jobs[place]
    left = first + count - seed - 1
    return [(name, seed + 1, left), *jobs[place + 1 :]] if left else jobs[place + 1 :]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the fuzzer. Returns 0 if every case was accepted or properly refused, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description="Fuzz everything that reads files.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(WEIGHTS)} (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others follow (default: 0)")
    parser.add_argument("--cases", type=int, default=NIGHTLY, help=f"in all (default: {NIGHTLY})")
    args = parser.parse_args(argv)
    if unknown := set(args.targets) - set(WEIGHTS):
        parser.error(f"unknown target {sorted(unknown)[0]}")
    began = time.monotonic()
    report = fuzz(plan(args.targets or list(WEIGHTS), args.seed, args.cases))
    print("\n".join(report.lines()))
    print(f"{len(report.failures)} failures, {time.monotonic() - began:.0f} s, {CASE_SECONDS} s allowed a case")
    return 1 if report.failures else 0


def plan(targets: Sequence[str], seed: int, cases: int) -> list[Job]:
    """The jobs: all targets get cases by their shares, a selection of targets equal numbers."""
    given = shares(cases) if set(targets) == set(WEIGHTS) else dict.fromkeys(targets, max(1, cases // len(targets)))
    return [(name, seed, given[name]) for name in targets if given[name]]


if __name__ == "__main__":
    sys.exit(main())
