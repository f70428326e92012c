"""Speed-up and error of the approximate shortcuts on the demo model: `python -m benchmarks.shortcuts`.

The same held-out scenes and seeds are rendered exactly and with each shortcut. Time is CPU time of sampling alone;
rounds start with another method each time. The distance from the exact clip is measured in latents and in frames, and
compared with that of a clip from another seed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.reports import rotated, write_report
from svd_core.clip import Clip, Progress
from svd_core.demo import DEMO_MODEL
from svd_core.loading import load_checkpoint
from svd_core.measure import psnr
from svd_core.pipeline import StableVideo
from svd_core.settings import Settings, WeightsName
from tools.random_weights import relative
from training.world import HELD_OUT_SEEDS, draw_scene

OUTPUT = Path("output/bench")
SCENES = (("rocket", 6000), ("pan", 6001), ("clouds", 6002))
"""Kind and index of the held-out seed of each scene."""


@dataclass(frozen=True, slots=True)
class Way:
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    weights: WeightsName = "whole"


EXACT = Way("exact")
WAYS = (
    EXACT,
    *(Way(f"reuse {threshold}", {"reuse": threshold}) for threshold in (0.02, 0.05, 0.1, 0.2, 0.3)),
    Way("guidance from 1 to 100", {"guidance_interval": (1.0, 100.0)}),
    *(Way(f"weights {weights}", weights=weights) for weights in ("int8", "fp8")),
    Way("exact, another seed", {"seed": 1}),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Means over scenes. `time_ratio` is the exact clip's time over this one's in the same round: above 1 is faster;
    its range is over scenes. `decibels` is the peak signal-to-noise ratio of the frames."""

    name: str
    seconds: float
    time_ratio: float
    time_ratio_range: tuple[float, float]
    latents: float
    decibels: float
    served: str


def rendered(svd: StableVideo, still: np.ndarray, way: Way) -> tuple[Clip, float]:
    """The clip, and CPU seconds from the first step to the last."""
    marks: list[float] = []

    def watch(progress: Progress) -> None:
        if progress.stage == "sample":
            marks.append(time.process_time())

    clip = svd.render(still, Settings(**way.settings), callback=watch)
    return clip, marks[-1] - marks[0]


def scene_rounds(
    models: Mapping[str, StableVideo], still: np.ndarray, number: int, ways: Sequence[Way]
) -> dict[str, tuple[Clip, float]]:
    return {way.name: rendered(models[way.weights], still, way) for way in rotated(ways, number)}


def rows_of(rounds: Sequence[Mapping[str, tuple[Clip, float]]]) -> list[Row]:
    return [_row(name, rounds) for name in (way.name for way in WAYS) if name in rounds[0]]


def _row(name: str, rounds: Sequence[Mapping[str, tuple[Clip, float]]]) -> Row:
    exact, own = [each[EXACT.name] for each in rounds], [each[name] for each in rounds]
    ratios = [one[1] / other[1] for one, other in zip(exact, own, strict=True)]
    pairs = [(other[0], one[0]) for one, other in zip(exact, own, strict=True)]
    return Row(
        name,
        statistics.mean(seconds for _, seconds in own),
        statistics.mean(ratios),
        (min(ratios), max(ratios)),
        statistics.mean(relative(clip.latents, true.latents) for clip, true in pairs),
        statistics.mean(psnr(clip.frames, true.frames) for clip, true in pairs),
        "; ".join(clip.reuse_report.partition(": ")[2].partition(" UNet")[0] for clip, _ in pairs).strip("; "),
    )


def markdown(rows: Sequence[Row]) -> str:
    lines = [
        "| way | sampling, CPU s | times as fast (range) | latents, relative | frames, dB | calls served, by scene |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        low, high = row.time_ratio_range
        cells = (f"{row.seconds:.2f}", f"{row.time_ratio:.2f} ({low:.2f}-{high:.2f})", f"{row.latents:.3f}")
        lines.append(f"| {row.name} | {' | '.join(cells)} | {row.decibels:.1f} | {row.served or '-'} |")
    return "\n".join(lines)


def measure(say: Callable[[str], None] = print, scenes: Sequence[tuple[str, int]] = SCENES) -> list[Row]:
    models = {weights: load_checkpoint(DEMO_MODEL, weights=weights) for weights in get_args(WeightsName)}
    variant = models["whole"].config.variant
    size = {"frames": variant.frames, "width": variant.width, "height": variant.height}
    rounds = []
    for number, (kind, place) in enumerate(scenes):
        say(f"{kind} {place}")
        still = draw_scene(HELD_OUT_SEEDS[place], kind=kind, **size).still
        if number == 0:
            rendered(models["whole"], still, EXACT)  # warm up: first calls choose kernels
        rounds.append(scene_rounds(models, still, number, WAYS))
    return rows_of(rounds)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shortcuts", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scenes", type=int, default=len(SCENES), choices=range(1, len(SCENES) + 1))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    rows = measure(scenes=SCENES[: given.scenes])
    write_report(OUTPUT, "shortcuts", markdown(rows) + "\n", [asdict(row) for row in rows])
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
