"""Whether Seed Scout's cheap clips rank seeds as full ones do, on the demo model: `python -m benchmarks.scout`.

For each of a few held-out scenes the same seeds are rendered twice, in full and cheaply, from the same noise and
conditioning. Both are scored the same way, and the two rankings are compared by Spearman's rank correlation; the figure
is the mean over scenes, for each of the scout's ranking criteria. Clips are cached in output/scout, from which an
interrupted run resumes; `--fresh`, another model or other sampling settings clear the cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from svd_core.conditioning import Conditioning, draw_noise
from svd_core.config import LATENT_CHANNELS, PIXELS_PER_LATENT
from svd_core.demo import DEMO_MODEL
from svd_core.loading import load_checkpoint
from svd_core.measure import WISHES, Scouted, Trial, scout
from svd_core.measure.scout import CHEAP_SAMPLER, CHEAP_SCHEDULE, CHEAP_STEPS
from svd_core.pipeline import StableVideo
from svd_core.sampling import guidance_for, sigmas_for
from svd_core.settings import Settings
from training.measure import spearman
from training.world import HELD_OUT_SEEDS, Scene, draw_scene

OUTPUT = Path("output/scout")
SCENES = (("rocket", 6000), ("pan", 6001), ("clouds", 6002))
"""Kind and index of the held-out seed of each scene; chosen before anything was rendered."""

SEEDS = tuple(range(8))
LEAST = 0.7
"""Threshold for every correlation."""


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """A named set of sampling settings; None takes the variant's own value."""

    name: str
    settings: Settings


FULL = Way("full", Settings())
CHEAP = Way("cheap", Settings(steps=CHEAP_STEPS, schedule=CHEAP_SCHEDULE, sampler=CHEAP_SAMPLER))


@dataclass(frozen=True, slots=True)
class Figure:
    """A criterion's mean correlation over scenes, that of each scene, and `kept`, the full score of the scout's chosen
    seed in percent of the best seed's, mean over scenes."""

    wish: str
    value: float
    scenes: tuple[float, ...]
    kept: float
    least: float = LEAST

    @property
    def verdict(self) -> str:
        return "reached" if self.value >= self.least else "MISSED"

    def __str__(self) -> str:
        scenes = " ".join(f"{value:5.2f}" for value in self.scenes)
        return (
            f"{self.wish:24} {self.value:5.2f} (at least {self.least}) {self.verdict:8} {scenes}   {self.kept:5.1f} %"
        )


class Renderer:
    """Clips of one scene by seed, generated from its still; each is rendered once and cached as a file."""

    def __init__(self, svd: StableVideo, scene: Scene, way: Way, folder: Path) -> None:
        self.svd, self.way, self.folder, self.kind = svd, way, folder, scene.kind
        self.settings = way.settings.for_variant(svd.config.variant)
        self.still = scene.still
        self._conditioning: Conditioning | None = None

    def __call__(self, seed: int) -> np.ndarray:
        path = self.folder / f"{self.kind}_{seed}_{self.way.name}.npy"
        if not path.exists():
            frames = self.svd.decode_latents(self._sample(seed))
            np.save(path, np.rint(frames * 255).astype(np.uint8))
            print(f"{self.kind}, seed {seed}, {self.way.name}", flush=True)
        return np.load(path).astype(np.float32) / 255

    def _sample(self, seed: int) -> Tensor:
        if self._conditioning is None:
            self._conditioning = self.svd.condition(torch.from_numpy(self.still).permute(2, 0, 1)[None] * 2 - 1)
        size = tuple(side // PIXELS_PER_LATENT for side in self.still.shape[:2])
        noise = draw_noise((self.settings.frames, LATENT_CHANNELS, *size), seed)
        sigmas, guidance = sigmas_for(self.settings), guidance_for(self.settings)
        return self.svd.sample(noise, self._conditioning, sigmas, guidance, self.settings.sampler, seed=seed)


def compare(svd: StableVideo, scenes: Sequence[tuple[str, int]], seeds: Sequence[int], folder: Path) -> list[Figure]:
    """One figure for every criterion."""
    pairs = []
    for kind, place in scenes:
        variant = svd.config.variant
        size = {"frames": variant.frames, "width": variant.width, "height": variant.height}
        scene = draw_scene(HELD_OUT_SEEDS[place], kind=kind, **size)
        found = [scout(Renderer(svd, scene, way, folder), seeds, scene.still, DEFAULT) for way in (FULL, CHEAP)]
        save_sheet(found[1], folder / f"{kind}_cheap.png")
        pairs.append([by_seed(each) for each in found])
    return [figure_of(name, pairs) for name in WISHES]


DEFAULT = WISHES["most motion"]


def by_seed(found: Scouted) -> list[Trial]:
    return sorted(found.trials, key=lambda trial: trial.seed)


def figure_of(name: str, pairs: Sequence[Sequence[list[Trial]]]) -> Figure:
    score: Callable[[Trial], float] = WISHES[name].score
    full, cheap = ([[score(trial) for trial in pair[way]] for pair in pairs] for way in (0, 1))
    scenes = tuple(spearman(one, other) for one, other in zip(full, cheap, strict=True))
    kept = [100 * one[int(np.argmax(other))] / max(one) for one, other in zip(full, cheap, strict=True)]
    return Figure(name, float(np.mean(scenes)), scenes, float(np.mean(kept)))


def save_sheet(found: Scouted, path: Path) -> None:
    Image.fromarray(np.rint(found.sheet[-1] * 255).astype(np.uint8)).save(path)


def calls(svd: StableVideo, way: Way) -> int:
    """Number of network evaluations for one clip, counted on one frame."""
    counted = []
    hook = svd.unet.register_forward_hook(lambda *_: counted.append(1))
    settings = dataclasses.replace(way.settings.for_variant(svd.config.variant), frames=1)
    cond = svd.condition(torch.zeros(1, 3, 64, 64))
    noise = draw_noise((1, LATENT_CHANNELS, 8, 8), 0)
    svd.sample(noise, cond, sigmas_for(settings), guidance_for(settings), settings.sampler)
    hook.remove()
    return len(counted)


def cleared(folder: Path, *, fresh: bool) -> Path:
    """The folder, emptied if `fresh` or if its clips were made with other settings."""
    made_by = json.dumps(
        {
            "model": hashlib.sha256(DEMO_MODEL.read_bytes()).hexdigest(),
            "ways": [dataclasses.asdict(way.settings) for way in (FULL, CHEAP)],
        }
    )
    stamp = folder / "made_by.json"
    if fresh or not stamp.exists() or stamp.read_text(encoding="utf-8") != made_by:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stamp.write_text(made_by, encoding="utf-8")
    return folder


def facts_of(svd: StableVideo, scenes: int, seeds: int) -> dict[str, Any]:
    passes = {way.name: calls(svd, way) for way in (FULL, CHEAP)}
    variant = svd.config.variant
    clip = f"{variant.frames} frames of {variant.width}x{variant.height}"
    return {"model": f"demo model, {clip}", "scenes": scenes, "seeds": seeds, "passes a clip": passes}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a figure misses its threshold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scout", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="render every clip anew")
    parser.add_argument("--scenes", type=int, default=len(SCENES), help="how many of the scenes")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds of each")
    given = parser.parse_args(arguments)
    svd = load_checkpoint(DEMO_MODEL)
    facts = facts_of(svd, given.scenes, given.seeds)
    figures = compare(svd, SCENES[: given.scenes], SEEDS[: given.seeds], cleared(OUTPUT, fresh=given.fresh))
    table = {"facts": facts, "figures": [{**dataclasses.asdict(each), "verdict": each.verdict} for each in figures]}
    (OUTPUT / "scout.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts))
    print("Spearman's correlation of cheap and full scores: mean, verdict, by scene, full score of the chosen seed")
    print(*figures, sep="\n")
    return int(any(each.verdict == "MISSED" for each in figures))


if __name__ == "__main__":
    raise SystemExit(main())
