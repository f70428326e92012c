"""Peak memory of the full 1.5 B network on the CPU, from a file of the released size to frames."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

import svd_core
from benchmarks.big_file import write_big_file
from benchmarks.memory import PeakMemory

FRAMES, WIDTH, HEIGHT, STEPS = 4, 192, 128, 2
LIMIT = 1.25
"""Allowed peak anonymous memory, as a multiple of the file's size."""


def main(path: Path) -> int:
    """Load the file in bf16, render a short clip and print one JSON object; returns 1 above the limit. Run it in its
    own process."""
    size = write_big_file(path)
    image = np.linspace(0, 1, HEIGHT * WIDTH * 3, dtype=np.float32).reshape(HEIGHT, WIDTH, 3)
    with PeakMemory() as memory:
        start = time.perf_counter()
        svd = svd_core.load_checkpoint(path, dtype=torch.bfloat16)
        loaded = time.perf_counter()
        frames = svd.animate(image, frames=FRAMES, steps=STEPS, width=WIDTH, height=HEIGHT)
        done = time.perf_counter()
    result = {
        "case": f"{FRAMES} frames at {WIDTH}x{HEIGHT}, {STEPS} steps, bf16, {torch.get_num_threads()} threads",
        "file_bytes": size,
        "peak_anonymous_bytes": memory.peak,
        "peak_over_file": round(memory.peak / size, 3),
        "limit": LIMIT,
        "load_s": round(loaded - start, 1),
        "render_s": round(done - loaded, 1),
        "frames_shape": list(frames.shape),
        "frames_finite": bool(np.isfinite(frames).all()),
    }
    print(json.dumps(result, indent=2))
    return int(memory.peak > LIMIT * size)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
