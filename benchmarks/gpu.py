"""One UNet step, the decoder and a whole clip on a CUDA device: `python -m benchmarks.gpu` (performance notes 5.3).

Every contestant computes with the same weights in the same process; its error against float32 is told before its time.
Rounds are interleaved and begin with another contestant each time. Times are CUDA events', ratios are of one round.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import svd_core
from benchmarks.decode_peers import CONFIG as VAE_CONFIG
from benchmarks.decode_peers import random_weights as vae_weights
from benchmarks.gpu_peers import CONTESTANTS, OURS, Batch, Contestant, Run, random_batch, random_unet_weights
from benchmarks.work import Peaks, Seconds, Tally, Work, fused_attention, roofline
from svd_core.config import UNetConfig, VAEConfig
from svd_core.kernels import report
from svd_core.kernels.choice import cuda_seconds
from svd_core.model.backend import Backend
from svd_core.model.layout import laid_out
from svd_core.model.step import BlockHooks
from svd_core.model.unet import VideoUNet
from svd_core.model.vae import VideoVAE
from tools.fetch_comfyui import FetchError
from tools.random_weights import relative

OUTPUT = Path(__file__).resolve().parents[1] / "output"
GIB = 2**30
PEAKS = {(8, 0): 312e12, (8, 6): 71e12, (8, 9): 165e12, (9, 0): 790e12}
"""Dense bf16 FLOP a second with float32 sums, by compute capability: what an A100, an RTX 3090 and an RTX 4090 are
sold with, and what an H200 was found to reach (performance notes 0)."""

UNSEEN = "our kernels, and gaps"
"""What a step takes beyond the operations that torch dispatches, and the FLOPs that none of them did."""


@dataclass(frozen=True, slots=True)
class Case:
    """One size of the UNet's input: `clips` 2 is a step with both guidance branches."""

    frames: int
    clips: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames} frames of {8 * self.width}x{8 * self.height}, B={self.clips}"


CASES = tuple(Case(frames, clips, 72, 128) for frames in (14, 25) for clips in (1, 2))


@dataclass(frozen=True, slots=True)
class Row:
    """`error` is the relative L2 distance from float32; `times_ours` compares seconds of the same round; `of_peak` is
    FLOP a second over the device's peak. None where `note` says why."""

    case: str
    name: str
    error: float | None = None
    seconds: float | None = None
    least_seconds: float | None = None
    times_ours: float | None = None
    of_peak: float | None = None
    peak_gib: float | None = None
    note: str = ""


def process_seconds(run: Callable[[], object]) -> float:
    """For the CPU, where this file's own test runs it."""
    start = time.process_time()
    run()
    return time.process_time() - start


# UNet


@torch.inference_mode()
def unet_rows(
    case: Case,
    config: UNetConfig,
    weights: Mapping[str, Tensor],
    contestants: Sequence[Contestant] = CONTESTANTS,
    *,
    seconds: Seconds = cuda_seconds,
    rounds: int = 10,
    peak: float | None = None,
) -> list[Row]:
    batch = random_batch(config, weights, case.clips, case.frames, (case.height, case.width))
    exact = _in_float32(config, weights, batch)
    runs, rows = {}, []
    for each in contestants:
        try:
            run = each.build(config, weights)
            errors = relative(run(batch).float(), exact)
        except (ImportError, RuntimeError, FetchError) as error:
            rows.append(Row(str(case), each.name, note=f"not measured: {_first_line(error)}"))
            continue
        runs[each.name] = (run, errors, _peak_gib(run, batch))
    timed = interleaved({name: lambda run=run: run(batch) for name, (run, *_) in runs.items()}, seconds, rounds)
    flops = unet_flops(case, config)
    for name, (_, error, gib) in runs.items():
        rows.append(_row(str(case), name, timed, flops, peak, error, gib))
    return rows


def _in_float32(config: UNetConfig, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The plain network in float32, a clip at a time; on the device, where the weights fit twice."""
    run = OURS.build(config, {name: weight.float() for name, weight in weights.items()})
    parts = [tensor.float().split(batch.frames) for tensor in (batch.x, batch.c_noise, batch.context, batch.vector)]
    return torch.cat([run(Batch(*clip, batch.frames)) for clip in zip(*parts, strict=True)])


class _InFull(BlockHooks):
    changes_attention = True


def unet_flops(case: Case, config: UNetConfig) -> int:
    """Of the published graph, cross-attention in full, counted on the meta device: the same for all contestants."""
    unet = VideoUNet(config, backend=Backend(device="meta"))
    batch = random_batch(config, unet.state_dict(), case.clips, case.frames, (case.height, case.width))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        unet(batch.x, batch.c_noise, batch.context, batch.vector, batch.frames, _InFull())
    return counter.get_total_flops()


@torch.no_grad()  # in inference mode torch does not say what calls are made of
def unet_roofline(
    case: Case,
    config: UNetConfig,
    weights: Mapping[str, Tensor],
    step_seconds: float,
    peaks: Peaks,
    *,
    seconds: Seconds = cuda_seconds,
) -> list[str]:
    """Our step by class of operation, each operation timed alone. What is left of `step_seconds` is Triton's kernels,
    which torch does not dispatch, and waiting; operations timed alone may also come to more than the step."""
    batch = random_batch(config, weights, case.clips, case.frames, (case.height, case.width))
    run = OURS.build(config, weights)
    run(batch)  # probes and first calls
    with Work(seconds) as work:
        run(batch)
    seen, like = work.total, next(iter(weights.values()))
    unseen = _asked(case, config, like.dtype).flops - seen.flops
    left = Tally(flops=max(0, unseen), seconds=max(0.0, step_seconds - seen.seconds))
    return roofline(f"Ours, {case}", {**work.classes, UNSEEN: left}, peaks)


def _asked(case: Case, config: UNetConfig, dtype: torch.dtype) -> Tally:
    """What a step asks for without kernels of ours, counted on the meta device."""
    unet = VideoUNet(config, backend=Backend(attention=fused_attention, dtype=dtype, device="meta"))
    batch = random_batch(config, unet.state_dict(), case.clips, case.frames, (case.height, case.width))
    with torch.no_grad(), Work() as work:
        unet(batch.x, batch.c_noise, batch.context, batch.vector, batch.frames)
    return work.total


def measured_peaks(
    device: str, dtype: torch.dtype, *, edge: int = 8192, values: int = 2**29, seconds: Seconds = cuda_seconds
) -> Peaks:
    """Of a square matrix product and of a copy, the best of ten each."""
    one, other = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    product = min(seconds(lambda: one @ other) for _ in range(10))
    source = torch.zeros(values, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copy = min(seconds(lambda: target.copy_(source)) for _ in range(10))
    return Peaks(2 * edge**3 / product, 2 * source.nbytes / copy)


# Decoder and clip


@torch.inference_mode()
def decode_rows(
    frames: int,
    size: tuple[int, int],
    *,
    config: VAEConfig = VAE_CONFIG,
    weights: Mapping[str, Tensor] | None = None,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    seconds: Seconds = cuda_seconds,
    rounds: int = 5,
) -> list[Row]:
    """Ours, exact: everything kept, one frame kept, and in bands. Beside the others: `make bench-decode`."""
    state = {name: laid_out(value.to(device, dtype)) for name, value in (weights or vae_weights()).items()}
    vae = VideoVAE(config, backend=Backend(device="meta", dtype=dtype)).eval()
    vae.load_state_dict(state, strict=True, assign=True)
    z = torch.randn(frames, 4, *size, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    ways = {
        "all kept": {"mode": "device"},
        "one frame kept": {"mode": "device", "chunk": 1},
        "bands": {"mode": "bands"},
    }
    runs = {f"ours, {name}": lambda way=way: vae.decode(z, frames, **way) for name, way in ways.items()}
    timed = interleaved(runs, seconds, rounds)
    case = f"decode, {frames} frames of {8 * size[1]}x{8 * size[0]}"
    return [
        _row(case, name, timed, None, None, None, _peak_gib(lambda _, run=run: run(), None))
        for name, run in runs.items()
    ]


def clip_row(checkpoint: Path, device: str, steps: int, clips: int = 2) -> Row:
    """Whole clips from a real file, wall-clock, the first left out: it probes and warms up."""
    svd = svd_core.load_checkpoint(checkpoint, device=device, dtype=torch.bfloat16)
    image = torch.linspace(0, 1, 576 * 1024 * 3).view(576, 1024, 3).numpy()
    times = []
    for _ in range(1 + clips):
        start = time.perf_counter()
        svd.animate(image, steps=steps, width=1024, height=576)
        times.append(time.perf_counter() - start)
    case = f"clip, {svd.config.variant.frames} frames, {steps} steps"
    return Row(case, "ours", seconds=statistics.median(times[1:]), least_seconds=min(times[1:]))


# Timing


def interleaved(runs: Mapping[str, Callable[[], object]], seconds: Seconds, rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round; three rounds warm up and do not count."""
    names = list(runs)
    timed: dict[str, list[float]] = {name: [] for name in names}
    for number in range(3 + rounds):
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            timed[name].append(seconds(runs[name]))
    return {name: each[3:] for name, each in timed.items()}


def _row(
    case: str,
    name: str,
    timed: Mapping[str, Sequence[float]],
    flops: int | None,
    peak: float | None,
    error: float | None,
    gib: float | None,
) -> Row:
    own, first = timed[name], next(iter(timed.values()))
    middle = statistics.median(own)
    ratio = statistics.median(one / other for one, other in zip(own, first, strict=True))
    share = flops / middle / peak if flops and peak else None
    return Row(case, name, error, middle, min(own), ratio, share, gib)


def _peak_gib(run: Run, batch: Any) -> float | None:
    if not torch.cuda.is_available():
        return None
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    run(batch)
    return torch.cuda.max_memory_allocated() / GIB


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# What is told of it


def markdown(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    lines = [f"{name}: {value}" for name, value in facts.items()] + [""]
    lines += [
        "| case | | error | ms | least ms | times ours | of peak | GiB |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ms, least = (None if value is None else 1e3 * value for value in (row.seconds, row.least_seconds))
        cells = [(row.error, ".1e"), (ms, ".1f"), (least, ".1f"), (row.times_ours, ".3f")]
        cells += [(row.of_peak, ".1%"), (row.peak_gib, ".2f")]
        told = " | ".join("-" if value is None else format(value, form) for value, form in cells)
        lines.append(f"| {row.case} | {row.name}{f' ({row.note})' if row.note else ''} | {told} |")
    return "\n".join([*lines, ""])


def facts_of(device: int = 0) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, {properties.multi_processor_count} SMs",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "settings": f"bf16, random weights, cudnn.benchmark {torch.backends.cudnn.benchmark}, 3 warm-up rounds",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 2, after one line, where there is no CUDA device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="also whole clips, from this released file")
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device here: run make bench-gpu on a machine with one; nothing was measured", file=sys.stderr)
        return 2
    config = UNetConfig()
    weights = random_unet_weights(config, "cuda", torch.bfloat16)
    peak = PEAKS.get(torch.cuda.get_device_capability())
    peaks = measured_peaks("cuda", torch.bfloat16)
    rows, rooflines = [], []
    for case in CASES:
        rows += unet_rows(case, config, weights, rounds=given.rounds, peak=peak)
        ours = next(row for row in rows if (row.case, row.name) == (str(case), OURS.name))
        if ours.seconds is not None:
            rooflines += [*unet_roofline(case, config, weights, ours.seconds, peaks), ""]
    del weights
    rows += [row for frames in (14, 25) for row in decode_rows(frames, (72, 128))]
    if given.checkpoint:
        rows.append(clip_row(given.checkpoint, "cuda", 25))
    text = "\n".join([markdown(rows, facts_of()), *rooflines, report(), ""])
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "gpu.md").write_text(text, encoding="utf-8")
    (OUTPUT / "gpu.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
