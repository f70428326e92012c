"""Speed of the UNet and the decoder compared with diffusers and ComfyUI: `python -m benchmarks.forward`.

For a fair comparison: one process and the same weights for all contestants; equality checked before timing; rounds that
start with another contestant each time, the first discarded; CPU time and wall time; ratios within the same round. Each
case runs in its own process. Results are printed and written to output/bench/, as JSON and as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import decode_peers, sample_peers
from benchmarks.peers import versions
from benchmarks.reports import rotated, write_report
from benchmarks.unet_peers import COMPILED, CONTESTANTS, Batch, Diffusers, can_compile, random_weights
from benchmarks.work import Peaks, Tally, Work, roofline
from svd_core.config import UNetConfig
from svd_core.model.cpu import onednn
from tools.random_weights import relative

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "output" / "bench"
ERROR_LIMIT = 2.0
"""Limit on our error, as a multiple of the smallest error of the others."""

Run = Callable[[], Tensor]

RELEASED = UNetConfig()
NARROW = UNetConfig(model_channels=64, channel_mult=(1, 2, 4, 4), context_dim=256, vector_dim=96)
"""Narrow enough for a CPU to run the released number of tokens; attention, norms and copies weigh more."""


@dataclass(frozen=True, slots=True)
class Field:
    """The contestants, and the reference that all are compared with before they are timed."""

    runs: Mapping[str, Run]
    reference: Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    dtype: torch.dtype
    field: Callable[[torch.dtype], Field]
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant in one case. Ratios are its time over ours in the same round: above 1 we are faster.
    `first_seconds` is the wall time of the first call, which chooses kernels and compiles; no other field includes it.
    """

    case: str
    dtype: str
    name: str
    error: float
    cpu_seconds: float
    least_cpu_seconds: float
    wall_seconds: float
    cpu_ratio: float
    cpu_ratio_range: tuple[float, float]
    wall_ratio: float
    wall_ratio_range: tuple[float, float]
    rounds: int
    first_seconds: float


# Fields


def unet_field(config: UNetConfig, size: tuple[int, int, int], names: Sequence[str]) -> Callable[[torch.dtype], Field]:
    """Complete forward passes of clips (T, h, w)."""

    def field(dtype: torch.dtype) -> Field:
        weights = random_weights(config, dtype)
        networks = {name: CONTESTANTS[name](config, weights, dtype) for name in names}
        batch = Batch.random(config, *size).to(dtype)
        runs = {name: lambda network=network: network.forward(batch) for name, network in networks.items()}

        def reference() -> Tensor:
            with precise(networks["diffusers"].unet, _finer(dtype)):
                return networks["diffusers"].forward(batch.to(_finer(dtype)))

        return Field(runs, reference)

    return field


def level_field(size: tuple[int, int, int], names: Sequence[str]) -> Callable[[torch.dtype], Field]:
    """The first residual block and transformer of the released size, on images (T, 320, h, w). Compiled contestants
    need a C++ compiler."""

    def field(dtype: torch.dtype) -> Field:
        weights = random_weights(RELEASED, dtype, only="input_blocks.1.")
        able = [name for name in names if name != COMPILED or can_compile()]
        networks = {name: CONTESTANTS[name](RELEASED, weights, dtype) for name in able}
        generator = torch.Generator().manual_seed(2)
        shapes = ((size[0], 320, *size[1:]), (1, RELEASED.embedding_dim), (1, 1, RELEASED.context_dim))
        inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        runs = {name: lambda network=network: network.level(*inputs) for name, network in networks.items()}

        def reference() -> Tensor:
            block = networks["diffusers"].unet.down_blocks[0]
            with precise(block, _finer(dtype)):
                return networks["diffusers"].level(*(part.to(_finer(dtype)) for part in inputs))

        return Field(runs, reference)

    return field


def sampling_field(config: UNetConfig, size: tuple[int, int, int], steps: int) -> Callable[[torch.dtype], Field]:
    """Complete sampling of a clip (T, h, w), including the loop, guidance and everything between forward passes."""

    def field(dtype: torch.dtype) -> Field:
        weights = random_weights(config, dtype)
        shot = sample_peers.Shot.random(config, size, steps)
        runs = {name: build(config, weights, shot, dtype) for name, build in sample_peers.SAMPLERS.items()}

        def reference() -> Tensor:
            unet, finer = Diffusers.build(config, weights, dtype).unet, _finer(dtype)
            with precise(unet, finer):
                return sample_peers.sampling_of(sample_peers.network_of_diffusers(unet), config, shot, finer)()

        return Field(runs, reference)

    return field


def decode_field(size: tuple[int, int, int]) -> Callable[[torch.dtype], Field]:
    """Decoding latents (T, 4, h, w) of one clip. The others decode all frames at once: chunks change their pixels."""

    def field(dtype: torch.dtype) -> Field:
        weights = {name: value.to(dtype) for name, value in decode_peers.random_weights().items()}
        contestants = {
            "ours": decode_peers.exact("all kept", "device"),
            "ours, one frame kept": decode_peers.exact("one frame kept", "device", 1),
            "diffusers": decode_peers.diffusers(None),
            "ComfyUI": decode_peers.comfyui(),
        }
        built = {name: contestant.build(weights, dtype) for name, contestant in contestants.items()}
        z = torch.randn(size[0], 4, *size[1:], generator=torch.Generator().manual_seed(1)).to(dtype)
        runs = {name: lambda decode=decode: decode(z) for name, (_, decode) in built.items()}

        def reference() -> Tensor:
            # The plain decoder, because diffusers' casts to the dtype of its weights midway.
            network, _ = decode_peers.plain().build(weights, dtype)
            with precise(network.decoder, _finer(dtype)):
                return network.decoder(z.to(_finer(dtype)), size[0])

        return Field(runs, reference)

    return field


def _finer(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 else torch.float32


@contextmanager
def precise(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Context in which each layer's weights are cast to a finer dtype while it runs: the exact function of the same
    weights, without a second copy of them."""

    def refine(layer: nn.Module, _: Any) -> None:
        kept[layer] = [parameter.data for parameter in layer.parameters(recurse=False)]
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)

    def restore(layer: nn.Module, *_: Any) -> None:
        for parameter, data in zip(layer.parameters(recurse=False), kept.pop(layer), strict=True):
            parameter.data = data

    kept: dict[nn.Module, list[Tensor]] = {}
    holders = [layer for layer in network.modules() if next(layer.parameters(recurse=False), None) is not None]
    hooks = [layer.register_forward_pre_hook(refine) for layer in holders]
    hooks += [layer.register_forward_hook(restore, always_call=True) for layer in holders]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


EVERYONE, STOCK = tuple(CONTESTANTS), ("ours", "diffusers", "ComfyUI")
FULL, TOKENS = (7, 24, 40), (14, 72, 128)
CASES = (
    Case("UNet, released size, 7 frames of 320x192", torch.float32, unet_field(RELEASED, FULL, STOCK)),
    Case("UNet, released size, 7 frames of 320x192", torch.bfloat16, unet_field(RELEASED, FULL, STOCK)),
    Case("UNet, narrow, 14 frames of 1024x576", torch.bfloat16, unet_field(NARROW, TOKENS, STOCK)),
    Case("first level, 4 frames of 1024x576", torch.float32, level_field((4, 72, 128), EVERYONE)),
    Case("first level, 4 frames of 1024x576", torch.bfloat16, level_field((4, 72, 128), EVERYONE)),
    Case("decode, 8 frames of 192x128", torch.float32, decode_field((8, 16, 24))),
    Case("decode, 8 frames of 192x128", torch.bfloat16, decode_field((8, 16, 24))),
    Case("5 steps, narrow, 4 frames of 192x128", torch.float32, sampling_field(NARROW, (4, 16, 24), 5)),
    Case("first level, 4 frames of 192x128", torch.float32, level_field((4, 16, 24), EVERYONE), quick=True),
    Case("first level, 4 frames of 192x128", torch.bfloat16, level_field((4, 16, 24), EVERYONE), quick=True),
    Case("decode, 2 frames of 64x64", torch.float32, decode_field((2, 8, 8)), quick=True),
)


# In a child process


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Rows, and our work by class of operation. Raises ValueError if our error exceeds its limit."""
    field = case.field(case.dtype)
    with torch.no_grad():  # inference mode would not allow `precise` to swap weights
        reference = field.reference()
    with torch.inference_mode():
        return _timed(case, field, reference, rounds)


def _timed(case: Case, field: Field, reference: Tensor, rounds: int) -> dict[str, Any]:
    errors, first_seconds = {}, {}
    for name, run in field.runs.items():
        start = time.perf_counter()
        found = run()
        first_seconds[name] = time.perf_counter() - start
        errors[name] = relative(found, reference)
    print(f"{case.name}, {_dtype(case)}: errors {errors}", file=sys.stderr)
    _check(errors)
    times = [_round(field.runs, number) for number in range(rounds + 1)][1:]
    with torch.inference_mode(False), torch.no_grad(), Work() as work:  # inference mode hides the dispatched operations
        field.runs["ours"]()
    rows = [asdict(_row(case, name, errors[name], first_seconds[name], times)) for name in field.runs]
    return {"rows": rows, "work": {name: asdict(tally) for name, tally in work.classes.items()}}


def _check(errors: Mapping[str, float]) -> None:
    others = min(error for name, error in errors.items() if not name.startswith("ours"))
    for name, error in errors.items():
        if name.startswith("ours") and not error <= ERROR_LIMIT * others:
            raise ValueError(f"{name}: error {error:.1e}, allowed {ERROR_LIMIT} times the others' {others:.1e}")


def _round(runs: Mapping[str, Run], number: int) -> dict[str, tuple[float, float]]:
    """CPU and wall seconds of each contestant; each round starts with another one."""
    times = {}
    for name in rotated(list(runs), number):
        start, cpu_start = time.perf_counter(), time.process_time()
        runs[name]()
        times[name] = (time.process_time() - cpu_start, time.perf_counter() - start)
        print(f"  {name}: {times[name][0]:.2f} s of processors, {times[name][1]:.2f} s", file=sys.stderr)
    return times


def _row(
    case: Case, name: str, error: float, first_seconds: float, times: Sequence[Mapping[str, tuple[float, float]]]
) -> Row:
    cpu_seconds, wall_seconds = ([each[name][kind] for each in times] for kind in (0, 1))
    cpu_ratios, wall_ratios = ([each[name][kind] / each["ours"][kind] for each in times] for kind in (0, 1))
    return Row(
        case.name,
        _dtype(case),
        name,
        error,
        statistics.median(cpu_seconds),
        min(cpu_seconds),
        statistics.median(wall_seconds),
        statistics.median(cpu_ratios),
        (min(cpu_ratios), max(cpu_ratios)),
        statistics.median(wall_ratios),
        (min(wall_ratios), max(wall_ratios)),
        len(times),
        first_seconds,
    )


def _dtype(case: Case) -> str:
    return str(case.dtype).removeprefix("torch.")


# All cases


def measure_all(cases: Sequence[Case], rounds: int, threads: int) -> list[dict[str, Any]]:
    """Results of each case's process; a case that failed reports to stderr and is left out."""
    results = []
    for case in cases:
        command = [sys.executable, "-m", "benchmarks.forward", "--child", str(CASES.index(case))]
        command += ["--rounds", str(rounds), "--threads", str(threads)]
        ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if ran.returncode == 0:
            results.append(json.loads(ran.stdout.splitlines()[-1]))
    return results


def peaks(dtype: torch.dtype, edge: int = 2048) -> tuple[float, float]:
    """This machine's peak FLOP/s, of a large product in `dtype` or float32, whichever is faster, and bytes/s, of a
    copy."""
    drawn = [torch.randn(edge, edge) for _ in range(2)]
    own = [operand.to(dtype) for operand in drawn]
    product = min(_least(lambda: torch.nn.functional.linear(*own)), _least(lambda: onednn.onednn_linear(*drawn)))
    source, target = torch.zeros(2**26), torch.empty(2**26)
    copy = _least(lambda: target.copy_(source))
    return 2 * edge**3 / product, 2 * source.nbytes / copy


def _least(run: Callable[[], Any], repeat: int = 5) -> float:
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


# Reports


def markdown(results: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    lines = [
        f"{facts['threads']} threads, {facts['rounds']} rounds after one that is discarded. A ratio is the "
        "contestant's time over ours in the same round, the middle one and the range; above 1 we are faster. The "
        "error is the relative distance from the same weights in a finer dtype.",
        "",
        "| case | dtype | contestant | error | first call, s | CPU s | wall s | CPU ratio | wall ratio |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_line(row) for result in results for row in result["rows"]]
    lines += ["", facts["versions"], ""]
    for result in results:
        lines += [*_roofline(result), ""]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    ratios = (
        f"{row[kind]:.2f} ({row[kind + '_range'][0]:.2f}-{row[kind + '_range'][1]:.2f})"
        for kind in ("cpu_ratio", "wall_ratio")
    )
    seconds = " | ".join(f"{row[kind]:.2f}" for kind in ("first_seconds", "cpu_seconds", "wall_seconds"))
    return f"| {row['case']} | {row['dtype']} | {row['name']} | {row['error']:.1e} | {seconds} | {' | '.join(ratios)} |"


def _roofline(result: Mapping[str, Any]) -> list[str]:
    row = result["rows"][0]
    classes = {name: Tally(**tally) for name, tally in result["work"].items()}
    return roofline(f"Ours, {row['case']}, {row['dtype']}", classes, Peaks(*result["peaks"]))


def facts_of(rounds: int, threads: int) -> dict[str, Any]:
    machine = f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"
    settings = "attention by torch's function for all; random weights, shared; ComfyUI with disable_weight_init"
    compared = f"{versions()}, {machine}; {settings}; our float32 linear layers: {onednn.in_words()}."
    return {"rounds": rounds, "threads": threads, "versions": compared}


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forward", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small cases alone, to see that all runs")
    parser.add_argument("--only", default="", help="cases whose name and dtype hold these words")
    parser.add_argument("--rounds", type=int, default=5, help="that count, after one that does not")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a case failed, for example because its contestants do not agree."""
    given = parsed(arguments)
    torch.set_num_threads(given.threads)
    if given.child is not None:
        case = CASES[given.child]
        print(json.dumps({**measure(case, given.rounds), "peaks": peaks(case.dtype)}))
        return 0
    words = given.only.split()
    cases = [
        case for case in CASES if case.quick == given.quick and all(w in f"{case.name} {_dtype(case)}" for w in words)
    ]
    results = measure_all(cases, given.rounds, given.threads)
    facts = facts_of(given.rounds, given.threads)
    text = markdown(results, facts)
    write_report(OUTPUT, "forward-quick" if given.quick else "forward", text, {"facts": facts, "results": results})
    print(text)
    return int(len(results) < len(cases))


if __name__ == "__main__":
    raise SystemExit(main())
