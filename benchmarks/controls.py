"""`python -m benchmarks.controls`: effect of the motion controls on the demo model, against fixed thresholds.

Every figure is measured on decoded frames of consecutive held-out synthetic scenes, without cherry-picking. Writes one
JSON file per part and prints a table of all finished parts. Takes about 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import max_pool2d

from svd_core.conditioning import Conditioning
from svd_core.config import PIXELS_PER_LATENT
from svd_core.controls import Controls
from svd_core.demo import DEMO_MODEL
from svd_core.live_bytes import LiveBytes
from svd_core.loading import load_checkpoint
from svd_core.measure import flow_magnitude, optical_flow, psnr
from svd_core.measure import measure as measured
from svd_core.model.vae import VideoVAE
from svd_core.motion import (
    CameraMove,
    ClipDenoiser,
    LongTake,
    ObjectMove,
    Statistics,
    Windows,
    Wrap,
    dragged,
    filmed,
    sample_in_turns,
    seam_score,
    unstuck,
)
from svd_core.motion.loop import frame_steps
from svd_core.pipeline import StableVideo
from svd_core.sampling import constant_guidance, edm_sigmas, noisy_start
from svd_core.settings import Settings
from svd_core.shot import as_pixels
from training.measure import spearman
from training.world import HELD_OUT_SEEDS, Scene, draw_scene

from .device_bytes import device_bytes

FIRST_SEED = 4000
"""Index of the first held-out scene; no other measurement uses the scenes from here on."""

TAKE = 100
"""Number of frames of a Long Take."""

GUIDED_TAKE = 50

WAYS = (("in turns", False), ("fusion", True))
"""Methods of making a Long Take: the node's name for it, and whether its windows are fused."""

UNGUIDED = {"min_guidance": 1.0, "max_guidance": 1.0}


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value, and its lower (`least`) or upper (`most`) threshold, if any."""

    name: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None
    detail: str = ""

    @property
    def bar(self) -> str:
        if self.least is not None:
            return f"at least {self.least:g}"
        return "no bar" if self.most is None else f"at most {self.most:g}"

    @property
    def verdict(self) -> str:
        low = self.least is None or self.value >= self.least
        high = self.most is None or self.value <= self.most
        if self.least is None and self.most is None:
            return ""
        return "reached" if low and high else "MISSED"


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """The model, and the number of scenes for each figure."""

    svd: StableVideo
    scenes: int
    steps: int | None

    def scene(self, number: int, frames: int | None = None) -> Scene:
        """A held-out scene; `frames` defaults to the model's own number."""
        variant = self.svd.config.variant
        size = {"frames": frames or variant.frames, "width": variant.width, "height": variant.height}
        return draw_scene(HELD_OUT_SEEDS[FIRST_SEED + number], **size)

    def render(
        self, scene: Scene, settings: dict[str, Any] | None = None, seed: int = 0, **controls: Any
    ) -> np.ndarray:
        given = Settings(steps=self.steps, seed=seed, **(settings or {}))
        return self.svd.render(scene.still, given, Controls(**controls)).frames


# Parts


def brush(bench: Bench) -> Iterable[Figure]:
    """Brush with the half of the picture that moves more in the drawn scene free, and the other half held still."""
    equal, ratios = [], []
    for number in range(bench.scenes):
        scene = bench.scene(number)
        free = _busier_half(scene.frames)
        frames = bench.render(scene, brush=free, feather=0)
        equal.append(float((frames == scene.still)[:, free == 0].mean()))
        flow = np.linalg.norm(optical_flow(frames), axis=-1).mean(axis=0)
        ratios.append(float(flow[free == 1].mean() / max(flow[free == 0].mean(), 1e-9)))
    yield Figure("brush: still pixels bit-equal", 100 * min(equal), "percent", least=100, detail=f"{len(equal)} scenes")
    yield Figure("brush: flow inside over outside", float(np.median(ratios)), "times", least=5, detail=_each(ratios))


def _busier_half(frames: np.ndarray) -> np.ndarray:
    """Mask (H, W): 1 in the left or right half, whichever moves more in the drawn scene."""
    flow = np.linalg.norm(optical_flow(frames), axis=-1).mean(axis=0)
    middle = flow.shape[1] // 2
    free = np.zeros(flow.shape, np.float32)
    free[:, slice(None, middle) if flow[:, :middle].sum() > flow[:, middle:].sum() else slice(middle, None)] = 1
    return free


def between(bench: Bench) -> Iterable[Figure]:
    """In-between from the first to the last frame of the drawn scene."""
    for name, sequential in (("fusion", False), ("in turns", True)):
        ends, spreads = [], []
        for number in range(bench.scenes):
            scene = bench.scene(number)
            frames = bench.render(scene, end=scene.frames[-1], sequential=sequential)
            ends.append(psnr(frames[-1], scene.frames[-1]))
            spreads.append(spread(flow_magnitude(frames)))
        yield Figure(f"in-between ({name}): last frame", float(np.median(ends)), "dB", least=22, detail=_each(ends))
        detail = f"{_each(spreads)}; 1 is even, {1 / 13:.2f} all in one step; bar set by us before measuring"
        yield Figure(f"in-between ({name}): flow spread", float(np.median(spreads)), "", least=0.7, detail=detail)


def spread(flow: np.ndarray) -> float:
    """How evenly flow (T - 1,) is spread over a clip: the number of equal steps with the same entropy, over T - 1."""
    part = flow / flow.sum()
    entropy = -float((part * np.log(np.maximum(part, 1e-12))).sum())
    return float(np.exp(entropy) / len(flow))


def loop(bench: Bench) -> Iterable[Figure]:
    """Seam of a loop, and its motion compared with the plain clip of the same seed."""
    for name, sequential in (("fusion", False), ("in turns", True)):
        seams, moving = [], []
        for number in range(bench.scenes):
            scene = bench.scene(number)
            frames = bench.render(scene, loop=True, sequential=sequential)
            seams.append(seam_score(frames))
            if not sequential:
                moving.append(float(flow_magnitude(frames).mean() / flow_magnitude(bench.render(scene)).mean()))
        detail = _each(seams)
        yield Figure(f"loop ({name}): seam over median step", float(np.median(seams)), "times", most=1.2, detail=detail)
        if moving:
            yield Figure("loop: flow over the plain clip's", float(np.median(moving)), "times", detail=_each(moving))


def long_take(bench: Bench) -> Iterable[Figure]:
    """A hundred frames, without guidance, by both methods. For comparison, plain clips show how much the model's steps
    vary without window borders, and the drawn scenes how much true steps vary over as many frames."""
    for name, fused in WAYS:
        borders = take_borders(Windows.of(bench.svd.config.variant.frames, fused), fused)
        most, least, drifts, kept = [], [], [], []
        for number in range(bench.scenes):
            frames = bench.render(bench.scene(number), {"frames": TAKE, **UNGUIDED}, window=0, fused=fused)
            steps = frame_steps(frames)
            crossing = steps[[border - 1 for border in borders]] / np.median(steps)
            most.append(float(crossing.max()))
            least.append(float(crossing.min()))
            drifts.append(100 * colour_drift(frames))
            kept.append(_last_over_first(flow_magnitude(frames), 3))
        title = f"long take ({name}), {TAKE} frames unguided"
        yield Figure(f"{title}: largest step at a border", max(most), "medians", most=1.3, detail=_each(most))
        yield Figure(f"{title}: smallest step at a border", min(least), "medians", detail=_each(least))
        yield Figure(f"{title}: colour drift", max(drifts), "percent", most=2, detail=_each(drifts))
        yield Figure(f"{title}: flow, last third over first", float(np.median(kept)), "times", detail=_each(kept))
    plain = [_unevenness(bench.render(bench.scene(number), UNGUIDED)) for number in range(bench.scenes)]
    drawn = [_unevenness(bench.scene(number, TAKE).frames) for number in range(bench.scenes)]
    yield Figure(
        "plain clips of these scenes, without a border: largest step", max(plain), "medians", detail=_each(plain)
    )
    yield Figure(f"these scenes as drawn, {TAKE} frames: largest step", max(drawn), "medians", detail=_each(drawn))


def guided_take(bench: Bench) -> Iterable[Figure]:
    """Whether a longer clip stays stable under the model's own guidance: in one that dissolves, steps keep growing."""
    for name, fused in WAYS:
        grown = []
        for number in range(bench.scenes):
            frames = bench.render(bench.scene(number), {"frames": GUIDED_TAKE}, window=0, fused=fused)
            grown.append(_last_over_first(frame_steps(frames), 5))
        title = f"long take ({name}), {GUIDED_TAKE} frames guided: steps, last fifth over first"
        yield Figure(title, float(np.median(grown)), "times", detail=_each(grown))


def _last_over_first(values: np.ndarray, parts: int) -> float:
    """Mean of the last part of a clip over that of the first, of `parts` equal parts."""
    pieces = np.array_split(values, parts)
    return float(pieces[-1].mean() / pieces[0].mean())


def take_borders(windows: Windows, fused: bool) -> list[int]:
    """Frames before which the set of windows that cover a frame changes. In turns, a frame shared by two windows counts
    as the first one's. Fused, for the windows that start with the clip; at some noise levels they are shifted."""
    starts = windows.starts(TAKE)
    if not fused:
        return [start + 1 for start in starts[1:]]
    return sorted({*starts, *(start + windows.length for start in starts)} - {0, TAKE})


def _unevenness(frames: np.ndarray) -> float:
    """The largest step over the median one."""
    steps = frame_steps(frames)
    return float(max(steps) / np.median(steps))


def colour_drift(frames: np.ndarray) -> float:
    """Largest departure of a colour channel's mean from that of the first frame, as a share of the range [0, 1]."""
    means = frames.mean(axis=(1, 2))
    return float(np.abs(means - means[0]).max())


def memory(bench: Bench) -> Iterable[Figure]:
    """Memory of one sampling step of a Long Take compared with one of a clip, on the device and with the host's latents
    included, and the device memory of the decoder."""
    clips = _step_bytes(bench)
    for way, fused in WAYS:
        takes = _step_bytes(bench, Windows.of(bench.svd.config.variant.frames, fused), fused)
        for name, clip, take in zip(("device memory", "all memory, host's too,"), clips, takes, strict=True):
            detail = f"{clip / 2**20:.2f} and {take / 2**20:.2f} MiB"
            yield Figure(f"long take ({way}): {name} of a step", take / clip, "times", most=1.05, detail=detail)
    usual = bench.svd.config.variant.frames
    short, long = (_decode_bytes(bench.svd, frames) for frames in (usual, TAKE))
    detail = f"{short / 2**20:.1f} and {long / 2**20:.1f} MiB, in bands"
    yield Figure("long take: device memory of decode", long / short, "times", most=1.05, detail=detail)


@dataclass(frozen=True, slots=True, eq=False)
class Metered:
    """A denoiser that records its peak bytes, excluding its inputs: the memory on the device."""

    denoise: ClipDenoiser
    live: LiveBytes
    peaks: list[int]

    @property
    def num_frames(self) -> int:
        return self.denoise.num_frames

    def with_conditioning(self, change: Callable[[Conditioning], Conditioning]) -> Metered:
        return replace(self, denoise=self.denoise.with_conditioning(change))

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        before, self.live.peak = self.live.now, self.live.now
        denoised = self.denoise(x, sigma)
        self.peaks.append(self.live.peak - before)
        return denoised


def _step_bytes(bench: Bench, windows: Windows | None = None, fused: bool = False) -> tuple[int, int]:
    """Peak bytes of one guided step of a clip, or of a long one in windows: in the network alone, and in total with the
    initial state."""
    svd = bench.svd
    usual = svd.config.variant.frames
    pixels = as_pixels(bench.scene(0).still)
    sampler = partial(sample_in_turns, windows=windows) if windows and not fused else "euler"
    with torch.inference_mode():
        colour = Statistics.of(svd.vae.encode(pixels))
        cond, sigmas = svd.condition(pixels), edm_sigmas(1)

        def sample(inner: Wrap) -> None:
            def wrap(denoise: ClipDenoiser) -> ClipDenoiser:
                return LongTake(inner(denoise), windows, "cpu", colour) if windows else inner(denoise)

            start = noisy_start(torch.randn(TAKE if windows else usual, *cond.first.shape[1:]), sigmas)
            svd.sample_from(start, cond, sigmas, constant_guidance(usual, 2.0), sampler, wrap=wrap)

        live, inside = LiveBytes(svd.unet), []
        with live:
            sample(lambda denoise: Metered(denoise, live, inside))
        with LiveBytes(svd.unet) as whole:
            sample(lambda denoise: denoise)
    return max(inside), whole.peak


def _decode_bytes(svd: StableVideo, frames: int) -> int:
    with torch.device("meta"):
        network = VideoVAE(svd.config.vae).eval()
        size = (svd.config.variant.height // PIXELS_PER_LATENT, svd.config.variant.width // PIXELS_PER_LATENT)
        latents = torch.empty(frames, 4, *size)
    with device_bytes(network) as live:
        network.decode(latents, frames, chunk=1, mode="bands")
    return live.peak


def unstick(bench: Bench) -> Iterable[Figure]:
    """Un-stick at strength 1, and its motion bucket alone, on the third of the scenes and seeds that moves least; three
    times the usual number are tried."""
    candidates = [(bench.scene(number), number) for number in range(3 * bench.scenes)]
    plain = [float(flow_magnitude(bench.render(scene, seed=seed)).mean()) for scene, seed in candidates]
    frozen = sorted(range(len(candidates)), key=plain.__getitem__)[: bench.scenes]
    bucket = {"motion_bucket": unstuck(1.0).motion_bucket}
    for name, settings, strength in (("un-stick at 1", {}, 1.0), ("its motion bucket alone", bucket, 0.0)):
        gains = []
        for index in frozen:
            scene, seed = candidates[index]
            frames = bench.render(scene, settings, seed=seed, unstick=strength)
            gains.append(float(flow_magnitude(frames).mean() / plain[index]))
        least = 1.5 if strength else None
        detail = f"{_each(gains)}; of {len(candidates)} the {len(frozen)} that move least"
        yield Figure(f"{name}: flow on frozen seeds", float(np.median(gains)), "times", least=least, detail=detail)


def curves(bench: Bench) -> Iterable[Figure]:
    """How the flow follows a motion bucket that rises or falls along the clip."""
    for name, points in (("rising", [(0, 16), (1, 240)]), ("falling", [(0, 240), (1, 16)])):
        follows = []
        for number in range(bench.scenes):
            flow = flow_magnitude(bench.render(bench.scene(number), motion_bucket=points))
            wanted = np.linspace(points[0][1], points[1][1], len(flow))
            follows.append(spearman(wanted.tolist(), flow.tolist()))
        yield Figure(
            f"curves: flow along a {name} bucket", float(np.median(follows)), "Spearman", detail=_each(follows)
        )


CAMERA: tuple[tuple[str, str, CameraMove], ...] = (
    ("pan", "pan_x", CameraMove(pan_x=0.25)),
    ("zoom", "zoom", CameraMove(zoom=1.4)),
    ("roll", "roll", CameraMove(roll=15)),
)
"""A move, the reading of the motion meter that it shows in, and how far it goes."""


def camera(bench: Bench) -> Iterable[Figure]:
    """How far the clip's camera follows: 1 is as far as in the still itself, moved and measured likewise. The camera of
    the plain clip is taken off; what moves against the camera is compared with the plain clip's."""
    scenes = [bench.scene(number) for number in range(bench.scenes)]
    plain = [measured(bench.render(scene)) for scene in scenes]
    for name, reading, move in CAMERA:
        follows, moving = [], []
        for scene, before in zip(scenes, plain, strict=True):
            clip = measured(bench.render(scene, camera=move))
            asked = measured(as_frames(filmed(as_pixels(scene.still), move, len(scene.frames))))
            follows.append(float(getattr(clip, reading).mean() - getattr(before, reading).mean()))
            follows[-1] /= float(getattr(asked, reading).mean())
            moving.append(float(clip.subject.mean() / before.subject.mean()))
        detail = f"{_each(follows)}; bar set by us after a look at other scenes"
        yield Figure(f"camera: {name} followed", float(np.median(follows)), "of the way", least=0.6, detail=detail)
        yield Figure(f"camera: subjects under a {name}", float(np.median(moving)), "times", detail=_each(moving))


def as_frames(views: torch.Tensor) -> np.ndarray:
    """Views (T, 3, H, W) in [-1, 1] as frames (T, H, W, 3) in [0, 1]."""
    return ((views.movedim(1, -1) + 1) / 2).numpy()


THING_SHARE = (0.002, 0.1)
"""Least and most of the picture that what moves in a drawn scene may cover, to be one thing that can be dragged."""

DRAGGED = 0.25


def drag(bench: Bench) -> Iterable[Figure]:
    """How far what is dragged follows: 1 is as far as in the views themselves, measured likewise. In the first scenes
    in which one thing moves; it is dragged across, towards the picture's middle."""
    follows, plain, rest = [], [], []
    for scene, thing in things(bench):
        right = DRAGGED if float((thing * torch.linspace(-1, 1, thing.shape[1])).sum()) < 0 else -DRAGGED
        views = dragged(as_pixels(scene.still), thing, ObjectMove(right=right), len(scene.frames))
        clip = bench.render(scene, drag=thing, drag_move=ObjectMove(right=right))
        before = bench.render(scene)
        way = across(as_frames(views), thing, right)
        follows.append(across(clip, thing, right) / way)
        plain.append(across(before, thing, right) / way)
        far = away(thing)
        rest.append(float(np.linalg.norm(optical_flow(clip), axis=-1)[:, far].mean()))
        rest[-1] /= float(np.linalg.norm(optical_flow(before), axis=-1)[:, far].mean())
    detail = f"{_each(follows)}; without a drag {_each(plain)}"
    yield Figure("drag: the thing followed", float(np.median(follows)), "of the way", detail=detail)
    yield Figure("drag: flow in other rows over the plain clip's", float(np.median(rest)), "times", detail=_each(rest))


def things(bench: Bench) -> Iterable[tuple[Scene, torch.Tensor]]:
    """The first scenes in which what moves is one small thing, and its mask (H, W) in the still."""
    found, number = 0, 0
    while found < bench.scenes:
        scene = bench.scene(number)
        number += 1
        flow = np.linalg.norm(optical_flow(scene.frames[:2])[0], axis=-1)
        thing = torch.from_numpy((flow > 0.5 * flow.max()).astype(np.float32))
        thing = max_pool2d(thing[None, None], 3, 1, 1)[0, 0]
        if THING_SHARE[0] < float(thing.mean()) < THING_SHARE[1]:
            found += 1
            yield scene, thing


def across(frames: np.ndarray, thing: torch.Tensor, right: float) -> float:
    """Mean flow, in pixels a step, along the way of a thing (H, W) that goes to the right, measured where it should
    be."""
    steps = len(frames) - 1
    flow, width = optical_flow(frames)[..., 0], frames.shape[2]
    places = [torch.roll(thing, round(right * width * step / steps), dims=1).numpy() > 0 for step in range(steps)]
    return float(np.mean([each[place].mean() for each, place in zip(flow, places, strict=True)]) * np.sign(right))


def away(thing: torch.Tensor) -> np.ndarray:
    """Mask (H, W) of the rows in which the thing never is."""
    rows = (max_pool2d(thing[None, None], (9, 1), 1, (4, 0))[0, 0] > 0).any(dim=1)
    return (~rows)[:, None].expand_as(thing).numpy()


PARTS: dict[str, Callable[[Bench], Iterable[Figure]]] = {
    "long_take": long_take,
    "guided_take": guided_take,
    "unstick": unstick,
    "between": between,
    "loop": loop,
    "curves": curves,
    "brush": brush,
    "camera": camera,
    "drag": drag,
    "memory": memory,
}
"""Longest first, so that processes share them evenly."""


def _each(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def measure(part: str, checkpoint: Path, scenes: int, steps: int | None, folder: Path) -> None:
    """Measure one part on one thread, and write its file."""
    torch.set_num_threads(1)
    bench = Bench(load_checkpoint(checkpoint), scenes, steps)
    figures = [{**asdict(figure), "verdict": figure.verdict} for figure in PARTS[part](bench)]
    said = {"part": part, "checkpoint": checkpoint.name, "scenes": scenes, "steps": steps, "figures": figures}
    (folder / f"{part}.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def table(folder: Path) -> str:
    """All parts found in the folder, as a Markdown table."""
    lines = ["| what | measured | bar | | seen |", "|---|---|---|---|---|"]
    for part in PARTS:
        path = folder / f"{part}.json"
        made = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else []
        for verdict, figure in ((each.pop("verdict"), Figure(**each)) for each in made):
            value = f"{figure.value:.2f} {figure.unit}".strip()
            lines.append(f"| {figure.name} | {value} | {figure.bar} | {verdict} | {figure.detail} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controls", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="what to measure, by default everything")
    parser.add_argument("--checkpoint", type=Path, default=DEMO_MODEL)
    parser.add_argument("--scenes", type=int, default=4, help="scenes a figure (default 4)")
    parser.add_argument("--steps", type=int, help="sampling steps, by default the model's own")
    parser.add_argument("--folder", type=Path, default=Path("output/controls"))
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        how = (given.checkpoint, given.scenes, given.steps, given.folder)
        for done in [pool.submit(measure, part, *how) for part in given.parts or PARTS]:
            done.result()
    print(table(given.folder))


if __name__ == "__main__":
    main()
