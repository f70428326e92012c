"""All stages on a model of seconds: each lowers its loss, and what comes out is a model that animates."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

import svd_core
from svd_core.checkpoint import open_checkpoint
from svd_core.errors import CheckpointError, InputError, OutputError
from training import cli, stages
from training.autoencoder import ImageObjective, image_config
from training.cli import main
from training.data import open_source
from training.distributed import ALONE
from training.export import MEBIBYTE, export, official_tensors
from training.initialise import new_clip_vision, new_unet, new_vae
from training.lock import held
from training.loop import Machine, Place, Run, contiguous_norms
from training.plot import SIZE, plot_losses, running_mean
from training.randomness import generator_for
from training.recipe import DEMO, Noise, Recipe, read_recipe, with_settings
from training.stages import STAGES, read_kept, temporal_is, train_temporal, train_video, video_is
from training.video import CachedSamples

STEPS = {"autoencoder": 30, "temporal": 16, "video": 40}


@pytest.fixture(scope="module")
def recipe(tiny) -> Recipe:
    settings = [f"{stage}.optimisation.steps={steps}" for stage, steps in STEPS.items()]
    return with_settings(tiny, [*settings, "video.cached_clips=4", "video.noise.p_mean=0"])


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    """(folder, losses of each stage)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    source = open_source(recipe.data, recipe.seed, pytest.fail)
    runs = {name: train(recipe, source, folder, Machine(), ALONE) for name, train in STAGES.items()}
    return folder, {name: run.losses for name, run in runs.items()}


AUTOENCODER = "autoencoder.safetensors"


def go_on_from(trained, folder, *names):
    """Link what a run left under these names into another folder."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).symlink_to(trained[0] / name)


@pytest.mark.parametrize(("stage", "factor"), [("autoencoder", 0.4), ("temporal", 0.7), ("video", 0.85)])
def test_each_stage_lowers_its_loss(trained, stage, factor):
    losses = trained[1][stage]
    assert len(losses) == STEPS[stage]
    window = max(5, len(losses) // 4)
    assert np.mean(losses[-window:]) < factor * np.mean(losses[:window])


def test_the_curve_is_a_picture(trained):
    for stage in STAGES:
        with Image.open(Place(trained[0], stage).curve) as picture:
            assert picture.size == SIZE and picture.format == "PNG"
            assert len(picture.convert("RGB").getcolors(SIZE[0] * SIZE[1])) > 4


def test_the_export_loads_and_animates(recipe, trained, tmp_path):
    path = export(recipe, trained[0], tmp_path / "tiny.safetensors")
    svd = svd_core.load_checkpoint(path)
    assert svd.config == recipe.model
    picture = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    frames = svd.animate(picture, seed=1)
    assert frames.shape == (3, 64, 64, 3) and np.isfinite(frames).all()
    assert np.array_equal(frames, svd.animate(picture, seed=1))
    assert not np.array_equal(frames, svd.animate(picture, seed=2))


def test_the_export_holds_the_averaged_weights_in_half_and_no_more(recipe, trained, tmp_path):
    path = export(recipe, trained[0], tmp_path / "tiny.safetensors")
    kept = open_checkpoint(path)
    video, _ = _tensors(Place(trained[0], "video").weights)
    temporal, _ = _tensors(Place(trained[0], "temporal").weights)
    for weights, own, prefix in ((kept.unet_weights(), video, "unet."), (kept.vae_weights(), temporal, "")):
        for name, tensor in weights.items():
            assert torch.equal(tensor, own[prefix + name].half()), name
    stored, metadata = _tensors(path)
    assert len(stored) == sum(map(len, (kept.unet_weights(), kept.vae_weights(), kept.clip_vision_weights())))
    assert metadata["license"] == "MIT"
    assert json.loads(metadata["training.recipe"])["name"] == "tiny"
    assert json.loads(metadata["training.stages"]) == {"temporal": "step 16 of 16", "video": "step 40 of 40"}


def _tensors(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_an_export_over_the_limit_is_refused_and_leaves_nothing(recipe, trained, tmp_path):
    path = tmp_path / "tiny.safetensors"
    size = export(recipe, trained[0], path).stat().st_size
    path.unlink()
    with pytest.raises(OutputError, match=r"needs \d+\.\d MiB, at most"):
        export(recipe, trained[0], path, limit=size - 1)
    assert not path.exists()


def test_the_limit_is_judged_by_no_less_than_the_file(recipe, trained, tmp_path):
    path = tmp_path / "tiny.safetensors"
    size = export(recipe, trained[0], path).stat().st_size
    for limit in range(size, size + 400_000, 20_000):
        try:
            export(recipe, trained[0], path, limit=limit)
        except OutputError:
            continue
        assert limit - size < 200_000, "the estimate of the header is far too large"
        return
    pytest.fail("the estimate of the header is far too large")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.unet.model_channels=64", "unet.model_channels 32 in the file, 64 given"),
        ("model.unet.head_channels=8", "unet.head_channels 16 in the file, 8 given"),
        ("video.optimisation.steps=999", "video.optimisation.steps 40 in the file, 999 given"),
        ("seed=77", "seed 0 in the file, 77 given"),
    ],
)
def test_another_recipe_cannot_export_this_run(recipe, trained, tmp_path, setting, words):
    """Shapes would not show most of them, and the file would say that it was made by that recipe."""
    with pytest.raises(CheckpointError, match=f"is from another configuration .*{words}"):
        export(with_settings(recipe, [setting]), trained[0], tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_tensors_of_another_model_are_refused(recipe, trained):
    other = with_settings(recipe, ["model.unet.model_channels=64"])
    weights = [read_kept(trained[0], stage).weights for stage in ("temporal", "video")]
    with pytest.raises(CheckpointError, match="do not fit the recipe's model"):
        official_tensors(other.model, *weights)


def test_later_stages_need_a_finished_autoencoder(recipe, trained, tmp_path):
    source = open_source(recipe.data, recipe.seed, pytest.fail)
    with pytest.raises(CheckpointError, match="does not exist: run python -m training autoencoder"):
        train_temporal(recipe, source, tmp_path, Machine(), ALONE)
    STAGES["autoencoder"](recipe, source, tmp_path, Machine(stop_after=1), ALONE)
    with pytest.raises(CheckpointError, match="is at step 1 of 30: go on with"):
        train_video(recipe, source, tmp_path, Machine(), ALONE)
    other = with_settings(recipe, ["autoencoder.kl=0.5"])
    with pytest.raises(CheckpointError, match=r"autoencoder.kl 0.0001 in the file, 0.5 given"):
        train_video(other, source, trained[0], Machine(), ALONE)


def test_encoded_clips_of_another_autoencoder_are_refused(recipe, trained, tmp_path):
    source = open_source(recipe.data, recipe.seed, pytest.fail)
    other = with_settings(recipe, ["seed=8", "autoencoder.optimisation.steps=1"])
    STAGES["autoencoder"](other, source, tmp_path, Machine(), ALONE)
    go_on_from(trained, tmp_path, "latents")
    with pytest.raises(CheckpointError, match=r"was encoded from other clips, .* or by another autoencoder: remove"):
        train_video(other, source, tmp_path, Machine(), ALONE)


def test_another_recipe_for_a_begun_run_is_refused_before_clips_are_encoded(recipe, trained, monkeypatch):
    monkeypatch.setattr("training.stages.cached_shards", lambda *_: pytest.fail("clips were encoded"))
    other = with_settings(recipe, ["video.noise.posterior=sample"])
    with pytest.raises(CheckpointError, match=r"video\.state\.safetensors is from another configuration .*posterior"):
        train_video(other, open_source(recipe.data, recipe.seed, pytest.fail), trained[0], Machine(), ALONE)


def test_encoded_clips_of_another_number_are_refused(recipe, trained, tmp_path):
    go_on_from(trained, tmp_path, AUTOENCODER, "latents")
    more = with_settings(recipe, ["video.cached_clips=5"])
    with pytest.raises(CheckpointError, match=r"0000.safetensors was encoded from .* another number of them"):
        train_video(more, open_source(recipe.data, recipe.seed, pytest.fail), tmp_path, Machine(), ALONE)


def test_samples_of_the_posterior_are_trained_on_and_drawn_again_when_resumed(recipe, trained, tmp_path):
    sampled = with_settings(recipe, ["video.noise.posterior=sample", "video.optimisation.steps=4"])
    source = open_source(recipe.data, recipe.seed, pytest.fail)
    for name, stops in (("whole", [None]), ("parts", [2, None])):
        go_on_from(trained, tmp_path / name, AUTOENCODER)
        for stop in stops:
            train_video(sampled, source, tmp_path / name, Machine(stop_after=stop), ALONE)
    whole, parts = (_tensors(Place(tmp_path / name, "video").state) for name in ("whole", "parts"))
    assert whole[0].keys() == parts[0].keys()
    assert all(torch.equal(tensor, parts[0][name]) for name, tensor in whole[0].items())
    assert '"posterior": "sample"' in whole[1]["training.state"]
    shard, _ = _tensors(tmp_path / "whole" / "latents" / "0000.safetensors")
    assert shard["log_variance"].shape == shard["latents"].shape and shard["log_variance"].dtype == torch.float16


def test_encoded_clips_without_a_variance_are_refused_where_samples_are_wanted(recipe, trained, tmp_path):
    go_on_from(trained, tmp_path, AUTOENCODER, "latents")
    sampled = with_settings(recipe, ["video.noise.posterior=sample"])
    with pytest.raises(CheckpointError, match=r"0000.safetensors was encoded from .* for another posterior .*: remove"):
        train_video(sampled, open_source(recipe.data, recipe.seed, pytest.fail), tmp_path, Machine(), ALONE)


def test_runs_on_the_mean_are_described_as_before_there_was_a_choice(recipe, trained):
    """So that older ones, and their encoded clips, go on."""
    described = read_kept(trained[0], "video").configuration
    assert described["video"]["noise"] == {
        name: value for name, value in dataclasses.asdict(recipe.video.noise).items() if name != "posterior"
    }


def test_a_second_video_run_is_refused_before_it_encodes(recipe, trained, tmp_path):
    go_on_from(trained, tmp_path, AUTOENCODER)
    source = open_source(recipe.data, recipe.seed, pytest.fail)
    with held(tmp_path, "video"), pytest.raises(InputError, match=r"another run trains the stage video in .*: wait"):
        train_video(recipe, source, tmp_path, Machine(), ALONE)
    assert not (tmp_path / "latents").exists()


def test_no_video_run_slips_in_between_encoding_and_training(recipe, trained, tmp_path, monkeypatch):
    go_on_from(trained, tmp_path, AUTOENCODER)
    source = open_source(recipe.data, recipe.seed, pytest.fail)
    moments = []

    def slip_in(called, name):
        def refused(*given):
            with pytest.raises(InputError, match="another run trains the stage video"):
                train_video(recipe, source, tmp_path, Machine(), ALONE)
            moments.append(name)
            return called(*given)

        return refused

    for name in ("check_state", "cached_shards", "CachedSamples"):
        monkeypatch.setattr(stages, name, slip_in(getattr(stages, name), name))
    monkeypatch.setattr(Run, "train", slip_in(Run.train, "train"))
    assert train_video(recipe, source, tmp_path, Machine(stop_after=1), ALONE).step == 1
    assert moments == ["check_state", "cached_shards", "CachedSamples", "train"]


def test_a_run_whose_recipe_stated_other_clips_is_exported_by_the_one_put_right(recipe, tmp_path):
    """From before that was refused: no stage depends on what `model.variant` states."""
    stated = dataclasses.replace(recipe.model.variant, frames=9)
    old = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, variant=stated))
    (tmp_path / "recipe.json").write_text(old.to_json())
    with pytest.raises(InputError, match=r"model.variant.frames is 9: needed data.frames 3"):
        read_recipe(tmp_path / "recipe.json")
    assert temporal_is(old, "digest") == temporal_is(recipe, "digest")
    assert video_is(old, "digest", None) == video_is(recipe, "digest", None)


def test_every_encoded_clip_is_drawn_as_often():
    """Those of a last, short shard, too."""
    samples = CachedSamples([{"latents": torch.zeros(50)}, {"latents": torch.zeros(10)}], Noise(), 48, seed=0)
    drawn = [samples._drawn(generator_for(0, "cached", number)) for number in range(3000)]
    last = sum(len(shard["latents"]) == 10 for shard, _ in drawn) / len(drawn)
    assert 10 / 60 - 0.03 < last < 10 / 60 + 0.03
    assert {place for shard, place in drawn if len(shard["latents"]) == 10} == set(range(10))


def test_clips_drawn_anew_train_too(recipe, trained, tmp_path):
    go_on_from(trained, tmp_path, AUTOENCODER)
    source = open_source(recipe.data, recipe.seed, pytest.fail)
    fresh = with_settings(
        recipe, ["video.cached_clips=0", "video.optimisation.steps=2", "video.optimisation.bf16=true"]
    )
    run = train_video(fresh, source, tmp_path, Machine(), ALONE)
    assert run.step == 2 and all(np.isfinite(run.losses))


def test_the_demo_model_fits_in_the_pack():
    make = torch.Generator().manual_seed(0)
    model = DEMO.model
    networks = (new_unet(model.unet, make), new_vae(model.vae, make), new_clip_vision(model.clip_vision, make))
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert counts == [5_771_923, 1_701_299, 369_888]
    assert 2 * sum(counts) < 15 * MEBIBYTE, "the rest of 16 MiB is for names and metadata"
    assert model.variant.frames == DEMO.data.frames == 14


def test_a_recipe_is_its_json(tmp_path):
    (tmp_path / "recipe.json").write_text(DEMO.to_json())
    assert read_recipe(tmp_path / "recipe.json") == DEMO


def test_settings_change_single_values():
    changed = with_settings(DEMO, ["video.optimisation.steps=7", "data.clips=some/folder", "data.fps=[7]"])
    assert changed.video.optimisation.steps == 7
    assert changed.data.clips == "some/folder" and changed.data.fps == (7,)
    assert changed.model == DEMO.model


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps", "is no setting: give field=value"),
        ("video.step=3", "the recipe has no field 'video.step'"),
        ("video.optimisation.steps.x=3", "the recipe has no field"),
        ("video.optimisation.steps=many", "recipe.video.optimisation.steps is 'many'"),
        ("video.optimisation.steps=0", "video.optimisation.steps is 0: needed at least 1"),
        ("data.width=100", "data.width is 100: needed a multiple of 8"),
        ("temporal.frames=15", "temporal.frames is 15: needed 1 to data.frames 14"),
        ("video.optimisation.accumulate=3", "video.optimisation.batch is 4: needed a multiple of accumulate"),
        ("video.optimisation.ema=1.0", "video.optimisation.ema is 1.0"),
        ("video.optimisation.weight_decay=-1", "video.optimisation.weight_decay is -1"),
        ("video.cached_clips=-5", "video.cached_clips is -5: needed at least 0"),
        ("model.unet.context_dim=40", "model.unet.context_dim is 40: needed the image encoder's 96"),
        ("data.fps=[]", "data.fps is ()"),
        ("data.motion_buckets=[9, 3]", "data.motion_buckets is (9, 3)"),
        ("data.motion_buckets=[0, 3000]", "data.motion_buckets is (0, 3000): needed a low and a high bucket of 0 to"),
        ("data.fps=[2000]", "data.fps is (2000,): needed speeds of 1 to 1024"),
        ("data.frames=13", "model.variant.frames is 14: needed data.frames 13"),
        ("data.width=256", "model.variant's size is 128x64: needed data's 256x64"),
        ("model.unet.vector_dim=50", "model.unet.vector_dim is 50: needed a multiple of 3"),
        ("model.unet.in_channels=9", "model.unet.in_channels is 9: needed 8"),
        ("model.unet.out_channels=3", "model.unet.out_channels is 3: needed 4"),
        ("model.unet.model_channels=48", "model.unet.model_channels is 48: needed a multiple of 32"),
        ("model.unet.head_channels=24", "model.unet.head_channels is 24: needed a divisor of the width 64"),
        ("model.unet.attention=[true]", "model.unet.attention is (True,): needed one for each of 3 levels"),
        ("model.clip_vision.head_channels=36", "model.clip_vision.head_channels is 36: needed a divisor of the width"),
        ("model.clip_vision.image_size=60", "model.clip_vision.image_size is 60: needed a multiple of its patch 8"),
        ("model.vae.channels=48", "model.vae.channels is 48: needed a multiple of 32"),
        ("model.vae.channel_mult=[1,1,1]", "model.vae.channel_mult is (1, 1, 1): needed 4 numbers"),
        ("model.vae.latent_channels=8", "model.vae.latent_channels is 8: needed 4"),
        ("video.noise.drop_context=7", "video.noise.drop_context is 7.0: needed a share from 0 to 1"),
        ("video.noise.posterior=median", "recipe.video.noise.posterior is 'median': needed one of mean, sample"),
        ("video.noise.p_std=-1", "video.noise.p_std is -1.0: needed at least 0"),
        ("video.noise.augmentation_mean=4", "video.noise.augmentation_mean is 4.0: needed at most -0.70"),
        ("autoencoder.optimisation.warmup=-5", "autoencoder.optimisation.warmup is -5: needed at least 0"),
    ],
)
def test_settings_that_cannot_work_are_named(setting, message):
    with pytest.raises(InputError) as caught:
        with_settings(DEMO, [setting])
    assert message in str(caught.value)


def test_the_command_line_trains_and_exports(recipe, tmp_path, capsys):
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    short = [f"--set={stage}.optimisation.steps=2" for stage in STEPS]
    common = ["--folder", str(tmp_path / "run"), "--recipe", str(tmp_path / "recipe.json"), *short]
    for stage in STEPS:
        assert main([stage, *common]) == 0, capsys.readouterr().err
    assert main(["export", *common, "--output", str(tmp_path / "out.safetensors")]) == 0
    assert "video.safetensors: step 2 of 2, loss " in (printed := capsys.readouterr().out)
    assert "out.safetensors: " in printed and "MiB" in printed
    svd_core.load_checkpoint(tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["video"], "--folder"),
        (["video", "--folder", "x", "--recipe", "nowhere.json"], "recipe nowhere.json cannot be read"),
        (["video", "--folder", "x", "--set", "data.clips=nowhere"], "clips nowhere is not a folder"),
        (["autoencoder", "--folder", "x", "--device", "abacus"], "device 'abacus' is not known"),
        (["autoencoder", "--folder", "x", "--device", "meta"], "device 'meta' is not one that training runs on"),
        (["export", "--folder", "x", "--output", "y", "--limit", "nan"], "limit nan is no size: give MiB"),
        (["autoencoder", "--folder", "x", "--save-every", "0"], "save every 0 is less than 1"),
        (["lora", "--checkpoint", "x", "--clips", "y", "--folder", "z", "--rank", "0"], "rank 0 is not above 0"),
        (["video", "--fold", "x"], "the following arguments are required: --folder"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_code_2(argv, message, capsys):
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said


def test_a_folder_whose_name_stdout_cannot_spell_is_printed_all_the_same(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(cli, "begin_from", lambda *_: None)
    assert main(["begin", "--folder", "ordner-\u6f22"]) == 0
    stdout.flush()
    assert stdout.buffer.getvalue().startswith(b"ordner-\\u6f22: go on with")


def test_the_recipe_is_printed(capsys):
    assert main(["recipe", "--set", "seed=5"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 5


def test_the_running_mean_looks_back_over_a_fiftieth():
    values = np.arange(100.0)
    assert running_mean(values)[[0, 1, 50]].tolist() == [0.0, 0.5, 49.5]


@pytest.mark.parametrize("losses", [[0.5], [1.0, 1.0], [3.0, 0.0, 2.0], list(np.geomspace(1, 1e-6, 500))])
def test_any_losses_can_be_drawn(tmp_path, losses):
    plot_losses(losses, tmp_path / "curve.png", "some")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert len(list(tmp_path.iterdir())) == 1


def test_contiguous_norms_change_speed_and_nothing_else():
    stage = DEMO.autoencoder
    pixels = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    batch = {"pixels": pixels, "noise": torch.zeros(2, 1, 4, 4, 4)}
    gradients = []
    for prepare in (lambda objective: objective, lambda objective: contiguous_norms(objective, torch.device("cpu"))):
        vae = new_vae(image_config(DEMO.model.vae), torch.Generator().manual_seed(0))
        objective = prepare(ImageObjective(vae, stage))
        objective(batch).backward()
        gradients.append(torch.cat([each.grad.flatten() for each in vae.parameters()]))
    plain, contiguous = gradients
    assert (plain - contiguous).norm() < 1e-4 * plain.norm()  # the sign of an absolute error flips on rounding
    unchanged = contiguous_norms(nn.GroupNorm(2, 4), torch.device("meta"))
    assert not unchanged._forward_pre_hooks, "only the CPU's backward pass is slow on channels last"
