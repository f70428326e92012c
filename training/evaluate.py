"""Evaluate a trained model by its clips of held-out scenes.

Every figure is measured on decoded frames only. The scenes' seeds are fixed, so two runs on one machine give the same
table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from svd_core.config import VAEConfig
from svd_core.errors import CheckpointError
from svd_core.loading import load_checkpoint
from svd_core.measure import flow_magnitude, psnr
from svd_core.model.vae import VideoVAE
from svd_core.pipeline import StableVideo

from .autoencoder import image_config
from .checkpoint import load_tensors, write_whole
from .data import as_pixels
from .measure import angle_between, motion_direction, spearman
from .reconstruction import difference_loss
from .world import DEFAULT_FPS, HELD_OUT_SEEDS, KINDS, Scene, draw_scene

STILL_SEEDS, ROCKET_SEEDS, AMOUNT_SEEDS, DECODER_SEEDS = (
    HELD_OUT_SEEDS[start : start + 1000] for start in (0, 1000, 2000, 3000)
)
"""Held-out scenes for each figure, used from the start of each range."""

AMOUNT_KINDS = ("rocket", "clouds", "pan", "cart")
"""Kinds of scenes in which something moves for the whole clip, at any speed."""

NEAR = 45.0
"""Degrees from the true direction within which a motion counts as correct."""

FrameDecoder = Callable[[torch.Tensor], torch.Tensor]
"""Unscaled latents (T, 4, h, w) -> pixels (T, 3, H, W) in [-1, 1], each frame by itself."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Number of scenes for each figure; the thresholds are defined for the defaults."""

    stills: int = 50
    rockets: int = 100
    amounts: int = 4
    buckets: int = 8
    decoded: int = 24


FULL = Extent()
QUICK = Extent(stills=5, rockets=10, amounts=2, buckets=4, decoded=4)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value and its threshold `least`; `detail` describes related measurements."""

    name: str
    value: float
    least: float
    unit: str
    detail: str = ""

    @property
    def reached(self) -> bool:
        return self.value >= self.least

    @property
    def verdict(self) -> str:
        return "reached" if self.reached else "MISSED"

    def __str__(self) -> str:
        return (
            f"{self.name:34} {self.value:8.2f} {self.unit:10} (at least {self.least:g}) {self.verdict}  {self.detail}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The model to evaluate, the frame-wise decoder to compare with, and the number of scenes."""

    svd: StableVideo
    decoder: FrameDecoder
    extent: Extent


def evaluate(judged: Judged, say: Callable[[str], None]) -> list[Figure]:
    """All figures, each passed to `say` as soon as it is measured."""
    return _told((part(judged) for part in PARTS), say)


def evaluate_files(
    checkpoint: Path, decoder: Path, extent: Extent, say: Callable[[str], None], processes: int
) -> list[Figure]:
    """`evaluate` for files, distributed over single-threaded processes, whose number does not affect the figures."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(_part, number, checkpoint, decoder, extent) for number in range(len(PARTS))]
        try:
            return _told((part.result() for part in parts), say)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _part(number: int, checkpoint: Path, decoder: Path, extent: Extent) -> list[Figure]:
    torch.set_num_threads(1)
    svd = load_checkpoint(checkpoint)
    return list(PARTS[number](Judged(svd, frame_decoder(decoder, svd.config.vae), extent)))


def _told(parts: Iterable[Iterable[Figure]], say: Callable[[str], None]) -> list[Figure]:
    figures = []
    for figure in chain.from_iterable(parts):
        figures.append(figure)
        say(str(figure))
    return figures


def frame_decoder(path: Path, config: VAEConfig) -> FrameDecoder:
    """The frame-wise decoder written by `export_frame_decoder`. Raises CheckpointError if it does not fit."""
    weights, _ = load_tensors(path)
    vae = VideoVAE(image_config(config)).eval()
    own = {name for name in vae.state_dict() if name.startswith("decoder.")}
    if own != weights.keys():
        raise CheckpointError(f"{path} is no frame-wise decoder of this model: give what export --frame-decoder wrote")
    vae.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    return lambda latents: vae.decode(latents, num_frames=1)


def likeness(judged: Judged) -> Iterable[Figure]:
    """How well the first frame matches the still, on scenes of all kinds."""
    svd, count = judged.svd, judged.extent.stills
    values = []
    for seed in STILL_SEEDS[:count]:
        still = _scene(svd, seed).still
        values.append(psnr(svd.animate(still, seed=seed % 2**31)[0], still))
    low, high = np.percentile(values, [10, 90])
    detail = f"median of {count}; a tenth below {low:.1f}, a tenth above {high:.1f}"
    yield Figure("first frame, PSNR", float(np.median(values)), 24.0, "dB", detail)


def direction(judged: Judged) -> Iterable[Figure]:
    """How often a rocket flies where it points."""
    svd, count = judged.svd, judged.extent.rockets
    angles = []
    for seed in ROCKET_SEEDS[:count]:
        scene = _scene(svd, seed, kind="rocket")
        found = motion_direction(svd.animate(scene.still, seed=seed % 2**31))
        angles.append(180.0 if found is None else angle_between(found, scene.direction))
    share = 100 * float(np.mean(np.array(angles) <= NEAR))
    detail = f"{count} rockets within {NEAR:g} degrees; median {np.median(angles):.0f} degrees"
    yield Figure("rocket flies where it points", share, 85.0, "percent", detail)


def amount(judged: Judged) -> Iterable[Figure]:
    """How the flow follows motion_bucket, and the effect of halving the fps."""
    svd, count = judged.svd, judged.extent.amounts
    scenes = [_scene(svd, AMOUNT_SEEDS[i], kind=AMOUNT_KINDS[i % len(AMOUNT_KINDS)]) for i in range(count)]
    chosen = [round(bucket) for bucket in np.linspace(16, 240, judged.extent.buckets)]
    flows = np.array([[_flow(svd, scene, motion_bucket=bucket) for bucket in chosen] for scene in scenes])
    mean = flows.mean(axis=0)
    single = np.median([spearman(chosen, row.tolist()) for row in flows])
    detail = f"flow {' '.join(f'{each:.2f}' for each in mean)} pixels a frame; median of single scenes {single:.2f}"
    yield Figure("flow against motion_bucket", spearman(chosen, mean.tolist()), 0.9, "Spearman", detail)
    fast = np.array([_flow(svd, scene, fps=2 * DEFAULT_FPS) for scene in scenes])
    slow = np.array([_flow(svd, scene, fps=DEFAULT_FPS) for scene in scenes])
    detail = f"fps {2 * DEFAULT_FPS} to {DEFAULT_FPS}; grows in {(slow > fast).sum()} of {count} scenes"
    yield Figure("half the fps, flow a frame", float(np.median(slow / np.maximum(fast, 1e-6))), 1.0, "times", detail)


def flicker(judged: Judged) -> Iterable[Figure]:
    """Error of frame-to-frame differences in clips that were encoded and decoded: that of the frame-wise decoder over
    that of the temporal one."""
    svd, count = judged.svd, judged.extent.decoded
    errors = []
    for seed in DECODER_SEEDS[:count]:
        pixels = as_pixels(_scene(svd, seed).frames)
        with torch.no_grad():
            latents = svd.vae.encode(pixels)
            both = (svd.vae.decode(latents, num_frames=len(pixels)), judged.decoder(latents))
        errors.append([difference_loss(each[None].float(), pixels[None]).item() for each in both])
    temporal, frame_wise = np.mean(errors, axis=0)
    wins = sum(ours < theirs for ours, theirs in errors)
    detail = f"{frame_wise:.4f} frame-wise, {temporal:.4f} temporal, lower in {wins} of {count} clips"
    yield Figure("frame-to-frame error, times less", float(frame_wise / temporal), 1.0, "times", detail)


def seeds(judged: Judged) -> Iterable[Figure]:
    """Whether the same seed gives the same clip, bit for bit, and another seed another clip."""
    svd = judged.svd
    still = _scene(svd, ROCKET_SEEDS[0], kind="rocket").still
    one, again, other = (svd.animate(still, seed=seed) for seed in (1, 1, 2))
    yield Figure("same seed, equal values", 100 * float((one == again).mean()), 100.0, "percent")
    yield Figure("other seed, values that differ", 100 * float((one != other).mean()), 50.0, "percent")


PARTS: tuple[Callable[[Judged], Iterable[Figure]], ...] = (direction, amount, likeness, flicker, seeds)
"""Longest first, so that processes share them evenly."""


def _scene(svd: StableVideo, seed: int, kind: str | None = None) -> Scene:
    variant = svd.config.variant
    return draw_scene(seed, frames=variant.frames, width=variant.width, height=variant.height, kind=kind)


def _flow(svd: StableVideo, scene: Scene, **settings: int) -> float:
    """Mean flow, pixels per frame, of a clip from the scene's still; all settings of a scene share the same noise."""
    return float(flow_magnitude(svd.animate(scene.still, seed=scene.seed % 2**31, **settings)).mean())


SHEET_FRAMES = 5
"""Frames shown of each clip, spaced as evenly as possible."""


@dataclass(frozen=True, slots=True)
class Row:
    """A scene as drawn, and as generated by the model from the still, both (T, H, W, 3) in [0, 1]."""

    scene: Scene
    ours: np.ndarray


def sheet_rows(svd: StableVideo, each: int = 2) -> list[Row]:
    """Rows for the first `each` held-out scenes of every kind, without cherry-picking."""
    chosen = [(kind, seed) for kind in KINDS for seed in STILL_SEEDS[500 : 500 + each]]
    scenes = [_scene(svd, seed, kind=kind) for kind, seed in chosen]
    return [Row(scene, svd.animate(scene.still, seed=scene.seed % 2**31)) for scene in scenes]


def contact_sheet(rows: Sequence[Row], gap: int = 4) -> np.ndarray:
    """Contact sheet (H, W, 3) uint8: for each scene the drawn frames on the left, the model's on the right."""
    lines = []
    for row in rows:
        shown = np.linspace(0, len(row.ours) - 1, SHEET_FRAMES).round().astype(int)
        chosen = [frames[number] for frames in (row.scene.frames, row.ours) for number in shown]
        padded = [np.pad(frame, ((0, gap), (0, gap), (0, 0)), constant_values=1.0) for frame in chosen]
        padded.insert(SHEET_FRAMES, np.ones_like(padded[0][:, : 4 * gap]))
        lines.append(np.concatenate(padded, axis=1))
    return (np.concatenate(lines) * 255).round().astype(np.uint8)


def save_figures(figures: Sequence[Figure], folder: Path) -> None:
    """Write figures.json and the table figures.md, with each figure's verdict against its threshold."""
    table = [{**dataclasses.asdict(figure), "reached": figure.reached} for figure in figures]
    write_whole(folder / "figures.json", f"{json.dumps(table, indent=2)}\n".encode())
    lines = ["| what | measured | at least | | seen |", "|---|---|---|---|---|"]
    lines += [
        f"| {each.name} | {each.value:.2f} {each.unit} | {each.least:g} | {each.verdict} | {each.detail} |"
        for each in figures
    ]
    write_whole(folder / "figures.md", "\n".join([*lines, ""]).encode())
