"""Compare the exact decoder with the plain one, diffusers and ComfyUI: `python -m benchmarks.decode`.

Two tables, printed and written to output/: the memory of each at the released size, counted on the meta device; and
time and memory of a smaller clip on this CPU, with the same random weights for all. Each measured decode runs in its
own process, so that peaks do not mix.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from benchmarks.decode_peers import COUNTED, GIB, MEASURED, Contestant, random_weights
from benchmarks.device_bytes import device_bytes
from benchmarks.memory import PeakMemory
from benchmarks.peers import versions
from benchmarks.reports import rotated, write_report
from svd_core.config import PIXELS_PER_LATENT
from tools.fetch_comfyui import FetchError
from tools.random_weights import relative

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "output"
WARM_UP = (2, 2, 3)
"""Frames, h and w of a clip that is decoded first, because libraries initialise at their first call."""

TIME_LIMIT, DIFFERENCE_LIMIT = 1.15, 1e-5
"""Limits for the exact decoder: seconds as a multiple of the plain decoder's, and distance from its pixels."""


@dataclass(frozen=True, slots=True)
class Size:
    frames: int
    width: int
    height: int

    @property
    def latents(self) -> tuple[int, int, int, int]:
        return self.frames, 4, self.height // PIXELS_PER_LATENT, self.width // PIXELS_PER_LATENT

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.width}x{self.height}"


RELEASED, SMALL, QUICK = Size(25, 1024, 576), Size(25, 320, 192), Size(5, 64, 64)


@dataclass(frozen=True, slots=True)
class Counted:
    """Peak bytes on the device, excluding weights and latents; None if not counted, and `calls` then says why."""

    name: str
    peak_bytes: int | None
    calls: str


@dataclass(frozen=True, slots=True)
class Measured:
    """One decode, or the median of several. `times_plain` compares seconds of the same round, `difference` is the
    relative L2 distance of the pixels from the plain decoder's. All None if not measured; `calls` then says why."""

    name: str
    seconds: float | None
    cpu_seconds: float | None
    times_plain: float | None
    peak_bytes: int | None
    difference: float | None
    calls: str


# In a child process


def count_each(size: Size) -> list[Counted]:
    """Count all contestants in one process; counts, unlike peaks, do not mix."""
    return [_counted(each, size) for each in COUNTED]


def _counted(contestant: Contestant, size: Size) -> Counted:
    """Count one contestant in float16. Workspaces of libraries are not counted, for any contestant."""
    try:
        network, decode = contestant.build(None, torch.float16)
        z = torch.empty(size.latents, dtype=torch.float16, device="meta")
        with calls_of(network) as calls, FusedAttention(), device_bytes(network) as live:
            decode(z)
    except (ImportError, RuntimeError, FetchError) as error:
        return Counted(contestant.name, None, f"not counted: {str(error).splitlines()[0]}")
    return Counted(contestant.name, live.peak, _in_words(calls))


def measure_one(contestant: Contestant, folder: Path) -> dict[str, Any]:
    """Seconds, and peak memory above that after the warm-up. Saves the pixels in the folder."""
    network, decode = contestant.build(load_file(folder / "weights.safetensors"), torch.float32)
    z = load_file(folder / "latents.safetensors")["z"]
    with torch.inference_mode():
        decode(torch.zeros(WARM_UP[0], 4, *WARM_UP[1:]))
        gc.collect()
        with calls_of(network) as calls, PeakMemory() as memory:
            start, cpu_start = time.perf_counter(), time.process_time()
            pixels = decode(z)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    save_file({"pixels": pixels.contiguous()}, _pixels(folder, contestant.name))
    peak = memory.peak - memory.start
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak, "calls": _in_words(calls)}


class FusedAttention(TorchFunctionMode):
    """Count attention as a fused kernel for every contestant: on the meta device torch would count the matrix of
    scores."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def calls_of(network: nn.Module) -> Iterator[list[int]]:
    """Record the number of frames of each call of the network's decoder. The streamed form calls its layers instead, so
    it records none."""
    calls: list[int] = []
    hook = network.decoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        yield calls
    finally:
        hook.remove()


def _in_words(calls: Sequence[int]) -> str:
    return " + ".join(map(str, calls)) or "streamed"


def _pixels(folder: Path, name: str) -> Path:
    return folder / f"{''.join(letter if letter.isalnum() else '_' for letter in name)}.safetensors"


# All contestants


def count_all(size: Size) -> list[Counted]:
    rows = json.loads(_child("count", json.dumps(asdict(size))).stdout.splitlines()[-1])
    return [Counted(**row) for row in rows]


def measure_all(size: Size, repeat: int) -> list[Measured]:
    """Measure in rounds, each starting with another contestant, so that a busy spell of the machine affects all."""
    with tempfile.TemporaryDirectory(prefix="decode-") as name:
        folder = Path(name)
        save_file(random_weights(), folder / "weights.safetensors")
        z = torch.randn(size.latents, generator=torch.Generator().manual_seed(1))
        save_file({"z": z}, folder / "latents.safetensors")
        rounds = [
            {each.name: _measured(each, folder) for each in rotated(MEASURED, number)} for number in range(repeat)
        ]
        return [_summary(each.name, rounds, folder) for each in MEASURED]


def _measured(contestant: Contestant, folder: Path) -> dict[str, Any]:
    """The result printed by the child process, or the last line of its error as `calls`."""
    try:
        ran = _child("measure", contestant.name, str(folder))
    except subprocess.CalledProcessError as error:
        lines = (error.stderr.strip() or str(error)).splitlines()
        return {"calls": f"not measured: {lines[-1]}"}
    result = json.loads(ran.stdout.splitlines()[-1])
    print(f"{contestant.name}: {result['seconds']:.1f} s", file=sys.stderr)
    return result


def _child(*what: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.decode", "--child", *what]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


def _summary(name: str, rounds: Sequence[dict[str, dict[str, Any]]], folder: Path) -> Measured:
    own = [each[name] for each in rounds]
    calls = own[0]["calls"]
    reference = [each[MEASURED[0].name].get("seconds") for each in rounds]
    if not all("seconds" in each for each in own) or not all(reference):
        return Measured(name, None, None, None, None, None, calls)
    seconds, cpu_seconds = (statistics.median(each[key] for each in own) for key in ("seconds", "cpu_seconds"))
    ratio = statistics.median(each["seconds"] / plain for each, plain in zip(own, reference, strict=True))
    peak = max(each["peak_bytes"] for each in own)
    pixels, plain = (load_file(_pixels(folder, each))["pixels"] for each in (name, MEASURED[0].name))
    return Measured(name, seconds, cpu_seconds, ratio, peak, relative(pixels, plain), calls)


# Reports


def markdown(counted: Sequence[Counted], measured: Sequence[Measured], facts: dict[str, Any]) -> str:
    lines = [f"Counted on the meta device: {facts['counted']}. {facts['note']}", ""]
    lines += ["| decoder | GiB beside weights | frames a call |", "|---|---:|---|"]
    lines += [f"| {row.name} | {_gib(row.peak_bytes)} | {row.calls} |" for row in counted]
    lines += [
        "",
        f"Measured on the CPU: {facts['measured']}, {facts['threads']} threads, rounds: {facts['rounds']}.",
        "",
    ]
    lines += ["| decoder | seconds | times plain | CPU seconds | GiB beside weights | difference | frames a call |"]
    lines += ["|---|---:|---:|---:|---:|---:|---|"]
    for row in measured:
        cells = (_number(row.seconds, ".1f"), _number(row.times_plain, ".3f"), _number(row.cpu_seconds, ".1f"))
        cells += (_gib(row.peak_bytes), _number(row.difference, ".1e"), row.calls)
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", facts["versions"], ""])


def _gib(count: int | None) -> str:
    return _number(None if count is None else count / GIB, ".3f")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def facts_of(counted: Size, measured: Size, rounds: int) -> dict[str, Any]:
    return {
        "counted": f"float16, {counted}",
        "note": "Attention counts as a fused kernel for all; workspaces of libraries are not seen.",
        "measured": f"float32, {measured}",
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "versions": f"{versions()}, Python {platform.python_version()}, {os.cpu_count()} cores.",
    }


def misses(measured: Sequence[Measured], *, timed: bool) -> list[str]:
    """Sentences about limits that the exact decoder exceeds; times count only if the size is large enough (`timed`)."""
    found = []
    for row in measured:
        if row.name.startswith("exact"):
            if row.difference is None or row.difference > DIFFERENCE_LIMIT:
                found.append(f"{row.name}: difference {row.difference}, allowed {DIFFERENCE_LIMIT}")
            if timed and row.times_plain is not None and row.times_plain > TIME_LIMIT:
                found.append(f"{row.name}: {row.times_plain:.3f} times plain, allowed {TIME_LIMIT}")
    return found


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} for both tables, to see that all runs")
    parser.add_argument("--frames", type=int, default=SMALL.frames, help="of the measured clip")
    parser.add_argument("--width", type=int, default=SMALL.width)
    parser.add_argument("--height", type=int, default=SMALL.height)
    parser.add_argument("--repeat", type=int, default=1, help="rounds of measuring, of which the middle counts")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run_child(what: str, *how: str) -> None:
    """Run in a child process; prints one line of JSON."""
    if what == "count":
        print(json.dumps([asdict(row) for row in count_each(Size(**json.loads(how[0])))]))
    else:
        name, folder = how
        contestant = next(each for each in MEASURED if each.name == name)
        print(json.dumps(measure_one(contestant, Path(folder))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if the exact decoder exceeds a limit."""
    given = parsed(arguments)
    if given.child:
        run_child(*given.child)
        return 0
    size = QUICK if given.quick else Size(given.frames, given.width, given.height)
    full = QUICK if given.quick else RELEASED
    facts = facts_of(full, size, given.repeat)
    counted, measured = count_all(full), measure_all(size, given.repeat)
    text = markdown(counted, measured, facts)
    rows = {"counted": [asdict(row) for row in counted], "measured": [asdict(row) for row in measured]}
    write_report(OUTPUT, "decode-quick" if given.quick else "decode", text, {"facts": facts, **rows})
    missed = misses(measured, timed=not given.quick)
    print(text, *missed, sep="\n")
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
