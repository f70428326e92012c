"""One UNet step, the decoder and a whole clip on a CUDA device: `python -m benchmarks.gpu`.

All contestants use the same weights in the same process; each one's error against float32 is measured before its time.
Rounds are interleaved and start with another contestant each time. Times come from CUDA events; ratios are within one
round.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.decode_peers import Contestant as Decoder
from benchmarks.decode_peers import comfyui_on_card, diffusers, plain
from benchmarks.decode_peers import exact as exact_decode
from benchmarks.decode_peers import random_weights as vae_weights
from benchmarks.gpu_clip import CARDS, card_rows, clip_table, clip_time, random_model
from benchmarks.gpu_peers import (
    CONTESTANTS,
    OURS,
    Batch,
    Contestant,
    Run,
    diffusers_compiled,
    random_batch,
)
from benchmarks.reports import rotated, write_report
from benchmarks.unet_peers import random_weights
from benchmarks.work import Peaks, Seconds, Tally, Work, fused_attention, roofline
from svd_core.config import UNetConfig
from svd_core.kernels import choices, report
from svd_core.kernels.choice import cuda_seconds
from svd_core.model.backend import Backend
from svd_core.model.step import BlockHooks
from svd_core.model.unet import VideoUNet
from tools.fetch_comfyui import FetchError
from tools.random_weights import relative

OUTPUT = Path(__file__).resolve().parents[1] / "output"
GIB = 2**30
PEAKS = {(8, 0): 312e12, (8, 6): 71e12, (8, 9): 165e12, (9, 0): 790e12}
"""Dense bf16 FLOP/s with float32 accumulation, by compute capability: data sheet values of an A100, an RTX 3090 and an
RTX 4090, and what a large product can reach on an H200 (776e12 measured: docs/LOG.md, 2026-11-26)."""

DECODERS = (
    exact_decode("all kept", "device"),
    exact_decode("one frame kept", "device", 1),
    plain(),
    diffusers(None),
    diffusers(8),
    comfyui_on_card(80),
)

UNSEEN = "our kernels, and gaps"
"""Time of a step outside the operations that torch dispatches, and the FLOPs that none of them did."""


@dataclass(frozen=True, slots=True)
class Case:
    """One size of the UNet's input; `clips` is 2 for a step with both guidance branches."""

    frames: int
    clips: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames} frames of {8 * self.width}x{8 * self.height}, B={self.clips}"


CASES = tuple(Case(frames, clips, 72, 128) for frames in (14, 25) for clips in (1, 2))


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant in one case. `error` is the relative L2 distance from float32; `times_ours` compares seconds of
    the same round; `of_peak` is FLOP/s over the device's peak. None if not measured; `note` then says why."""

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
    """CPU seconds, for the test of this file, which runs on the CPU."""
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
    """Output of our network in float32, one clip at a time; the device must hold a second copy of the weights."""
    run = OURS.build(config, {name: weight.float() for name, weight in weights.items()})
    parts = [tensor.float().split(batch.frames) for tensor in (batch.x, batch.c_noise, batch.context, batch.vector)]
    with _exact_sums():
        return torch.cat([run(Batch(*clip, batch.frames)) for clip in zip(*parts, strict=True)])


@contextmanager
def _exact_sums() -> Iterator[None]:
    """Context without cuDNN's TF32 and without our own kernels."""
    made = choices()
    incapable, made.incapable = made.incapable, lambda _device: "this is what kernels are compared to"
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        made.incapable = incapable


class _InFull(BlockHooks):
    changes_attention = True


def unet_flops(case: Case, config: UNetConfig) -> int:
    """FLOPs of the published graph, with full cross-attention, counted on the meta device; the same for all."""
    unet = VideoUNet(config, backend=Backend(device="meta"))
    batch = random_batch(config, unet.state_dict(), case.clips, case.frames, (case.height, case.width))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        unet(batch.x, batch.c_noise, batch.context, batch.vector, batch.frames, _InFull())
    return counter.get_total_flops()


@torch.no_grad()  # inference mode hides the dispatched operations
def unet_roofline(
    case: Case,
    config: UNetConfig,
    weights: Mapping[str, Tensor],
    step_seconds: float,
    peaks: Peaks,
    *,
    seconds: Seconds = cuda_seconds,
) -> list[str]:
    """Our step by class of operation, each operation timed alone. The rest of `step_seconds` is Triton kernels, which
    torch does not dispatch, and idle time; operations timed alone may also add up to more than the step."""
    batch = random_batch(config, weights, case.clips, case.frames, (case.height, case.width))
    run = OURS.build(config, weights)
    run(batch)  # warm up: kernel probes and first calls
    with Work(seconds) as work:
        run(batch)
    seen, like = work.total, next(iter(weights.values()))
    unseen = _asked(case, config, like.dtype).flops - seen.flops
    left = Tally(flops=max(0, unseen), seconds=max(0.0, step_seconds - seen.seconds))
    return roofline(f"Ours, {case}", {**work.classes, UNSEEN: left}, peaks)


def _asked(case: Case, config: UNetConfig, dtype: torch.dtype) -> Tally:
    """Work of a step without our own kernels, counted on the meta device."""
    unet = VideoUNet(config, backend=Backend(attention=fused_attention, dtype=dtype, device="meta"))
    batch = random_batch(config, unet.state_dict(), case.clips, case.frames, (case.height, case.width))
    with torch.no_grad(), Work() as work:
        unet(batch.x, batch.c_noise, batch.context, batch.vector, batch.frames)
    return work.total


def measured_peaks(
    device: str, dtype: torch.dtype, *, edge: int = 8192, values: int = 2**29, seconds: Seconds = cuda_seconds
) -> Peaks:
    """Peaks measured with a square matrix product and a copy, the best of ten each."""
    one, other = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    product = min(seconds(lambda: one @ other) for _ in range(10))
    source = torch.zeros(values, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copy = min(seconds(lambda: target.copy_(source)) for _ in range(10))
    return Peaks(2 * edge**3 / product, 2 * source.nbytes / copy)


# Decoder


@torch.inference_mode()
def decode_rows(
    frames: int,
    size: tuple[int, int],
    *,
    weights: Mapping[str, Tensor] | None = None,
    contestants: Sequence[Decoder] = DECODERS,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    seconds: Seconds = cuda_seconds,
    rounds: int = 5,
) -> list[Row]:
    """Our exact decoder compared with the plain one and the others; `make bench-decode` measures more."""
    weights = {name: value.to(device) for name, value in (weights or vae_weights(device=device)).items()}
    z = torch.randn(frames, 4, *size, generator=torch.Generator().manual_seed(1)).to(device)
    case = f"decode, {frames} frames of {8 * size[1]}x{8 * size[0]}"
    with _exact_sums():
        exact = exact_decode("float32", "device", 1).build(weights, torch.float32)[1](z)
    runs, rows = {}, []
    for each in contestants:
        try:
            run = partial(each.build(weights, dtype)[1], z.to(dtype))
            runs[each.name] = (
                run,
                relative(run().to(device).float(), exact),
                _peak_gib(lambda _, run=run: run(), None),
            )
        except (ImportError, RuntimeError, FetchError) as error:
            rows.append(Row(case, each.name, note=f"not measured: {_first_line(error)}"))
    timed = interleaved({name: run for name, (run, *_) in runs.items()}, seconds, rounds, warm_up=1)
    return rows + [_row(case, name, timed, None, None, error, gib) for name, (_, error, gib) in runs.items()]


# Timing


def interleaved(
    runs: Mapping[str, Callable[[], object]], seconds: Seconds, rounds: int, warm_up: int = 3
) -> dict[str, list[float]]:
    """Seconds of each run in each round, without the warm-up rounds."""
    timed: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warm_up + rounds):
        for name in rotated(list(runs), number):
            timed[name].append(seconds(runs[name]))
    return {name: each[warm_up:] for name, each in timed.items()}


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


# Reports


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
        numbers = " | ".join("-" if value is None else format(value, form) for value, form in cells)
        lines.append(f"| {row.case} | {row.name}{f' ({row.note})' if row.note else ''} | {numbers} |")
    return "\n".join([*lines, ""])


def facts_of(device: int = 0) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, {properties.multi_processor_count} SMs",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "settings": f"bf16, random weights, cudnn.benchmark {torch.backends.cudnn.benchmark}, 3 warm-up rounds",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 2, after one line of explanation, if there is no CUDA device."""
    given = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device here: run make bench-gpu on a machine with one; nothing was measured", file=sys.stderr)
        return 2
    rows, rooflines = _unets(given)
    rows += [row for frames in given.decode for row in decode_rows(frames, (72, 128), rounds=3)]
    clips = [clip_time(random_model("cuda", torch.bfloat16), given.steps)] if given.steps else []
    streamed = random_model("cuda", torch.bfloat16, unet_device="cpu") if given.cards else None
    cards = card_rows(streamed, given.cards) if streamed else []
    text = "\n".join([markdown(rows, facts_of()), *rooflines, *clip_table(clips, cards), "", report(), ""])
    parts = {"rows": rows, "clips": clips, "cards": cards}
    write_report(OUTPUT, "gpu", text, {name: [asdict(each) for each in part] for name, part in parts.items()})
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--compile", default="max-autotune-no-cudagraphs", help="mode of diffusers' compilation in the last case"
    )
    parser.add_argument("--decode", type=int, nargs="*", default=[14, 25], help="frames of the decoded clips")
    parser.add_argument("--steps", type=int, default=25, help="of the whole clip; 0 leaves it out")
    parser.add_argument("--cards", type=float, nargs="*", default=list(CARDS), help="GiB of the cards stood in for")
    return parser


def _unets(given: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Rows of every case, and a roofline of the last. Only the last includes a compiled contestant, because compiling
    takes minutes per shape."""
    config = UNetConfig()
    weights = random_weights(config, torch.bfloat16, device="cuda")
    peak = PEAKS.get(torch.cuda.get_device_capability())
    rows: list[Row] = []
    for case in CASES:
        compiled = (diffusers_compiled(given.compile),) if given.compile and case == CASES[-1] else ()
        rows += unet_rows(case, config, weights, (*CONTESTANTS, *compiled), rounds=given.rounds, peak=peak)
        print(markdown(rows, {}), flush=True)
    ours = next(row for row in rows if (row.case, row.name) == (str(CASES[-1]), OURS.name))
    peaks = measured_peaks("cuda", torch.bfloat16)
    return rows, [*unet_roofline(CASES[-1], config, weights, ours.seconds, peaks), ""]


if __name__ == "__main__":
    raise SystemExit(main())
