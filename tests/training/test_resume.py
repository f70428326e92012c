"""A run that is killed goes on to the same bits, and one of another configuration is refused."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from svd_core.errors import CheckpointError, InputError, OutputError, StableVideoError
from svd_core.media import locks
from training import checkpoint, lock, loop
from training.checkpoint import State, differences_of, load_state, save_state, save_tensors
from training.data import open_source
from training.distributed import ALONE, Group
from training.lock import held
from training.loop import Machine, Place, Run, describe, learning_rate, share
from training.recipe import Optimisation, with_settings
from training.stages import Kept, save_kept, train_autoencoder

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6


@pytest.fixture(scope="module")
def recipe(tiny):
    return with_settings(tiny, [f"autoencoder.optimisation.steps={STEPS}"])


def train(recipe, folder, **machine) -> Run:
    source = open_source(recipe.data, recipe.seed, pytest.fail)
    return train_autoencoder(recipe, source, folder, Machine(save_every=1, **machine), ALONE)


def bits(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("autoencoder*")}


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(recipe, folder)
    return bits(folder)


@contextmanager
def started(recipe, folder: Path, *torchrun: str) -> Iterator[subprocess.Popen]:
    (folder / "recipe.json").write_text(recipe.to_json())
    command = [sys.executable, *torchrun, "-m", "training", "autoencoder", "--folder", str(folder)]
    settings = ["--recipe", str(folder / "recipe.json"), "--save-every", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *settings], cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def test_a_killed_run_goes_on_to_the_same_bits(recipe, uninterrupted, tmp_path):
    place = Place(tmp_path, "autoencoder")
    deadline = time.monotonic() + 200
    with started(recipe, tmp_path) as process:
        while not (place.state.exists() and place.weights.exists()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    metadata = checkpoint.load_tensors(place.state)[1]
    assert f'"step": {STEPS}' not in metadata[checkpoint.STATE_KEY], "killed too late to show anything"
    with started(recipe, tmp_path) as process:
        finish(process)
    assert bits(tmp_path) == uninterrupted


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_in_parts_is_the_same_run(recipe, uninterrupted, tmp_path, stop):
    assert train(recipe, tmp_path, stop_after=stop).step == stop
    assert train(recipe, tmp_path).step == STEPS
    assert bits(tmp_path) == uninterrupted


def test_workers_change_nothing(recipe, uninterrupted, tmp_path):
    train(recipe, tmp_path, workers=1)
    assert bits(tmp_path) == uninterrupted


def test_a_finished_run_is_left_alone(recipe, uninterrupted, tmp_path):
    for name, content in uninterrupted.items():
        (tmp_path / name).write_bytes(content)
    assert train(recipe, tmp_path).step == STEPS
    assert bits(tmp_path) == uninterrupted


def test_a_kill_while_writing_leaves_the_old_state(monkeypatch, tmp_path):
    path = tmp_path / "some.safetensors"
    save_tensors(path, {"a": torch.zeros(3)}, {})

    def killed(*_):
        raise KeyboardInterrupt

    for moment in ("fsync", "replace"):
        monkeypatch.setattr(checkpoint.os, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            save_tensors(path, {"a": torch.ones(3)}, {})
        monkeypatch.undo()
        assert checkpoint.load_tensors(path)[0]["a"].sum() == 0
    save_tensors(path, {"a": torch.ones(3)}, {})
    assert checkpoint.load_tensors(path)[0]["a"].sum() == 3, "what the kill left behind is in nobody's way"


@pytest.mark.parametrize("moment", ["plot_losses", "save_state"])
def test_a_kill_between_the_files_of_the_last_step_is_made_good(recipe, uninterrupted, tmp_path, monkeypatch, moment):
    train(recipe, tmp_path, stop_after=STEPS - 1)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, moment, killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path)
    monkeypatch.undo()
    train(recipe, tmp_path)
    assert bits(tmp_path) == uninterrupted


def test_a_state_of_another_configuration_is_refused_with_the_difference(recipe, uninterrupted, tmp_path):
    for name, content in uninterrupted.items():
        (tmp_path / name).write_bytes(content)
    other = with_settings(recipe, ["autoencoder.optimisation.learning_rate=0.5", "seed=3"])
    with pytest.raises(CheckpointError) as caught:
        train(other, tmp_path)
    message = str(caught.value)
    assert "autoencoder.optimisation.learning_rate 0.002 in the file, 0.5 given" in message
    assert "seed 0 in the file, 3 given" in message
    assert "steps" not in message, "what is the same is not listed"


def test_settings_of_later_stages_do_not_concern_this_one(recipe, uninterrupted, tmp_path):
    for name, content in uninterrupted.items():
        (tmp_path / name).write_bytes(content)
    assert train(with_settings(recipe, ["video.optimisation.learning_rate=0.5"]), tmp_path).step == STEPS


def test_a_whole_number_is_the_same_with_and_without_a_point():
    assert differences_of({"alpha": 16, "rate": 0.5}, {"alpha": 16.0, "rate": 0.5}) == []


def test_differences_name_fields_of_either_side():
    found, given = {"a": {"b": (1, 2)}, "c": 1}, {"a": {"b": [1, 2]}, "d": 2}
    assert differences_of(found, given) == ["c 1 in the file, absent given", "d absent in the file, 2 given"]


@pytest.mark.parametrize("content", [b"", b"not a state", b"\xff" * 100])
def test_a_damaged_state_is_said_so(tmp_path, content):
    (tmp_path / "a.state.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(tmp_path / "a.state.safetensors", {})


def test_a_file_that_is_no_state_is_said_so(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="is no state of a training run"):
        load_state(tmp_path / "a.safetensors", {})


def test_a_state_comes_back_as_it_was(tmp_path):
    parts = {part: {"layer.weight": torch.randn(2, 3)} for part in ("weights", "average", "mean", "square")}
    state = State(step=7, configuration={"seed": 1}, losses=torch.rand(7, dtype=torch.float64), **parts)
    save_state(tmp_path / "s.safetensors", state)
    found = load_state(tmp_path / "s.safetensors", {"seed": 1})
    assert found.step == 7 and torch.equal(found.losses, state.losses)
    for part in parts:
        assert torch.equal(getattr(found, part)["layer.weight"], parts[part]["layer.weight"])


class Quadratic(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def forward(self, batch):
        return ((self.weight - batch["x"]) ** 2).mean()


class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, number):
        return {"x": torch.tensor([number, 1.0, float("nan") if number == 9 else 0.0])}


class Refusing(Numbers):
    def __getitem__(self, number):
        raise InputError("this clip is gone: put it back")


def quadratic_run(folder, optimisation) -> Run:
    parts = describe("quadratic", optimisation=optimisation)
    return Run(Quadratic(), Numbers(), optimisation, parts, Place(folder, "quadratic"), ALONE)


def test_accumulated_rounds_are_one_batch(tmp_path):
    found = []
    for accumulate in (1, 2, 4):
        chosen = Optimisation(steps=2, batch=4, accumulate=accumulate, clip_norm=1e9)
        run = quadratic_run(tmp_path / str(accumulate), chosen)
        run.train(Machine(), lambda run: None)
        found.append((run.objective.weight.detach().clone(), run.losses))
    for weight, losses in found[1:]:
        torch.testing.assert_close(weight, found[0][0])
        assert losses == pytest.approx(found[0][1])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = quadratic_run(tmp_path, Optimisation(steps=12, batch=1))
    with pytest.raises(StableVideoError, match="the loss of step 10 is nan: start in a new folder"):
        run.train(Machine(), lambda run: None)


def test_weights_that_the_last_step_ruins_are_not_saved(tmp_path):
    """No later loss would tell, so they would pass for a finished stage."""
    chosen = Optimisation(steps=4, batch=1, learning_rate=1.0, warmup=0)
    run = quadratic_run(tmp_path, chosen)
    descend = run._descend

    def ruined():
        descend()
        if run.step == 3:
            run.objective.weight.data[1] = float("inf")

    run._descend = ruined
    with pytest.raises(StableVideoError, match=r"weight of the stage quadratic is not finite after step 4: the state "):
        run.train(Machine(save_every=3), lambda run: pytest.fail("kept") if run.step == 4 else None)
    assert quadratic_run(tmp_path, chosen).step == 3


def test_a_result_that_is_not_finite_is_not_kept(tmp_path):
    kept = Kept({"a": torch.tensor([1.0, float("nan")])}, 1, 1, {})
    with pytest.raises(CheckpointError, match="a of the stage temporal is not finite"):
        save_kept(tmp_path, "temporal", kept)
    assert not list(tmp_path.iterdir())


def test_a_second_run_in_the_folder_is_refused(recipe, tmp_path):
    with held(tmp_path, "autoencoder"), held(tmp_path, "other"):
        with pytest.raises(InputError, match=r"another run trains the stage autoencoder in .*: wait for it"):
            train(recipe, tmp_path)
        assert not bits(tmp_path)
    assert train(recipe, tmp_path, stop_after=1).step == 1, "the lock ended with its holder"


def test_the_lock_is_held_from_the_reading_of_the_state_to_the_last_saving(recipe, tmp_path, monkeypatch):
    """A second run that read the state before the first one saved would go on from too early a step."""
    entered, calls = [], []

    def once(*given):
        entered.append(given)
        return held(*given)

    for name in ("load_state", "plot_losses", "save_state"):
        called = getattr(loop, name)

        def refused_meanwhile(*given, name=name, called=called):
            with pytest.raises(InputError, match="another run trains"), held(tmp_path, "autoencoder"):
                pass
            calls.append(name)
            return called(*given)

        monkeypatch.setattr(loop, name, refused_meanwhile)
    monkeypatch.setattr(loop, "held", once)
    train(recipe, tmp_path, stop_after=1)
    assert calls == ["load_state", "plot_losses", "save_state"]
    assert entered == [(tmp_path, "autoencoder")]


def test_a_file_system_without_locks_is_borne(recipe, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    assert train(recipe, tmp_path, stop_after=1).step == 1


def test_a_folder_that_cannot_be_written_is_said_before_the_first_step(recipe, tmp_path, monkeypatch):
    def refused(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Run, "train", lambda *_: pytest.fail("steps were made"))
    monkeypatch.setattr(lock.tempfile, "TemporaryFile", refused)
    with pytest.raises(OutputError, match=r"cannot be written .Read-only file system.: choose another folder"):
        train(recipe, tmp_path)


def test_an_interrupt_says_from_where_the_run_goes_on(tmp_path):
    run = quadratic_run(tmp_path, Optimisation(steps=12, batch=1))
    update = run._update

    def interrupted(batches):
        if run.step == 5:
            raise KeyboardInterrupt
        return update(batches)

    run._update = interrupted
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from step 4, the last one saved"):
        run.train(Machine(save_every=2), lambda run: None)


def test_what_a_worker_refuses_is_one_line(tmp_path):
    run = quadratic_run(tmp_path, Optimisation(steps=2, batch=1))
    run.samples = Refusing()
    with pytest.raises(InputError, match=r"^this clip is gone: put it back$"):
        run.train(Machine(workers=1), lambda run: None)


def test_a_folder_that_cannot_be_made_is_said_before_the_first_step(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "train", lambda *_: pytest.fail("steps were made"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        train(recipe, tmp_path / "file")


def test_averaged_weights_are_lent_and_taken_back(tmp_path):
    run = quadratic_run(tmp_path, Optimisation(steps=5, batch=1, ema=0.5))
    run.train(Machine(), lambda run: None)
    own = run.objective.weight.detach().clone()
    with run.averaged() as objective:
        assert torch.equal(objective.weight, run.average["weight"])
        assert not torch.equal(objective.weight, own)
    assert torch.equal(run.objective.weight, own)


def test_the_learning_rate_rises_and_falls():
    chosen = Optimisation(steps=110, batch=1, learning_rate=1.0, warmup=10)
    assert [learning_rate(chosen, step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(chosen, 60) == pytest.approx(0.5) and learning_rate(chosen, 109) < 0.001
    assert learning_rate(dataclasses.replace(chosen, decay="constant"), 109) == 1.0


def test_processes_and_rounds_share_a_batch_without_gaps():
    chosen = Optimisation(steps=1, batch=8, accumulate=2)
    groups = [Group(rank, 2, torch.device("cpu")) for rank in range(2)]
    shares = [share(chosen, group, 3, number) for number in range(2) for group in groups]
    assert [index for part in shares for index in part] == list(range(24, 32))


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    chosen = Optimisation(steps=1, batch=3)
    with pytest.raises(InputError, match="a batch of 3 cannot be divided among 2 processes"):
        Run(Quadratic(), Numbers(), chosen, {}, Place(tmp_path, "q"), Group(0, 2, torch.device("cpu")))


def test_two_processes_have_the_gradient_of_one_with_the_whole_batch(tiny, tmp_path):
    one_step = ["autoencoder.optimisation.steps=1", "autoencoder.optimisation.clip_norm=1e9"]
    recipe = with_settings(tiny, one_step)
    (tmp_path / "two").mkdir()
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    with started(recipe, tmp_path / "two", *torchrun) as process:
        alone = train(recipe, tmp_path / "one")
        finish(process)
    both = checkpoint.load_tensors(Place(tmp_path / "two", "autoencoder").state)[0]
    # After one step AdamW's running mean is a tenth of the gradient.
    gradients = {name: mean / 0.1 for name, mean in alone.state().mean.items()}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    assert len(gradients) > 120 and largest > 0
    for name, gradient in gradients.items():
        torch.testing.assert_close(both[f"mean/{name}"] / 0.1, gradient, rtol=1e-3, atol=1e-6 * float(largest))
    torch.testing.assert_close(both["losses"], torch.tensor(alone.losses, dtype=torch.float64))


def test_a_place_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        save_tensors(tmp_path / "file" / "x.safetensors", {"a": torch.zeros(1)}, {})
