"""Seed Scout: try many seeds cheaply, measure their clips, and rank them.

A seed determines the starting noise, from which a sampler that adds no noise reaches nearly the same clip in few steps
as in many. So clips of few steps show which seeds move, and how, at a fraction of the cost. This module is independent
of the model: the caller passes a function that makes a cheap clip for a seed.

    def render(seed):
        return svd.animate(picture, seed=seed, steps=10)

    best = scout(render, seeds_from(1, 8), still, WISHES["most motion"])
    clip = svd.animate(picture, seed=best.chosen)
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .flow import shrunk
from .grid import Cell, Labels, draw_grid, tile_of
from .likeness import likeness
from .meter import measure

CHEAP_STEPS, CHEAP_SCHEDULE, CHEAP_SAMPLER = 10, "edm", "euler"
"""Default sampling of a cheap clip: like the full one but in fewer steps, so that both have similar errors. Other
solvers and schedules, with other errors, ranked worse. `python -m benchmarks.scout` measures the ranking."""

MAX_TRIES = 64
SCOUTED_SIDE = 320
"""Frames are measured at no more pixels a side than this: the motion of whole objects needs no detail."""

Render = Callable[[int], np.ndarray]
"""seed -> clip (T, H, W, 3) in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Measurements of one seed's cheap clip: motion, camera and subject in pixels per frame; sharpness as a multiple of
    the first frame's (median over the rest); likeness to the still in dB (median over frames)."""

    seed: int
    motion: float
    camera: float
    subject: float
    sharpness: float
    likeness: float

    @property
    def quality(self) -> float:
        """Quality from 0 to 1: falls if the clip blurs or no longer resembles the still."""
        return min(1.0, self.sharpness) * (1 - 10 ** (-self.likeness / 20))


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user looks for: a description, and the score by which trials are ranked, highest first."""

    words: str
    score: Callable[[Trial], float]


WISHES: dict[str, Wish] = {
    "most motion": Wish("most motion", lambda trial: trial.motion * trial.quality),
    "subject motion": Wish("most motion of the subject", lambda trial: trial.subject * trial.quality),
    "camera motion": Wish("most motion of the camera", lambda trial: trial.camera * trial.quality),
    "calm": Wish("least motion", lambda trial: trial.quality / (1 + trial.motion)),
    "closest to the picture": Wish("closest to the picture", lambda trial: trial.likeness),
}
"""Wishes by their user-facing names."""


@dataclass(frozen=True, slots=True, eq=False)
class Scouted:
    """Trials, best first; `sheet` is a labelled clip (T, H, W, 3) in [0, 1] of all of them in that order."""

    wish: Wish
    trials: tuple[Trial, ...]
    sheet: np.ndarray

    @property
    def chosen(self) -> int:
        """The best seed."""
        return self.trials[0].seed

    def report(self) -> str:
        """A table with one line per trial, best first."""
        head = f"{'rank':>4} {'score':>7} {'motion':>7} {'camera':>7} {'subject':>7} {'sharp':>6} {'like':>6}  seed"
        lines = [
            f"{rank:4} {self.wish.score(each):7.3f} {each.motion:7.3f} {each.camera:7.3f} {each.subject:7.3f} "
            f"{each.sharpness:6.2f} {each.likeness:6.1f}  {each.seed}"
            for rank, each in enumerate(self.trials, start=1)
        ]
        units = "motion, camera and subject in pixels a frame; sharp against the first frame; like in dB"
        return "\n".join([f"{len(self.trials)} seeds, {self.wish.words} first", head, *lines, units])

    def to_json(self) -> str:
        """One line of JSON: the wish, the chosen seed and every trial with its score, best first."""
        trials = [{**dataclasses.asdict(each), "score": self.wish.score(each)} for each in self.trials]
        return json.dumps({"wish": self.wish.words, "chosen": self.chosen, "trials": trials}, allow_nan=False)


def scout(
    render: Render,
    seeds: Sequence[int],
    still: np.ndarray,
    wish: Wish,
    callback: Callable[[Trial], None] | None = None,
) -> Scouted:
    """Render each seed once, one after the other, and rank them.

    still (H, W, 3) in [0, 1] is the picture, at the clip's size. `callback` is called with each finished trial; it and
    `render` may raise to stop. Clips are kept only as small tiles, so memory hardly grows with their number. Equal
    scores stay in the order of the seeds.
    Raises InputError for no seed, more than MAX_TRIES, a repeated seed, and a still of another size.
    """
    _check(seeds)
    found: list[tuple[Trial, np.ndarray]] = []
    for seed in seeds:
        frames = render(seed)
        trial = _trial(seed, frames, still)
        found.append((trial, tile_of(frames)))
        if callback is not None:
            callback(trial)
    found.sort(key=lambda pair: wish.score(pair[0]), reverse=True)
    trials = tuple(trial for trial, _ in found)
    return Scouted(wish, trials, _sheet(found, wish))


def seeds_from(first: int, count: int) -> tuple[int, ...]:
    """`count` consecutive seeds from `first` on, wrapping from 2**64 - 1 to 0."""
    return tuple((first + place) % 2**64 for place in range(count))


def _check(seeds: Sequence[int]) -> None:
    if not 1 <= len(seeds) <= MAX_TRIES:
        raise InputError(f"{len(seeds)} seeds to try are outside 1 to {MAX_TRIES}: 8 are usual")
    if len(set(seeds)) < len(seeds):
        twice = next(seed for place, seed in enumerate(seeds) if seed in seeds[:place])
        raise InputError(f"seed {twice} is listed twice: it would make the same clip again, leave one out")


def _trial(seed: int, frames: np.ndarray, still: np.ndarray) -> Trial:
    measured = measure(frames, SCOUTED_SIDE)
    small, _ = shrunk(frames, SCOUTED_SIDE)
    alike = likeness(small, shrunk(still[None], SCOUTED_SIDE)[0][0])
    motion, camera, subject = (float(curve.mean()) for curve in (measured.motion, measured.camera, measured.subject))
    return Trial(seed, motion, camera, subject, float(np.median(measured.sharpness[1:])), float(np.median(alike)))


def _sheet(found: Sequence[tuple[Trial, np.ndarray]], wish: Wish) -> np.ndarray:
    columns = math.ceil(math.sqrt(len(found)))
    cells = [
        Cell(tile, _caption(rank, trial, wish), marked=rank == 1) for rank, (trial, tile) in enumerate(found, start=1)
    ]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return draw_grid(rows, Labels(f"{len(found)} seeds, {wish.words} first (pixels a frame)"))


def _caption(rank: int, trial: Trial, wish: Wish) -> tuple[str, ...]:
    return (
        f"#{rank}  seed {trial.seed}",
        f"motion {trial.motion:.2f}  camera {trial.camera:.2f}  subject {trial.subject:.2f}",
        f"sharp {trial.sharpness:.2f}  like {trial.likeness:.1f} dB  score {wish.score(trial):.3f}",
    )
