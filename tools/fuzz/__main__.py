"""Runs the cases in a process of their own, and starts another where one dies or hangs."""

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
"""Wall time for imports and whole files to damage, on a busy machine."""

STUCK_SECONDS = 60.0
"""Wall time after which a case that uses no processor time is stuck; see `guard.CASE_SECONDS` for one that does."""

Job = tuple[str, int, int]
"""(target, first seed, number of cases)."""


@dataclass(slots=True)
class Report:
    """Failures with their seeds, and a line on each target: how many were taken and refused, and the slowest."""

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
    """One process; the jobs that it left because it died or hung."""
    command = [sys.executable, "-m", "tools.fuzz.worker", str(base), *(":".join(map(str, job)) for job in jobs)]
    with (base / "said").open("wb") as said, (base / "noise").open("wb") as noise:
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=said, stderr=noise)
        ended = _await_end(process, base / "now")
    trace = (base / "noise").read_text(encoding="utf-8", errors="replace")[-3000:]  # with what decoders print
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
    """How the process ended: "whole", or in words."""
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
    """What is left once a case has ended its process."""
    place = next(place for place, job in enumerate(jobs) if job[0] == target)
    name, first, count = jobs[place]
    left = first + count - seed - 1
    return [(name, seed + 1, left), *jobs[place + 1 :]] if left else jobs[place + 1 :]


def main(argv: Sequence[str] | None = None) -> int:
    """0 where every case was taken or refused as promised, 1 where one was not."""
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
    """The cases of all targets by their shares, or of a few in equal parts."""
    given = shares(cases) if set(targets) == set(WEIGHTS) else dict.fromkeys(targets, max(1, cases // len(targets)))
    return [(name, seed, given[name]) for name in targets if given[name]]


if __name__ == "__main__":
    sys.exit(main())
