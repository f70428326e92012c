"""Rendering many pictures with Ray, on the GPUs of one machine or a cluster. Ray is optional.

The outputs are the only state: a clip appears only when complete and carries its recipe, so existing clips with the
requested recipe are done, and a batch that was killed continues where it stopped.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..checkpoint.load import open_checkpoint
from ..config import Variant
from ..errors import InputError, OutputError, printable
from ..media import check_output, read_recipe, round_size
from ..recipe import Recipe, Source, sha256_of
from ..shot import Shot
from .batch_worker import Outcome, Worker
from .controls import read_controls
from .interrupts import handlers_kept
from .notes import note
from .order import Order, order_from_flags
from .table import LiveTable

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
"""Suffixes of the pictures that are looked for in a folder; a list may name others."""

CLIP_SUFFIXES = (".webp", ".gif")
"""Suffixes that both clips and pictures may have."""

NEEDS_RAY = "batch needs the package ray ({}): pip install ray, or run animate for each picture"
_OWN_FLAGS = {"run", "pictures", "output", "workers", "retries", "format", "address"}
_PAUSE = 0.5
"""Seconds between progress queries to the workers."""

_GRACE = 5.0
"""Seconds that an interrupted batch gives its workers to finish writing their clips."""


@dataclass(frozen=True, slots=True)
class Task:
    picture: Path
    output: Path
    tries: int = 0


def batch(args: Namespace) -> None:
    """Render every picture of a folder or a list that has no clip yet. Raises InputError naming those that failed."""
    ray = _ray()
    tasks = _tasks(args)
    order = order_from_flags(Namespace(**_flags(args), image=str(tasks[0].picture)))
    variant = _checked_variant(order)
    with _output_folder(Path(args.output)):
        left = _unfinished(tasks, order, variant, args)
    print(f"{len(tasks)} pictures, {len(tasks) - len(left)} have their clips already")
    if not left:
        return
    with _connected(ray, args):
        start, count = _workers(ray, args, len(left))
        pool = _Pool(ray, start, [start() for _ in range(count)], deque(left), getattr(args, "retries", 2))
        pool.run()
    if pool.failed:
        first, reason = next(iter(pool.failed.items()))
        raise InputError(f"{len(pool.failed)} of {len(left)} pictures gave no clip, the first being {first}: {reason}")


def _checked_variant(order: Order) -> Variant:
    """The checkpoint's variant. Raises InputError for what every picture would be refused for, before workers are
    started."""
    order.check_settings()
    variant = open_checkpoint(order.checkpoint, order.variant).config.variant
    blank = np.zeros((variant.height, variant.width, 3), np.float32)
    Shot.of(variant, blank, order.settings, read_controls(order.controls, blank, order.settings, variant))
    return variant


@dataclass(slots=True)
class _Pool:
    """Workers and their tasks. A worker that dies is replaced, and its picture is retried.

    Ray's own restart is not used, because it rejects tasks meanwhile, which would count as tries of their pictures.
    """

    ray: ModuleType
    start: Callable[[], Any]
    workers: list[Any]
    waiting: deque[Task]
    retries: int
    running: dict[Any, tuple[int, Task]] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)
    printed_notes: set[str] = field(default_factory=set)
    done: int = 0

    def run(self) -> None:
        try:
            self._render_all()
        except BaseException:
            self._stop_workers()
            raise

    def _stop_workers(self) -> None:
        """Stop the workers and wait for them; a worker killed while writing would leave its scratch folder."""
        with suppress(self.ray.exceptions.RayError):
            for index, _ in self.running.values():
                self.workers[index].stop.remote()
            if self.running:
                self.ray.wait(list(self.running), num_returns=len(self.running), timeout=_GRACE)

    def _render_all(self) -> None:
        table, idle = LiveTable(), list(range(len(self.workers)))
        while self.waiting or self.running:
            while idle and self.waiting:
                self._start(idle.pop(0))
            ready, _ = self.ray.wait(list(self.running), timeout=_PAUSE if table.live else None)
            table.clear()
            idle += [self._finish(reference) for reference in ready]
            if table.live:
                table.draw(self._rows())
        table.clear()

    def _start(self, index: int) -> None:
        task = self.waiting.popleft()
        reference = self.workers[index].render.remote(str(task.picture), str(task.output))
        self.running[reference] = (index, task)

    def _finish(self, reference: object) -> int:
        """Record the result of a task and return the index of its worker, now idle."""
        index, task = self.running.pop(reference)
        try:
            outcome = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            outcome = Outcome(error=f"its worker stopped ({type(error).__name__})")
            self.workers[index] = self.start()
        self._print_stderr(outcome.stderr)
        if not outcome.error:
            self.done += 1
            print(outcome.stdout, end="", flush=True)
        elif outcome.permanent or task.tries >= self.retries:
            self.failed[task.picture] = outcome.error
            sys.stderr.write(f"failed: {printable(f'{task.picture}: {outcome.error}')}\n")
        else:
            note(f"{task.picture} is tried again: {outcome.error}")
            self.waiting.append(dataclasses.replace(task, tries=task.tries + 1))
        return index

    def _print_stderr(self, text: str) -> None:
        """Print a worker's stderr, with each distinct note only once."""
        for line in text.splitlines():
            if line not in self.printed_notes:
                sys.stderr.write(f"{line}\n")
            if line.startswith("note: "):
                self.printed_notes.add(line)

    def _rows(self) -> list[str]:
        busy = {index: task for index, task in self.running.values()}
        rows = [self._row(index, busy.get(index)) for index in range(len(self.workers))]
        left = len(self.waiting) + len(self.running)
        return [*rows, f"done {self.done}, left {left}, failed {len(self.failed)}"]

    def _row(self, index: int, task: Task | None) -> str:
        if task is None:
            return f"worker {index}  idle"
        try:
            progress = self.ray.get(self.workers[index].progress.remote(), timeout=_PAUSE)
        except self.ray.exceptions.RayError:  # the worker is still starting, or has just died
            progress = None
        stage = "{} {}/{}".format(*progress) if progress else "starting"
        return f"worker {index}  {stage:<18} {task.picture.name}"


# Tasks


def _tasks(args: Namespace) -> list[Task]:
    """One task per picture. Raises InputError if there are no pictures, or two would have the same clip."""
    folder, suffix = Path(args.output), f".{getattr(args, 'format', 'mp4')}"
    taken: dict[str, Path] = {}
    for picture in _pictures(Path(args.pictures)):
        other = taken.setdefault(picture.stem.lower(), picture)
        if other is not picture:
            raise InputError(f"{other} and {picture} would have the same clip: rename one")
    return [Task(picture, folder / f"{picture.stem}{suffix}") for picture in taken.values()]


@contextmanager
def _output_folder(folder: Path) -> Iterator[None]:
    """Create the output folder if needed, and remove a newly created one if the body raises."""
    new = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"output {folder} is no folder and cannot be made one ({error.strerror})") from error
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


def _pictures(source: Path) -> list[Path]:
    if source.is_dir():
        found = _pictures_in(source)
    elif source.suffix.lower() == ".txt" and source.is_file():
        found = list(dict.fromkeys(Path(line.strip()) for line in _lines(source) if line.strip()))
    else:
        raise InputError(f"{source} is neither a folder nor a .txt list of pictures, one a line")
    if not found:
        raise InputError(f"{source} names no pictures: needed files ending in {', '.join(SUFFIXES)}")
    return sorted(found)


def _pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder, without our own clips, so that a batch that writes next to its pictures can resume."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    pictures = [path for path in found if not _is_our_clip(path)]
    if found and not pictures:
        raise InputError(f"{folder} holds clips made by svd_core and no pictures: name those to take in a .txt list")
    return pictures


def _is_our_clip(path: Path) -> bool:
    """Whether a .webp or .gif file has a recipe in its metadata."""
    if path.suffix.lower() not in CLIP_SUFFIXES:
        return False
    try:
        read_recipe(path)
    except InputError:
        return False
    return True


def _lines(source: Path) -> list[str]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source} cannot be read ({error}): give a list in UTF-8, one picture a line") from error
    if "\0" in text:
        raise InputError(f"{source} holds zero bytes: give a list in UTF-8, one picture a line")
    return text.splitlines()


def _unfinished(tasks: Sequence[Task], order: Order, variant: Variant, args: Namespace) -> list[Task]:
    """The tasks without a clip. Raises OutputError if a clip's path is taken by anything not made from this order."""
    check_output(tasks[0].output, order.playback_fps)
    left = [task for task in tasks if not task.output.exists()]
    finished = [task for task in tasks if task.output.exists()]
    if finished:
        checkpoint = sha256_of(Path(order.checkpoint))
        for task in finished:
            _require_same(task, order, variant, checkpoint, args)
    return left


def _require_same(task: Task, order: Order, variant: Variant, checkpoint: str, args: Namespace) -> None:
    try:
        recipe = read_recipe(task.output)
    except InputError as error:
        raise OutputError(f"{task.output} is in the way ({error}): remove it, or choose another folder") from error
    wanted = _resolved(order, variant, recipe)
    same = (
        recipe.settings == wanted
        and recipe.controls == order.controls.for_variant(variant)
        and (recipe.playback_fps, recipe.dtype) == (order.playback_fps, order.dtype)
        and recipe.checkpoint.sha256 == checkpoint
        and recipe.image.sha256 == Source.of(task.picture).sha256
        and not (recipe.watermark and "no_watermark" in args)
    )
    if not same:
        raise OutputError(
            f"{task.output} was made from another picture, checkpoint or settings: remove it, or choose another folder"
        )


def _resolved(order: Order, variant: Variant, recipe: Recipe) -> object:
    """The settings that the recipe would have if this order had made its clip. A size that was not given is taken from
    the recipe: it follows from the picture, which is compared by its hash."""
    settings = order.settings.for_variant(variant)
    made = recipe.settings
    width, height = round_size(settings.width or made.width, settings.height or made.height)
    return dataclasses.replace(settings, width=width, height=height)


def _flags(args: Namespace) -> dict[str, Any]:
    """The flags that `animate` has too."""
    return {name: value for name, value in vars(args).items() if name not in _OWN_FLAGS}


# Ray


def _ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # disables Ray's telemetry
    try:
        import ray
    except ImportError as error:
        raise InputError(NEEDS_RAY.format(error)) from error
    return ray


@contextmanager
def _connected(ray: ModuleType, args: Namespace) -> Iterator[None]:
    """Start Ray or connect to a cluster; afterwards stop what was started. A cluster keeps running."""
    started_here = not ray.is_initialized()
    try:
        if started_here:
            address = {"address": args.address} if "address" in args else {"include_dashboard": False}
            with handlers_kept():
                ray.init(log_to_driver=False, logging_level="error", **address)
        yield
    finally:
        if started_here:
            ray.shutdown()


def _workers(ray: ModuleType, args: Namespace, pictures: int) -> tuple[Callable[[], Any], int]:
    """A function that starts a worker, and how many to start: --workers, or one per GPU, or one without GPUs; at most
    one per picture. Raises InputError for more workers than GPUs."""
    wanted = getattr(args, "device", None)
    gpus = int(ray.cluster_resources().get("GPU", 0)) if wanted in (None, "cuda") else 0
    count = min(getattr(args, "workers", max(gpus, 1)), pictures)
    if gpus and count > gpus:
        raise InputError(f"{count} workers for {gpus} GPUs: give --workers {gpus} or fewer, or --device cpu")
    flags = {**_flags(args), "device": "cuda" if gpus else wanted or "cpu"}
    threads = max(1, torch.get_num_threads() // count)
    # num_cpus=0, because Ray would otherwise limit the number of workers by the CPUs it counts.
    actor = ray.remote(Worker).options(num_cpus=0, num_gpus=1 if gpus else 0, max_concurrency=2)
    return partial(actor.remote, flags, threads), count
