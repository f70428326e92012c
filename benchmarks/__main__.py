"""`python -m benchmarks`: run all measurements, each in its own process so that memory peaks do not mix."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BIG_FILE = Path(".bench/svd_random_fp16.safetensors")


def main() -> int:
    """Run all measurements. Returns the number that missed their limit or failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small cases, and no run at real size")
    parser.add_argument("--big-file", type=Path, default=BIG_FILE, help="where the 4.78 GB random checkpoint lies")
    arguments = parser.parse_args()
    cases = [
        ["benchmarks.import_cost"],
        ["benchmarks.forward", *(["--quick", "--rounds", "3"] if arguments.quick else [])],
    ]
    if not arguments.quick:
        cases.append(["benchmarks.real_size", str(arguments.big_file)])
    return sum(subprocess.run([sys.executable, "-m", *case]).returncode != 0 for case in cases)


if __name__ == "__main__":
    raise SystemExit(main())
