"""`python -m benchmarks`: every measurement in turn, each in a process of its own so that peaks do not mix."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BIG_FILE = Path(".bench/svd_random_fp16.safetensors")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--big-file", type=Path, default=BIG_FILE, help="where the 4.78 GB random checkpoint lies")
    arguments = parser.parse_args()
    return subprocess.run([sys.executable, "-m", "benchmarks.real_size", str(arguments.big_file)]).returncode


if __name__ == "__main__":
    raise SystemExit(main())
