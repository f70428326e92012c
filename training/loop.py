"""The training loop shared by all stages; a stage supplies an objective and samples."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from svd_core.errors import InputError, StableVideoError

from . import ema
from .checkpoint import State, adam_state, load_state, make_folder, not_finite, restore_adam, save_state
from .distributed import Group, unshared
from .lock import held
from .plot import plot_losses
from .recipe import Optimisation

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Machine:
    """Settings that do not affect the weights. `workers` processes draw samples ahead; 0 draws them in the main
    process. The state is saved every `save_every` steps and at the end; `stop_after` stops at that step, to be resumed
    later."""

    device: str = "cpu"
    workers: int = 0
    save_every: int = 100
    stop_after: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Files of a stage: `NAME.state.safetensors` to resume from, `NAME.safetensors` with the averaged weights for the
    next stage, and `NAME.png` with the loss curve."""

    folder: Path
    name: str

    @property
    def state(self) -> Path:
        return self.folder / f"{self.name}.state.safetensors"

    @property
    def weights(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    @property
    def curve(self) -> Path:
        return self.folder / f"{self.name}.png"


class Run:
    """One stage in training. `objective(batch)` is the loss to minimise; its parameters that require gradients are
    trained. `configuration` is everything that decides the weights, and identifies the run. Made and trained inside one
    `alone`, or another process could save a state after this one has read its own."""

    def __init__(
        self,
        objective: nn.Module,
        samples: Dataset,
        optimisation: Optimisation,
        configuration: Mapping[str, Any],
        place: Place,
        group: Group,
    ) -> None:
        self.objective = contiguous_norms(objective.to(group.device), group.device)
        self.samples, self.optimisation, self.group = samples, optimisation, group
        self.configuration, self.place = configuration, place
        _check_shares(optimisation, group)
        self.names = {name: each for name, each in objective.named_parameters() if each.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.names.values(), lr=optimisation.learning_rate, weight_decay=optimisation.weight_decay
        )
        self.average = {name: each.detach().float().clone() for name, each in self.names.items()}
        self.step, self.losses = 0, []
        self._resume()
        self.saved = self.step
        self.wrapped = group.wrap(self.objective)

    def _resume(self) -> None:
        state = load_state(self.place.state, self.configuration)
        if state is None:
            return
        with torch.no_grad():
            for name, parameter in self.names.items():
                parameter.copy_(state.weights[name])
                self.average[name].copy_(state.average[name])
        restore_adam(self.optimizer, self.names, state)
        self.step, self.losses = state.step, state.losses.tolist()

    def train(self, machine: Machine, keep: Callable[[Run], None]) -> None:
        """Train to the end, or to `machine.stop_after`. `keep` writes the weights for the next stage, using `averaged`.

        Raises StableVideoError if the loss or the weights are no longer finite, OutputError if the folder cannot be
        written.
        """
        last = min(self.optimisation.steps, machine.stop_after or self.optimisation.steps)
        batches = self._batches(last, machine)
        with _bar(self, last) as bar, _telling(self):
            for batch in batches:
                self.losses.append(self._update([batch, *(next(batches) for _ in range(self._rounds - 1))]))
                self.step += 1
                bar.set_postfix(loss=f"{self.losses[-1]:.4f}", refresh=False)
                bar.update()
                if self.step % machine.save_every == 0 or self.step == last:
                    self._save(keep)

    @property
    def _rounds(self) -> int:
        return self.optimisation.accumulate

    def _update(self, batches: list[Batch]) -> float:
        """One step of the optimizer; returns the mean loss over all processes."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.group.device)
        for number, batch in enumerate(batches, 1):
            with contextlib.nullcontext() if number == len(batches) else unshared(self.wrapped):
                loss = self._loss(batch) / len(batches)
                loss.backward()
                total += loss.detach()
        self._descend()
        return self._checked(self.group.mean(total).item())

    def _loss(self, batch: Batch) -> Tensor:
        on_device = {name: tensor.to(self.group.device, non_blocking=True) for name, tensor in batch.items()}
        with _precision(self.optimisation, self.group):
            return self.wrapped(on_device)

    def _descend(self) -> None:
        nn.utils.clip_grad_norm_(self.names.values(), self.optimisation.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optimisation, self.step)
        self.optimizer.step()
        ema.update(self.average, self.names, ema.decay_at(self.step, self.optimisation.ema))

    def _checked(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise StableVideoError(
                f"the loss of step {self.step + 1} is {loss}: start in a new folder with a lower learning rate"
            )
        return loss

    def _batches(self, last: int, machine: Machine) -> Iterator[Batch]:
        """This process's batches for every round of the remaining steps."""
        numbers = [
            share(self.optimisation, self.group, step, number)
            for step in range(self.step, last)
            for number in range(self._rounds)
        ]
        workers = {"num_workers": machine.workers, "persistent_workers": False}
        # The loader draws a seed for its workers, which do not use it; a generator of its own spares the global one.
        loader = DataLoader(self.samples, batch_sampler=numbers, generator=torch.Generator(), **workers)
        return _in_one_line(iter(loader))

    def _save(self, keep: Callable[[Run], None]) -> None:
        self._require_finite()
        if self.group.leads:
            plot_losses(self.losses, self.place.curve, self.place.name)
            keep(self)
            # Saved last, so that after a kill in between the run resumes from before the outputs above.
            save_state(self.place.state, self.state())
        self.group.wait()
        self.saved = self.step

    def _require_finite(self) -> None:
        """Raise StableVideoError before weights are saved that the last loss did not see."""
        bad = not_finite(dict(self.names)) or not_finite(self.average)
        if bad:
            kept = f"the state of step {self.saved} is kept, " if self.saved else ""
            raise StableVideoError(
                f"{bad} of the stage {self.place.name} is not finite after step {self.step}: {kept}start in a new "
                "folder with a lower learning rate"
            )

    def state(self) -> State:
        mean, square = adam_state(self.optimizer, self.names)
        weights = {name: parameter.detach() for name, parameter in self.names.items()}
        losses = torch.tensor(self.losses, dtype=torch.float64)
        return State(self.step, self.configuration, weights, self.average, mean, square, losses)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Context with the averaged weights loaded into the objective; its own are restored afterwards."""
        own = {name: parameter.detach().clone() for name, parameter in self.names.items()}
        self._fill(self.average)
        try:
            yield self.objective
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.names.items():
            parameter.copy_(weights[name])


@contextlib.contextmanager
def alone(place: Place, group: Group) -> Iterator[None]:
    """Context that keeps other runs from a stage's files, entered by all processes of the group together. Makes the
    folder. Raises OutputError if it cannot be written, InputError if another run holds the stage."""
    if group.leads:
        make_folder(place.state)
    with held(place.folder, place.name) if group.leads else contextlib.nullcontext():
        group.wait()
        yield


def contiguous_norms(objective: nn.Module, device: torch.device) -> nn.Module:
    """On the CPU, make the input of every GroupNorm contiguous. Returns the objective.

    Convolutions return channels-last tensors there, for which PyTorch's GroupNorm backward is slow: a whole training
    step is 1.4 times faster with the copy (docs/LOG.md).
    """
    if device.type == "cpu":
        for module in objective.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return objective


def learning_rate(chosen: Optimisation, step: int) -> float:
    """Learning rate of the update after `step` updates: linear warm-up, then constant or half a cosine to zero."""
    if step < chosen.warmup:
        return chosen.learning_rate * (step + 1) / chosen.warmup
    if chosen.decay == "constant":
        return chosen.learning_rate
    gone = (step - chosen.warmup) / max(1, chosen.steps - chosen.warmup)
    return chosen.learning_rate * 0.5 * (1 + math.cos(math.pi * gone))


def share(chosen: Optimisation, group: Group, step: int, number: int) -> list[int]:
    """Sample numbers of this process in round `number` of a step. All processes and rounds of a step together have
    `batch` of them, in the same order however they are divided."""
    size = chosen.batch // (chosen.accumulate * group.size)
    start = step * chosen.batch + (number * group.size + group.rank) * size
    return list(range(start, start + size))


def _check_shares(chosen: Optimisation, group: Group) -> None:
    parts = chosen.accumulate * group.size
    if chosen.batch % parts:
        raise InputError(
            f"a batch of {chosen.batch} cannot be divided among {group.size} processes with {chosen.accumulate} rounds "
            f"each: make it a multiple of {parts}"
        )


def _precision(chosen: Optimisation, group: Group) -> AbstractContextManager[None]:
    if chosen.bf16:
        return torch.autocast(group.device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _in_one_line(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Shorten errors raised in workers to their own message; the loader puts the whole traceback before it."""
    try:
        yield from batches
    except StableVideoError as error:
        kind = type(error)
        raise kind(str(error).rsplit(f"{kind.__name__}: ", 1)[-1].strip()) from error


@contextlib.contextmanager
def _telling(run: Run) -> Iterator[None]:
    """Context that adds the step from which the run will resume to a KeyboardInterrupt."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(f"the same command goes on from step {run.saved}, the last one saved") from stopped


def _bar(run: Run, last: int) -> tqdm:
    """Progress bar, silent if stderr is not a terminal and in all processes but one."""
    silent = None if run.group.leads else True
    return tqdm(total=last, initial=run.step, desc=run.place.name, unit="step", disable=silent)


def describe(stage: str, **parts: Any) -> dict[str, Any]:
    """A configuration as JSON-compatible tables, converted from dataclasses."""
    return {"stage": stage, **{name: _table(part) for name, part in parts.items()}}


def _table(part: Any) -> Any:
    return dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part
