"""A run that goes on from an exported model: its weights, its first two stages, and its history in the next export."""

import json

import pytest
import torch

from svd_core.checkpoint import open_checkpoint
from svd_core.errors import CheckpointError, InputError, OutputError
from training import begin
from training.begin import begin_from
from training.checkpoint import load_tensors, save_tensors
from training.cli import main
from training.data import open_source
from training.distributed import ALONE
from training.export import RECIPE_KEY, STAGES_KEY, export, export_frame_decoder
from training.lock import held
from training.loop import Machine
from training.recipe import Recipe, with_settings
from training.stages import STAGES, read_kept, train_video
from training.start import START_KEY, read_start


@pytest.fixture(scope="module")
def recipe(tiny) -> Recipe:
    return with_settings(tiny, ["video.optimisation.steps=12"])


@pytest.fixture(scope="module")
def exported(recipe, tmp_path_factory):
    """(model, frame decoder) of a run from random weights, and that run's folder."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("first")
    for train in STAGES.values():
        train(recipe, open_source(recipe.data, recipe.seed, pytest.fail), folder, Machine(), ALONE)
    model = export(recipe, folder, folder / "exported" / "model.safetensors")
    return model, export_frame_decoder(folder, model.with_name("frame_decoder.safetensors")), folder


def go_on(recipe, folder):
    return train_video(recipe, open_source(recipe.data, recipe.seed, pytest.fail), folder, Machine(), ALONE)


def test_the_weights_are_those_of_the_file(recipe, exported, tmp_path):
    model, decoder, first = exported
    begin_from(model, decoder, recipe, tmp_path)
    start = read_start(tmp_path)
    for name, tensor in read_kept(first, "video").weights.items():
        assert torch.equal(start.weights[name], tensor.half().float()), name
    for stage in ("autoencoder", "temporal"):
        before, after = (read_kept(each, stage) for each in (first, tmp_path))
        assert (before.step, before.steps) == (after.step, after.steps)
        for name, tensor in before.weights.items():
            if stage == "temporal" or not name.startswith("post_quant_conv"):
                assert torch.equal(after.weights[name], tensor.half().float()), name


def test_the_video_stage_starts_from_them_and_the_next_export_says_so(recipe, exported, tmp_path):
    model, decoder, _ = exported
    short = with_settings(recipe, ["video.optimisation.steps=1", "video.optimisation.learning_rate=1e-9"])
    begin_from(model, decoder, short, tmp_path)
    go_on(short, tmp_path)
    start = read_start(tmp_path).weights
    for name, tensor in read_kept(tmp_path, "video").weights.items():
        assert torch.allclose(tensor, start[name], atol=1e-6), name
    _, before = load_tensors(model)
    _, after = load_tensors(export(short, tmp_path, tmp_path / "out" / "model.safetensors"))
    history = json.loads(after[START_KEY])
    assert history == {"recipe": json.loads(before[RECIPE_KEY]), "stages": json.loads(before[STAGES_KEY])}
    assert START_KEY not in before


def test_a_third_run_keeps_the_whole_history(recipe, exported, tmp_path):
    model, decoder, _ = exported
    begin_from(model, decoder, recipe, tmp_path / "second")
    go_on(recipe, tmp_path / "second")
    again = export(recipe, tmp_path / "second", tmp_path / "again.safetensors")
    begin_from(again, decoder, recipe, tmp_path / "third")
    assert "start" in read_start(tmp_path / "third").history
    assert "start" not in read_start(tmp_path / "second").history


def test_a_run_from_random_weights_does_not_go_on_as_a_begun_one(recipe, exported, tmp_path):
    model, decoder, _ = exported
    begin_from(model, decoder, recipe, tmp_path)
    go_on(recipe, tmp_path)
    (tmp_path / "start.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"start .* in the file, absent given"):
        go_on(recipe, tmp_path)


@pytest.mark.parametrize("setting", ["seed=5", "autoencoder.squared=3.0", "temporal.frames=2"])
def test_other_first_stages_are_refused(recipe, exported, tmp_path, setting):
    with pytest.raises(CheckpointError, match=setting.split("=")[0]):
        begin_from(*exported[:2], with_settings(recipe, [setting]), tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_video_stage_may_have_other_clips(recipe, exported, tmp_path):
    """Longer and larger ones, of the world in place of a folder."""
    size = ["data.frames=4", "data.width=64", "data.height=48"]
    stated = ["model.variant.frames=4", "model.variant.width=64", "model.variant.height=48"]
    other = with_settings(recipe, [*size, *stated, "data.clips=null", "data.fps=[7]", "video.optimisation.steps=1"])
    begin_from(*exported[:2], other, tmp_path / "run")
    assert go_on(other, tmp_path / "run").step == 1
    path = export(other, tmp_path / "run", tmp_path / "model.safetensors")
    _, metadata = load_tensors(path)
    assert json.loads(metadata[RECIPE_KEY])["data"]["clips"] is None
    assert json.loads(metadata[START_KEY])["recipe"]["data"]["clips"] == recipe.data.clips
    assert open_checkpoint(path).config.variant == other.model.variant


def test_what_a_full_disk_leaves_does_not_train_from_random_weights(recipe, exported, tmp_path, monkeypatch):
    def full(*_):
        raise OutputError("no space")

    model, decoder, _ = exported
    words = {
        "save_start": "does not exist: run python -m training autoencoder",
        "save_kept": "begin was stopped: remove",
    }
    for name, said in words.items():
        folder = tmp_path / name
        monkeypatch.setattr(begin, name, full)
        with pytest.raises(OutputError):
            begin_from(model, decoder, recipe, folder)
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match=said):
            go_on(recipe, folder)
    with pytest.raises(CheckpointError, match="was begun from a trained model, whose autoencoder it keeps"):
        STAGES["autoencoder"](recipe, open_source(recipe.data, recipe.seed, pytest.fail), folder, Machine(), ALONE)


def test_other_files_and_folders_in_use_are_refused(recipe, exported, tmp_path):
    model, decoder, first = exported
    with pytest.raises(InputError, match="holds a run already"):
        begin_from(model, decoder, recipe, first)
    with pytest.raises(CheckpointError, match="was not written by training"):
        begin_from(decoder, decoder, recipe, tmp_path)
    save_tensors(tmp_path / "other" / "decoder.safetensors", {"decoder.conv_in.weight": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="lack a fitting decoder"):
        begin_from(model, tmp_path / "other" / "decoder.safetensors", recipe, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_begins_in_the_folder_meanwhile_is_left_alone(recipe, exported, tmp_path, monkeypatch):
    model, decoder, _ = exported
    with held(tmp_path, "autoencoder"), pytest.raises(InputError, match="another run trains the stage autoencoder"):
        begin_from(model, decoder, recipe, tmp_path)

    def slow(*given):
        save_tensors(tmp_path / "autoencoder.safetensors", {"a": torch.zeros(1)}, {})
        return load_tensors(*given)

    monkeypatch.setattr(begin, "load_tensors", slow)
    with pytest.raises(InputError, match="holds a run already"):
        begin_from(model, decoder, recipe, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["autoencoder.safetensors"]


def test_the_command_says_how_to_go_on(recipe, exported, tmp_path, capsys):
    model, decoder, _ = exported
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    command = ["begin", "--checkpoint", str(model), "--frame-decoder", str(decoder)]
    folder = tmp_path / "run"
    assert main([*command, "--recipe", str(tmp_path / "recipe.json"), "--folder", str(folder)]) == 0
    assert f"python -m training video --folder {folder}" in capsys.readouterr().out
    assert main([*command, "--recipe", str(tmp_path / "recipe.json"), "--folder", str(folder)]) == 2
    assert "holds a run already" in capsys.readouterr().err
