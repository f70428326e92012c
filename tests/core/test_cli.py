"""The command line as its user meets it: files appear whole or not at all, and every refusal is one line."""

import ast
import errno
import fcntl
import io
import json
import os
import pty
import random
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import time
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import a_recipe
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from synthetic import TINY, write_checkpoint

import svd_core
from svd_core import __version__, shot
from svd_core.cli import advice, commands, interrupts, latents, main, render
from svd_core.cli.progress import Bars
from svd_core.clip import Clip, Progress
from svd_core.demo import DEMO_MODEL, DEMO_NOTE
from svd_core.errors import InputError
from svd_core.loading import load_checkpoint
from svd_core.media import fit_image, load_image, read_recipe, write_clip
from svd_core.media.metadata import TEXT_KEY
from svd_core.recipe import Source
from svd_core.sampling import sigmas_for
from svd_core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = "interrupted: no file is left half-written"


@cache
def checkpoint_bytes():
    with tempfile.TemporaryDirectory() as folder:
        return write_checkpoint(Path(folder) / "tiny.safetensors").read_bytes()


def scene(folder):
    """A picture and a checkpoint in a folder: what every rendering needs."""
    across = np.linspace(0, 255, 150)[None, :, None]
    picture = np.broadcast_to(across, (100, 150, 3)).astype(np.uint8)
    Image.fromarray(picture).save(folder / "still.png")
    (folder / "tiny.safetensors").write_bytes(checkpoint_bytes())
    return folder


def animate(folder, output, *flags):
    places = ("--checkpoint", f"{folder}/tiny.safetensors", "--output", f"{folder}/{output}", "--device", "cpu")
    return main(["animate", f"{folder}/still.png", *places, *flags])


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def refusal(capsys, argv):
    """The one line on stderr that a refused command leaves."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", captured.err)
    return captured.err


class Recorder:
    """Stands where a model would, and keeps what it is asked to render."""

    def __init__(self):
        self.opened = self.image = self.settings = self.limits = self.threads = None
        self.config = TINY
        self.variant_note = "variant svd is assumed: --variant svd_xt chooses the other"

    def open(self, path, **options):
        self.opened = (path, options)
        self.variant_note = "" if options["variant"] else self.variant_note
        return self

    def render_shot(self, shot, *, callback, **limits):
        self.image, self.settings, self.limits = shot.picture, shot.settings, limits
        self.threads = torch.get_num_threads()
        callback(Progress("sample", 1, 1))
        return Clip(np.zeros((2, 64, 64, 3), np.float32), torch.zeros(2, 4, 8, 8), shot.settings, (700.0, 0.0), "kept")


def recorded(monkeypatch, folder, *flags):
    recorder = Recorder()
    monkeypatch.setattr(render, "load_checkpoint", recorder.open)
    if not (folder / "still.png").exists():
        Image.new("RGB", (64, 64)).save(folder / "still.png")
    (folder / "tiny.safetensors").write_bytes(checkpoint_bytes())
    assert animate(folder, "clip/", "--no-watermark", *flags) == 0
    return recorder


# Rendering


def test_animate_writes_what_the_pipeline_renders(tmp_path, capsys):
    scene(tmp_path)
    assert animate(tmp_path, "clip/", "--seed", "3", "--size", "100x70", "--motion-bucket", "40") == 0
    svd = load_checkpoint(tmp_path / "tiny.safetensors")
    expected = svd.animate(
        load_image(tmp_path / "still.png"), seed=3, width=128, height=64, motion_bucket=40, chunk=TINY.variant.frames
    )
    found = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "clip").iterdir())])
    np.testing.assert_array_equal(found, np.rint(expected * 255))

    out, err = capsys.readouterr()
    fitted, done = out.splitlines()
    assert re.fullmatch(r"note: frames of 128x64 are too small for a watermark[^\n]*\n", err), "trained on 128x64"
    asked = r" \(100x70 was asked for; sides are multiples of 64\)"
    assert re.fullmatch(rf".*/still\.png: 150x100 cropped to 128x64, 25 % of the height lost{asked}", fitted)
    assert re.fullmatch(r".*/clip: 128x64, 3 frames, \d+\.\d s", done)


def test_a_picture_is_fitted_once(tmp_path, monkeypatch):
    scene(tmp_path)
    fitted = []
    monkeypatch.setattr(shot, "fit_image", lambda *given: fitted.append(given) or fit_image(*given))
    assert animate(tmp_path, "clip.gif") == 0
    assert len(fitted) == 1


def test_a_recipe_holds_everything_that_decided_the_clip(tmp_path):
    scene(tmp_path)
    assert animate(tmp_path, "clip.webp", "--seed", "5", "--playback-fps", "12", "--fit", "pad") == 0
    recipe = read_recipe(tmp_path / "clip.webp")
    assert recipe.settings == Settings(
        frames=3, steps=2, width=128, height=64, min_guidance=1.0, max_guidance=2.0, seed=5, fit="pad"
    )
    assert recipe.sigmas == tuple(sigmas_for(recipe.settings).tolist())
    assert recipe.checkpoint == Source.of(tmp_path / "tiny.safetensors")
    assert recipe.image == Source.of(tmp_path / "still.png")
    assert (recipe.playback_fps, recipe.device, recipe.dtype) == (12, "cpu", "float32")
    assert recipe.threads == torch.get_num_threads()


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm"])
def test_a_recipe_renders_to_the_same_bytes(tmp_path, name):
    scene(tmp_path)
    assert (
        animate(tmp_path, name, "--sampler", "euler_ancestral", "--seed", "9", "--fps", "9", "--dtype", "bfloat16") == 0
    )
    assert (
        main(["animate", "--recipe", f"{tmp_path}/{name}", "--output", f"{tmp_path}/again-{name}", "--chunk", "1"]) == 0
    )
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()


def test_a_recipe_finds_its_files_by_hash_where_they_were_moved(tmp_path):
    scene(tmp_path)
    assert animate(tmp_path, "clip.gif") == 0
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("still.png", "tiny.safetensors"):
        shutil.move(tmp_path / name, moved / name)
    places = [f"{moved}/still.png", "--checkpoint", f"{moved}/tiny.safetensors", "--output", f"{tmp_path}/again.gif"]
    assert main(["animate", *places, "--recipe", f"{tmp_path}/clip.gif"]) == 0
    assert (tmp_path / "again.gif").read_bytes() == (tmp_path / "clip.gif").read_bytes()


@pytest.mark.parametrize("name", ["still.png", "tiny.safetensors"])
def test_a_recipe_refuses_other_files_unless_told_to_ignore_that(tmp_path, capsys, name):
    scene(tmp_path)
    assert animate(tmp_path, "clip.gif") == 0
    if name == "still.png":
        Image.new("RGB", (80, 80), "teal").save(tmp_path / name)
    else:
        write_checkpoint(tmp_path / name, seed=1)
    capsys.readouterr()
    before = contents(tmp_path)
    again = ["animate", "--recipe", f"{tmp_path}/clip.gif", "--output", f"{tmp_path}/again.gif"]
    line = refusal(capsys, again)
    assert re.search(rf"{name} has SHA-256 \w{{12}}, the recipe was made with \w{{12}}.*--ignore-hash", line)
    assert contents(tmp_path) == before
    assert main([*again, "--ignore-hash"]) == 0
    assert Source.of(tmp_path / name) in (read_recipe(tmp_path / "again.gif").image, read_recipe(again[-1]).checkpoint)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("still.png", "give its own path before --recipe"), ("tiny.safetensors", "name it with --checkpoint")],
)
def test_a_recipe_whose_files_are_gone_says_that_it_named_them(tmp_path, capsys, name, remedy):
    scene(tmp_path)
    assert animate(tmp_path, "clip.gif") == 0
    (tmp_path / name).unlink()
    capsys.readouterr()
    line = refusal(capsys, ["animate", "--recipe", f"{tmp_path}/clip.gif", "--output", f"{tmp_path}/again.gif"])
    assert re.search(rf"the recipe's \w+ .*{name} does not exist, seen from the folder .*: {remedy}", line)


def test_a_recipe_finds_the_demo_model_wherever_the_pack_lies(tmp_path, monkeypatch):
    recorder = recorded(monkeypatch, tmp_path)
    data = json.loads(read_recipe(tmp_path / "clip").to_json())
    data["checkpoint"] = {"path": "/nowhere/demo.safetensors", "sha256": Source.of(DEMO_MODEL).sha256}
    (tmp_path / "elsewhere.json").write_text(json.dumps(data))
    again = ["animate", "--recipe", f"{tmp_path}/elsewhere.json", "--output", f"{tmp_path}/again/", "--no-watermark"]
    assert main(again) == 0
    assert recorder.opened[0] == str(DEMO_MODEL)


def test_a_recipe_of_other_versions_says_so(tmp_path, capsys):
    scene(tmp_path)
    assert animate(tmp_path, "clip.gif") == 0
    data = json.loads(read_recipe(tmp_path / "clip.gif").to_json())
    data["versions"]["torch"] = "0.1"
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert main(["animate", "--recipe", f"{tmp_path}/old.json", "--output", f"{tmp_path}/new.gif"]) == 0
    assert "note: the recipe was made with other versions, bytes may differ: torch 0.1 -> " in capsys.readouterr().err
    assert (tmp_path / "new.gif").read_bytes() == (tmp_path / "clip.gif").read_bytes()


def test_saved_latents_decode_to_the_same_bytes(tmp_path):
    scene(tmp_path)
    assert animate(tmp_path, "clip.webm", "--save-latents", f"{tmp_path}/latents.safetensors") == 0
    assert load_file(tmp_path / "latents.safetensors")["latent"].shape == (3, 4, 8, 16)
    places = ["--checkpoint", f"{tmp_path}/tiny.safetensors", "--output", f"{tmp_path}/again.webm", "--device", "cpu"]
    assert main(["decode", f"{tmp_path}/latents.safetensors", *places, "--budget", "64MiB"]) == 0
    assert (tmp_path / "again.webm").read_bytes() == (tmp_path / "clip.webm").read_bytes()


def test_decoded_otherwise_than_made_a_clip_has_no_recipe_and_that_is_said(tmp_path, capsys):
    scene(tmp_path)
    assert animate(tmp_path, "clip.webm", "--save-latents", f"{tmp_path}/latents.safetensors") == 0
    capsys.readouterr()
    places = ["--checkpoint", f"{tmp_path}/tiny.safetensors", "--output", f"{tmp_path}/again.webm", "--device", "cpu"]
    assert main(["decode", f"{tmp_path}/latents.safetensors", *places, "--dtype", "bfloat16"]) == 0
    assert (
        "note: the clip will carry no recipe, for rendering it would give other frames: dtype float32 -> bfloat16\n"
        in (capsys.readouterr().err)
    )
    line = refusal(capsys, ["animate", "--recipe", f"{tmp_path}/again.webm", "--output", f"{tmp_path}/more.webm"])
    assert "carries no recipe" in line


@pytest.mark.parametrize(("spare", "said"), [(2**10, True), (2**27, False), (2**40, False), (None, False)])
def test_a_clip_that_the_hosts_memory_may_not_hold_is_said(tmp_path, monkeypatch, capsys, spare, said):
    monkeypatch.setattr(advice, "spare_bytes", lambda device: spare)
    recorded(monkeypatch, tmp_path)
    found = re.search(r"note: 3 frames of 64x64 in float32 need about [\d.]+ \w+ of memory", capsys.readouterr().err)
    assert bool(found) == said


def test_latents_may_be_read_by_whom_the_umask_lets(tmp_path):
    scene(tmp_path)
    before = os.umask(0o027)
    try:
        assert animate(tmp_path, "clip.gif", "--save-latents", f"{tmp_path}/latents.safetensors") == 0
    finally:
        os.umask(before)
    for name in ("clip.gif", "latents.safetensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_a_name_with_a_line_end_does_not_break_the_lines(tmp_path, capsys):
    scene(tmp_path)
    for name in ("still.png", "tiny.safetensors"):
        (tmp_path / name).rename(tmp_path / f"a\n{name}")
    places = ["--checkpoint", f"{tmp_path}/a\ntiny.safetensors", "--output", f"{tmp_path}/a\nclip.gif"]
    assert main(["animate", f"{tmp_path}/a\nstill.png", *places, "--device", "cpu", "--memory", "8GiB"]) == 0
    out, err = capsys.readouterr()
    fitted, done = out.splitlines()
    assert f"{tmp_path}/a still.png: " in fitted and f"{tmp_path}/a clip.gif: " in done
    assert f"plan for {tmp_path}/a still.png:\n" in err
    assert main(["inspect", f"{tmp_path}/a\ntiny.safetensors"]) == 0
    assert f"{tmp_path}/a tiny.safetensors (single file)\n" in capsys.readouterr().out


def test_decode_shows_its_progress(tmp_path, monkeypatch):
    scene(tmp_path)
    save_file({"latent": torch.zeros(2, 4, 8, 8)}, tmp_path / "latents.safetensors")
    heard = []
    monkeypatch.setattr(Bars, "__call__", lambda self, progress: heard.append(progress))
    places = ["--checkpoint", f"{tmp_path}/tiny.safetensors", "--output", f"{tmp_path}/clip.gif", "--device", "cpu"]
    assert main(["decode", f"{tmp_path}/latents.safetensors", *places]) == 0
    assert heard == [Progress("decode", 0, 1), Progress("decode", 1, 1)]


def test_latents_decoded_otherwise_do_not_claim_the_recipe(tmp_path):
    scene(tmp_path)
    write_checkpoint(tmp_path / "other.safetensors", seed=1)
    latents = {"latent": torch.zeros(2, 4, 8, 8)}
    recipe = {TEXT_KEY: a_recipe().to_json()}
    save_file(latents, tmp_path / "latents.safetensors", metadata=recipe)
    save_file(latents, tmp_path / "bare.safetensors")
    for name in ("latents", "bare"):
        places = ["--checkpoint", f"{tmp_path}/other.safetensors", "--output", f"{tmp_path}/{name}/", "--device", "cpu"]
        assert main(["decode", f"{tmp_path}/{name}.safetensors", *places]) == 0
        with pytest.raises(InputError, match="carries no recipe"):
            read_recipe(tmp_path / name)


def test_inspect_prints_the_report(tmp_path, capsys):
    scene(tmp_path)
    assert main(["inspect", f"{tmp_path}/tiny.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "Stable Video Diffusion" in out
    assert re.search(r"loadable +yes", out)


@pytest.fixture
def threads():
    """Puts back torch's number of threads, which a recipe sets for the process."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def repeated(folder, monkeypatch, **changes):
    """What a recipe with these fields has rendered."""
    scene(folder)
    data = json.loads(a_recipe().to_json()) | changes
    for name, file in (("image", "still.png"), ("checkpoint", "tiny.safetensors")):
        data[name] = {"path": f"{folder}/{file}", "sha256": Source.of(folder / file).sha256}
    (folder / "recipe.json").write_text(json.dumps(data))
    recorder = Recorder()
    monkeypatch.setattr(render, "load_checkpoint", recorder.open)
    assert main(["animate", "--recipe", f"{folder}/recipe.json", "--output", f"{folder}/again/"]) == 0
    return recorder


def test_a_recipe_of_the_cpu_sets_its_threads(tmp_path, monkeypatch, threads):
    assert repeated(tmp_path, monkeypatch, threads=threads + 1).threads == threads + 1
    assert read_recipe(tmp_path / "again").threads == threads + 1


def test_latents_are_decoded_with_the_threads_of_their_recipe(tmp_path, monkeypatch, threads):
    scene(tmp_path)
    assert animate(tmp_path, "clip.gif", "--save-latents", f"{tmp_path}/latents.safetensors") == 0
    torch.set_num_threads(threads + 1)
    places = ["--checkpoint", f"{tmp_path}/tiny.safetensors", "--output", f"{tmp_path}/again.gif", "--device", "cpu"]
    assert main(["decode", f"{tmp_path}/latents.safetensors", *places]) == 0
    assert torch.get_num_threads() == threads
    assert (tmp_path / "again.gif").read_bytes() == (tmp_path / "clip.gif").read_bytes()


def test_another_checkpoint_than_the_recipe_says_is_refused_before_it_is_loaded(tmp_path, capsys):
    scene(tmp_path)
    assert animate(tmp_path, "clip.gif") == 0
    (tmp_path / "tiny.safetensors").write_bytes(b"no checkpoint at all")
    capsys.readouterr()
    again = ["animate", "--recipe", f"{tmp_path}/clip.gif", "--output", f"{tmp_path}/again.gif"]
    assert "tiny.safetensors has SHA-256" in refusal(capsys, again)


# Notes


def test_an_assumed_variant_is_said_unless_one_was_chosen(tmp_path, monkeypatch, capsys):
    line = f"note: {Recorder().variant_note}\n"
    recorded(monkeypatch, tmp_path)
    assert line in capsys.readouterr().err
    shutil.rmtree(tmp_path / "clip")
    recorded(monkeypatch, tmp_path, "--variant", "svd_xt")
    assert line not in capsys.readouterr().err
    repeated(tmp_path, monkeypatch)
    assert line not in capsys.readouterr().err


def test_a_variant_taken_against_what_the_file_says_is_said(tmp_path, capsys):
    scene(tmp_path)
    asked = ("--variant", "svd_xt", "--frames", "2", "--steps", "1", "--size", "128x64")
    assert animate(tmp_path, "clip.gif", *asked) == 0
    said = "note: the checkpoint says tiny (3 frames of 128x64): svd_xt (25 frames of 1024x576) was taken instead"
    assert said in capsys.readouterr().err
    size = ["--memory", "8GiB", "--frames", "2", "--size", "128x64", "--checkpoint", f"{tmp_path}/tiny.safetensors"]
    assert main(["plan", *size, "--variant", "svd_xt"]) == 0
    assert said in capsys.readouterr().err
    assert main(["plan", *size]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("steps", "said"), [("1", True), ("2", False)])
def test_steps_beside_noise_levels_are_said_to_be_unused(tmp_path, monkeypatch, capsys, steps, said):
    recorded(monkeypatch, tmp_path, "--steps", steps, "--sigmas", "5,3")
    assert (f"note: steps {steps} is not used: the noise levels of --sigmas" in capsys.readouterr().err) == said


def test_a_recipe_of_noise_levels_says_nothing_of_steps(tmp_path, capsys):
    scene(tmp_path)
    assert animate(tmp_path, "clip.gif", "--sigmas", "5,3,1") == 0
    assert main(["animate", "--recipe", f"{tmp_path}/clip.gif", "--output", f"{tmp_path}/again.gif"]) == 0
    assert "is not used" not in capsys.readouterr().err


def test_settings_that_the_model_was_not_trained_on_are_said(tmp_path, monkeypatch, capsys):
    recorded(monkeypatch, tmp_path, "--motion-bucket", "300", "--fps", "40", "--size", "576x1030")
    notes = [line for line in capsys.readouterr().err.splitlines() if "variant" not in line]
    size, *notes = notes
    assert size == "note: The size 576x1024 is not 128x64, which the model was trained on."
    assert len(notes) == 2
    assert notes[0].startswith("note: Motion bucket 300 is above 255")
    assert notes[1].startswith("note: At 40 frames per second, above 31")


# Flags


def test_every_flag_reaches_the_pipeline(tmp_path, monkeypatch):
    flags = (
        "--size 640x384 --fit stretch --background #102030 --frames 5 --steps 7 --fps 9 --motion-bucket 33 "
        "--augmentation 0.5 --min-guidance 1.5 --max-guidance 4 --guidance-curve triangle "
        "--guidance-points 0:1,0.5:3,1:1 --guidance-interval 0.5 20 --schedule align_your_steps --sigmas 50,5,0.5,0 "
        "--sampler heun --churn 0.3 --seed 77 --dtype float16 --chunk 3 --budget 1.5GiB --variant svd_xt "
        "--attention flash3 --reuse 0.15 --weights int8"
    )
    found = recorded(monkeypatch, tmp_path, *flags.split())
    assert found.settings == Settings(
        frames=5,
        steps=7,
        width=640,
        height=384,
        fit="stretch",
        background=(16, 32, 48),
        fps=9,
        motion_bucket=33,
        augmentation=0.5,
        min_guidance=1.5,
        max_guidance=4.0,
        guidance_curve="triangle",
        guidance_points=((0.0, 1.0), (0.5, 3.0), (1.0, 1.0)),
        guidance_interval=(0.5, 20.0),
        schedule="align_your_steps",
        sigmas=(50.0, 5.0, 0.5, 0.0),
        sampler="heun",
        churn=0.3,
        seed=77,
        reuse=0.15,
    )
    places = {"device": "cpu", "dtype": torch.float16, "stream_weights": False}
    options = {**places, "variant": "svd_xt", "attention": "flash3", "weights": "int8"}
    assert found.opened == (f"{tmp_path}/tiny.safetensors", options)
    assert found.limits == {"chunk": 3, "budget": 3 * 2**29, "memory": None}


def test_without_flags_the_variant_decides_and_the_exact_decoder_runs(tmp_path, monkeypatch):
    found = recorded(monkeypatch, tmp_path)
    assert found.settings == Settings(width=64, height=64).for_variant(TINY.variant)
    assert found.limits == {"chunk": None, "budget": None, "memory": None}
    assert found.opened[1]["dtype"] == torch.float32


@pytest.mark.parametrize(("name", "said"), [("sage", True), ("auto", False)])
def test_attention_in_eight_bits_is_never_silent(tmp_path, monkeypatch, capsys, name, said):
    recorded(monkeypatch, tmp_path, "--attention", name)
    assert ("note: attention sage sums in 8 bits" in capsys.readouterr().err) == said


@pytest.mark.parametrize(
    ("flag", "value", "note"),
    [
        ("--reuse", "0.1", "note: reuse 0.1 approximates"),
        ("--weights", "int8", "note: weights int8 are rounded"),
        ("--weights", "fp8", "note: weights fp8 and"),
        ("--guidance-interval", "1 100", "note: guidance runs between noise levels 1 and 100 alone"),
    ],
)
def test_what_is_not_exact_is_never_silent(tmp_path, monkeypatch, capsys, flag, value, note):
    recorded(monkeypatch, tmp_path, flag, *value.split())
    assert note in capsys.readouterr().err


def test_the_background_lies_under_a_transparent_picture(tmp_path, monkeypatch):
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "still.png")
    found = recorded(monkeypatch, tmp_path, "--background", "ff0000")
    np.testing.assert_array_equal(found.image[0, 0], (1, 0, 0))


def test_version_and_help_are_printed(capsys):
    for flag, text in (("--version", f"svd_core {__version__}"), ("--help", "animate")):
        with pytest.raises(SystemExit) as stopped:
            main([flag])
        assert stopped.value.code == 0
        assert text in capsys.readouterr().out


# Refusals


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--frames 0", "frames 0 is outside 1 to"),
        ("--frames 100000", "frames 100000 is outside 1 to"),
        ("--frames many", "argument --frames: invalid int value: 'many': see"),
        ("--fps 0", "fps 0 is"),
        ("--steps -1", "steps -1 is outside 1 to"),
        ("--steps 0", "steps 0 is outside 1 to"),
        ("--seed -1", "seed -1 is outside"),
        ("--seed 99999999999999999999", "seed 99999999999999999999 is outside"),
        ("--size 1024", "'1024' is not WIDTHxHEIGHT"),
        ("--size 0x0", "width 0 is outside"),
        ("--size 99999x64", "width 99999 is outside"),
        ("--fit zoom", "argument --fit: invalid choice: 'zoom'"),
        ("--background red", "'red' is not a colour"),
        ("--motion-bucket 5000", "motion bucket 5000 is outside"),
        ("--augmentation nan", "augmentation nan is outside"),
        ("--augmentation -1", "augmentation -1.0 is outside"),
        ("--min-guidance nan", "min_guidance nan is outside"),
        ("--max-guidance 1000", "max_guidance 1000.0 is outside"),
        ("--guidance-points 0:1,2:1", "2"),
        ("--guidance-points 0-1", "is not position:value pairs|is not numbers"),
        ("--guidance-interval 5 1", "5"),
        ("--sigmas 1,x", "'1,x' is not numbers"),
        ("--sigmas 1,2,0", "2"),
        ("--sampler quick", "sampler 'quick' is not known: choose one of euler"),
        ("--churn -1", "churn -1.0 is outside"),
        ("--churn 1 --sampler lcm", "churn 1.0 with sampler lcm, which has none"),
        ("--playback-fps 0", "playback at 0 frames per second is outside"),
        ("--chunk 0", "chunk 0 is less than 1"),
        ("--budget 0", "budget 0 is less than 1"),
        ("--budget lots", "'lots' is not a size in bytes"),
        ("--device abacus", "device 'abacus' is not known"),
        ("--device meta", "device 'meta' is not on this machine"),
        ("--device cuda:99", "device 'cuda:99' is not on this machine"),
        ("--dtype int8", "invalid choice: 'int8'"),
        ("--variant svd3", "invalid choice: 'svd3'"),
        ("--save-latents {}/latents.pt", "ends in .pt: needed .safetensors"),
        ("--save-latents {}/none/l.safetensors", "none does not exist, create the folder"),
        ("--wings", "unrecognized arguments: --wings"),
        ("--fram 3", "unrecognized arguments: --fram 3"),
    ],
)
def test_a_bad_setting_is_refused_before_the_checkpoint_is_opened(tmp_path, capsys, flags, message):
    Image.new("RGB", (64, 64)).save(tmp_path / "still.png")
    before = contents(tmp_path)
    places = ["--checkpoint", f"{tmp_path}/absent.safetensors", "--output", f"{tmp_path}/clip.mp4"]
    line = refusal(capsys, ["animate", f"{tmp_path}/still.png", *places, *flags.format(tmp_path).split()])
    assert re.search(message, line)
    assert "absent.safetensors" not in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "command",
    [
        "animate <> --output clip.mp4",
        "animate still.png --output <>",
        "animate still.png --output clip.mp4 --checkpoint <>",
        "animate --output clip.mp4 --recipe <>",
        "animate still.png --output clip.mp4 --save-latents <>",
        "decode <> --output clip.mp4",
        "inspect <>",
        "plan --memory 8GiB --checkpoint <>",
        "watermark <>",
        "batch <> --output clips",
        "batch pictures --output <>",
    ],
)
def test_an_empty_path_is_refused(capsys, command):
    argv = ["" if word == "<>" else word for word in command.split()]
    assert "the path is empty: give the name of a file or folder: see " in refusal(capsys, argv)


def test_help_says_what_a_default_is(capsys):
    for command, words in (
        ("animate", "--playback-fps N speed the file plays at (default: --fps)"),
        ("animate", "0 to 10: noise on the still, whose pixels are -1 to 1 (default: 0.02)"),
        ("decode", "--playback-fps N speed the file plays at (default: as the latents' recipe says, else 7)"),
    ):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert words in " ".join(capsys.readouterr().out.split())


def bad_pictures(folder):
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.effect_noise((200, 200), 90).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:9000])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not a picture")
    (folder / "folder.png").mkdir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dot.png", "is 1x1: needed at least 16 pixels a side"),
        ("cut.png", "is damaged or cut short"),
        ("empty.png", "has 0 bytes"),
        ("text.png", "is not a picture"),
        ("folder.png", "is a folder"),
        ("absent.png", "does not exist"),
        ("two\nlines.png", "two lines.png does not exist"),
    ],
)
def test_a_bad_picture_is_refused_before_the_checkpoint_is_opened(tmp_path, capsys, name, message):
    bad_pictures(tmp_path)
    before = contents(tmp_path)
    places = ["--checkpoint", f"{tmp_path}/absent.safetensors", "--output", f"{tmp_path}/clip.mp4"]
    assert message in refusal(capsys, ["animate", f"{tmp_path}/{name}", *places])
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("clip.avi", "ends in .avi: needed .mp4, .webm, .webp, .gif"),
        ("none/clip.mp4", "does not exist, create the folder first"),
        ("still.png/clip.mp4", "is not a folder"),
        (".mp4", "has no name before .mp4: give one, such as clip.mp4"),
        ("x" * 300 + ".mp4", "name too long"),
        ("full", "is not empty"),
    ],
)
def test_a_bad_output_is_refused_before_the_checkpoint_is_opened(tmp_path, capsys, output, message):
    Image.new("RGB", (64, 64)).save(tmp_path / "still.png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("keep me")
    before = contents(tmp_path)
    places = ["--checkpoint", f"{tmp_path}/absent.safetensors", "--output", f"{tmp_path}/{output}"]
    assert message in refusal(capsys, ["animate", f"{tmp_path}/still.png", *places])
    assert contents(tmp_path) == before


def diffusers_folder(path):
    """As a download cache lays it out: links to files elsewhere."""
    (path / "unet").mkdir(parents=True)
    (path.parent / "blob").write_bytes(b"weights")
    (path / "unet" / "a.safetensors").symlink_to(path.parent / "blob")


@pytest.mark.parametrize(
    "flags",
    [
        "--output {}/still.webp",
        "--output {}/sub/../still.webp",
        "--output {}/link.webp",
        "--output {}/hard.webp",
        "--output {}/model/clip.webp",
        "--output {}/clip.gif --save-latents {}/model/unet/a.safetensors",
        "--output {}/clip.gif --save-latents {}/one.safetensors --checkpoint {}/one.safetensors",
        "--output {}/empty --save-latents {}/empty/l.safetensors",
    ],
)
def test_an_output_that_would_overwrite_an_input_is_refused(tmp_path, capsys, flags):
    Image.new("RGB", (64, 64)).save(tmp_path / "still.webp")
    (tmp_path / "link.webp").symlink_to(tmp_path / "still.webp")
    (tmp_path / "hard.webp").hardlink_to(tmp_path / "still.webp")
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.safetensors").write_bytes(b"weights")
    diffusers_folder(tmp_path / "model")
    before = contents(tmp_path)
    given = flags.replace("{}", str(tmp_path)).split()
    line = refusal(capsys, ["animate", f"{tmp_path}/still.webp", "--checkpoint", f"{tmp_path}/model", *given])
    assert "would overwrite" in line
    assert contents(tmp_path) == before


def test_decode_refuses_to_overwrite_what_it_reads(tmp_path, capsys):
    scene(tmp_path)
    save_file({"latent": torch.zeros(2, 4, 8, 8)}, tmp_path / "latents.webp")
    places = ["--checkpoint", f"{tmp_path}/tiny.safetensors", "--output", f"{tmp_path}/latents.webp"]
    assert "would overwrite" in refusal(capsys, ["decode", f"{tmp_path}/latents.webp", *places])


def test_the_clip_that_a_recipe_came_from_may_be_overwritten(tmp_path):
    scene(tmp_path)
    assert animate(tmp_path, "clip.gif") == 0
    before = contents(tmp_path)
    assert main(["animate", "--recipe", f"{tmp_path}/clip.gif", "--output", f"{tmp_path}/clip.gif"]) == 0
    assert contents(tmp_path) == before


# What the machine refuses


def test_a_full_disk_leaves_no_latents_and_no_clip(tmp_path, capsys, monkeypatch):
    def fill(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    scene(tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(latents, "save_file", fill)
    assert animate(tmp_path, "clip.gif", "--save-latents", f"{tmp_path}/l.safetensors") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: .*l\.safetensors cannot be written \(.*No space left.*\): choose another place", last)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 12"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
)
def test_memory_that_runs_out_is_one_line_with_a_remedy(capsys, monkeypatch, error):
    monkeypatch.setattr(commands, "inspect_checkpoint", raising(error))
    line = refusal(capsys, ["inspect", "x"])
    assert re.fullmatch(r"error: memory ran out: .*--size, .*--frames, .*--budget .*--dtype bfloat16\n", line)


def test_torch_says_that_memory_ran_out_as_we_expect(capsys, monkeypatch):
    monkeypatch.setattr(commands, "inspect_checkpoint", lambda _: torch.empty(2**60))
    assert "memory ran out" in refusal(capsys, ["inspect", "x"])


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(commands, "inspect_checkpoint", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["inspect", "x"])


def test_what_the_system_refuses_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(commands, "inspect_checkpoint", raising(OSError(errno.EIO, "Input/output error", "x")))
    assert refusal(capsys, ["inspect", "x"]) == "error: x cannot be used (input/output error): choose another path\n"


def raising(error):
    def fail(*_):
        raise error

    return fail


def test_a_path_that_the_terminal_cannot_show_is_escaped(tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    (tmp_path / "\u00dcmit.safetensors").write_bytes(checkpoint_bytes())
    assert main(["inspect", f"{tmp_path}/\u00dcmit.safetensors"]) == 0
    assert rb"\xdcmit.safetensors" in terminal.buffer.getvalue()


def test_a_bad_checkpoint_is_refused(tmp_path, capsys):
    scene(tmp_path)
    (tmp_path / "tiny.safetensors").write_bytes(checkpoint_bytes()[:5_000_000])
    before = contents(tmp_path)
    places = ["--checkpoint", f"{tmp_path}/tiny.safetensors", "--output", f"{tmp_path}/clip.mp4"]
    assert "tiny.safetensors" in refusal(capsys, ["animate", f"{tmp_path}/still.png", *places])
    assert "tiny.safetensors" in refusal(capsys, ["inspect", f"{tmp_path}/tiny.safetensors"])
    assert "absent" in refusal(capsys, ["inspect", f"{tmp_path}/absent.safetensors"])
    assert contents(tmp_path) == before


def test_what_is_missing_from_the_command_is_named(tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "still.png")
    output = ["--output", f"{tmp_path}/clip.mp4"]
    assert "--checkpoint was not given: name the one" in refusal(capsys, ["decode", "latents.safetensors", *output])
    assert "no picture was given" in refusal(capsys, ["animate", *output, "--checkpoint", "x"])
    assert "required: --output" in refusal(capsys, ["animate", f"{tmp_path}/still.png"])
    assert "COMMAND" in refusal(capsys, [])
    assert "invalid choice: 'dance'" in refusal(capsys, ["dance"])


def test_without_a_checkpoint_the_demo_model_renders_and_says_so(tmp_path, capsys):
    Image.new("RGB", (200, 100), (40, 90, 160)).save(tmp_path / "still.png")
    where = ["--output", f"{tmp_path}/clip.mp4", "--device", "cpu"]
    assert main(["animate", f"{tmp_path}/still.png", "--steps", "2", "--frames", "3", *where]) == 0
    told = capsys.readouterr()
    assert f"note: {DEMO_NOTE}" in told.err and "size" not in told.err
    assert "128x64, 3 frames" in told.out
    assert read_recipe(tmp_path / "clip.mp4").checkpoint == Source.of(str(DEMO_MODEL))


def test_what_a_recipe_settles_cannot_be_given_beside_it(tmp_path, capsys):
    (tmp_path / "recipe.json").write_text(a_recipe().to_json())
    again = ["animate", "--recipe", f"{tmp_path}/recipe.json", "--output", f"{tmp_path}/clip.mp4"]
    assert "--dtype, --playback-fps, --seed beside --recipe" in refusal(
        capsys, [*again, "--seed", "1", "--dtype", "float16", "--playback-fps", "3"]
    )
    assert "cat.png does not exist" in refusal(capsys, again)


def test_a_clip_without_a_recipe_is_refused(tmp_path, capsys):
    write_clip(np.zeros((2, 64, 64, 3), np.float32), tmp_path / "bare.mp4", 7)
    again = ["--output", f"{tmp_path}/clip.mp4", "--recipe"]
    assert "carries no recipe" in refusal(capsys, ["animate", *again, f"{tmp_path}/bare.mp4"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"latent": torch.zeros(2, 3, 8, 8)}, r"shape \(2, 3, 8, 8\): needed"),
        ({"latent": torch.zeros(4, 8, 8)}, r"shape \(4, 8, 8\): needed"),
        ({"latent": torch.zeros(0, 4, 8, 8)}, r"shape \(0, 4, 8, 8\): needed"),
        ({"latent": torch.zeros(1, 4, 1, 2000)}, r"shape \(1, 4, 1, 2000\): needed"),
        ({"weights": torch.zeros(2, 4, 8, 8)}, "hold weights: needed a tensor named latent"),
        ({"latent": torch.full((2, 4, 8, 8), torch.nan)}, "NaN"),
        (b"", "cannot be read"),
        (b"\xff" * 100, "cannot be read"),
        (None, "do not exist"),
        ("/dev/zero", "are not a regular file"),
    ],
)
def test_bad_latents_are_refused(tmp_path, capsys, tensors, message):
    scene(tmp_path)
    path = tmp_path / "latents.safetensors"
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    elif isinstance(tensors, str):
        path.symlink_to(tensors)
    elif tensors:
        save_file(tensors, path)
    before = contents(tmp_path)
    places = ["--checkpoint", f"{tmp_path}/tiny.safetensors", "--output", f"{tmp_path}/clip.mp4", "--no-watermark"]
    assert re.search(message, refusal(capsys, ["decode", f"{path}", *places]))
    assert contents(tmp_path) == before


# Interruption


def test_ctrl_c_leaves_the_old_clip_and_nothing_else(tmp_path, capsys, monkeypatch):
    scene(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"the old clip")
    before = contents(tmp_path)
    heard = []

    def interrupt(self, progress):
        heard.append(progress)
        if progress == Progress("sample", 2, 5):
            raise KeyboardInterrupt

    monkeypatch.setattr(Bars, "__call__", interrupt)
    assert animate(tmp_path, "clip.mp4", "--steps", "5", "--save-latents", f"{tmp_path}/l.safetensors") == 130
    assert capsys.readouterr().err.splitlines()[-1] == INTERRUPTED
    assert heard[-1] == Progress("sample", 2, 5)
    assert contents(tmp_path) == before


def run(*argv, **options):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-m", "svd_core", *map(str, argv)],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        **{"stdout": subprocess.PIPE, **options},
    )


def test_a_process_refuses_with_code_2_and_one_line(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    places = ("--checkpoint", tmp_path / "absent.safetensors", "--output", tmp_path / "clip.mp4")
    with run("animate", tmp_path / "dot.png", *places, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]*dot\.png is 1x1[^\n]*\n", err)
    assert [path.name for path in tmp_path.iterdir()] == ["dot.png"]


def test_a_torch_that_is_too_old_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", "2.3.1+cu121")
    assert main(["inspect", str(DEMO_MODEL)]) == 2
    assert capsys.readouterr().err == "error: this cannot run: torch 2.3.1+cu121 is too old, install 2.4 or newer\n"


def test_a_missing_package_is_named_with_the_python_that_lacks_it():
    hide = "import sys; sys.modules['einops'] = None; from svd_core.cli import main; sys.exit(main(['inspect', 'x']))"
    done = subprocess.run([sys.executable, "-c", hide], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert re.fullmatch(r"error: the package einops is missing from [^\n]*: pip install it, or [^\n]*\n", done.stderr)


WRITES_FOR_EVER = """
import time
from svd_core.cli import main, render
from svd_core.media import replacing
from pathlib import Path
def write(frames, path, *rest):
    with replacing(Path(path)) as scratch:
        scratch.touch()
        print("writing", flush=True)
        while True:  # in short naps: one that begins just after a signal came is not woken by it
            time.sleep(0.1)
render.write_clip = write
raise SystemExit(main({argv}))
"""


def read_until(descriptor, text, deadline):
    """What a terminal shows until `text` appears or its last writer leaves."""
    shown = b""
    while text not in shown and time.monotonic() < deadline:
        try:
            shown += os.read(descriptor, 4096)
        except OSError:  # how Linux says that nobody writes any more
            break
    return shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_system_s_signals_end_a_process_as_ctrl_c_does(tmp_path, number, code):
    scene(tmp_path)
    before = contents(tmp_path)
    places = ("--checkpoint", tmp_path / "tiny.safetensors", "--output", tmp_path / "clip.mp4", "--device", "cpu")
    program = WRITES_FOR_EVER.format(argv=["animate", f"{tmp_path}/still.png", *map(str, places), "--steps", "1"])
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "writing\n"
        assert len(list(tmp_path.glob(".svd_core-*"))) == 1
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (code, INTERRUPTED)
    assert "Traceback" not in err
    assert contents(tmp_path) == before


def test_a_real_ctrl_c_ends_a_process_that_shows_its_progress(tmp_path):
    scene(tmp_path)
    before = contents(tmp_path)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    places = ("--checkpoint", tmp_path / "tiny.safetensors", "--output", tmp_path / "clip.mp4", "--device", "cpu")
    deadline = time.monotonic() + 120
    with run("animate", tmp_path / "still.png", *places, "--steps", 1000, stderr=theirs) as process:
        os.close(theirs)
        shown = read_until(ours, b" 3/1000", deadline)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        shown += read_until(ours, INTERRUPTED.encode(), deadline)
        process.communicate(timeout=60)
    os.close(ours)
    assert re.search(rb"sample +0%.* 3/1000 \[.*s/step, .* gone, .* left\]", shown)
    assert process.returncode == 130
    assert b"Traceback" not in shown
    assert time.monotonic() - sent < 30
    assert contents(tmp_path) == before


@pytest.mark.parametrize("follows", [ImportError("numpy"), SystemError("a call failed"), InputError("half"), None])
def test_an_interrupt_is_one_whatever_a_library_makes_of_it(capsys, monkeypatch, follows):
    def swallow(_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if follows is not None:
                raise follows from None
        return SimpleNamespace(report=str)

    monkeypatch.setattr(commands, "inspect_checkpoint", swallow)
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == f"{INTERRUPTED}\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_press_does_not_stop_the_cleaning_up(monkeypatch):
    with interrupts.Interrupts():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(interrupts, "PATIENCE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_work_that_may_not_break_is_interrupted_after_it():
    done = []

    def work():
        signal.raise_signal(signal.SIGINT)
        done.append(True)

    with interrupts.Interrupts() as found, pytest.raises(KeyboardInterrupt):
        found.run_uninterrupted(work)
    assert done == [True]


def signalled(number):
    """Raise a signal, unless it would end these tests."""
    assert signal.getsignal(number) != signal.SIG_DFL
    signal.raise_signal(number)


@pytest.mark.parametrize(
    ("name", "code", "usual"),
    [("SIGINT", 130, signal.default_int_handler), ("SIGTERM", 143, signal.SIG_DFL), ("SIGHUP", 129, signal.SIG_DFL)],
)
def test_a_signal_gives_its_code_and_its_handler_comes_back(capsys, monkeypatch, name, code, usual):
    number = getattr(signal, name)
    before = signal.signal(number, usual)
    monkeypatch.setattr(commands, "inspect_checkpoint", lambda _: signalled(number))
    try:
        assert main(["inspect", "x"]) == code
        assert signal.getsignal(number) == usual
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == f"{INTERRUPTED}\n"


def test_a_system_may_lack_a_signal(monkeypatch):
    """As Windows lacks SIGHUP."""
    monkeypatch.delattr(signal, "SIGHUP")
    fresh = module_from_spec(find_spec("svd_core.cli.interrupts"))
    fresh.__spec__.loader.exec_module(fresh)
    with fresh.Interrupts() as found:
        assert not found.first


def test_a_handler_that_a_library_sets_is_undone():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with interrupts.Interrupts() as found:
            with pytest.raises(interrupts.Ended), interrupts.handlers_kept():
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
                signal.raise_signal(signal.SIGTERM)
            assert not found.first
            with pytest.raises(interrupts.Ended):
                signalled(signal.SIGTERM)
            assert found.first == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_ignored_ctrl_c_stays_ignored():
    """As a shell has it for what runs in the background, and nohup for SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        before = signal.signal(number, signal.SIG_IGN)
        try:
            with interrupts.Interrupts() as found:
                signal.raise_signal(number)
                assert not found.first
            assert signal.getsignal(number) is signal.SIG_IGN
        finally:
            signal.signal(number, before)


def test_ctrl_c_while_libraries_load_is_one_line(tmp_path):
    """The delays reach from our first line to the middle of torch's import."""
    scene(tmp_path)
    before = contents(tmp_path)
    places = ("--checkpoint", tmp_path / "tiny.safetensors", "--output", tmp_path / "clip.mp4", "--device", "cpu")
    for _ in range(3):
        delay = random.uniform(0.3, 1.5)
        with run("animate", tmp_path / "still.png", *places, "--steps", 1000, stderr=subprocess.PIPE) as process:
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        *notes, last = err.decode().splitlines()
        assert (process.returncode, out, last) == (130, b"", INTERRUPTED), f"after {delay} s"
        assert all(note.startswith("note: ") for note in notes), f"after {delay} s"  # it may have come so far
        assert contents(tmp_path) == before


# The process


def test_help_and_the_package_load_no_torch():
    program = "import sys, svd_core\nfrom svd_core.cli import main\ntry:\n    main(['--help'])\nfinally:\n"
    program += "    print(sorted({'torch', 'numpy', 'PIL', 'av'} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["animate", "inspect"], ids=["longer than a buffer", "shorter"])
def test_output_that_nobody_can_take_is_one_line(command):
    with open("/dev/full", "wb") as full:
        with run(command, "--help", stdout=full, stderr=subprocess.PIPE, text=True) as process:
            _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert re.fullmatch(r"error: standard output cannot be written \(.*\): send it[^\n]*\n", err)


def test_a_reader_that_stops_as_head_does_is_no_error():
    closed = os.pipe()
    os.close(closed[0])
    with run("animate", "--help", stdout=closed[1], stderr=subprocess.PIPE, text=True) as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")
    os.close(closed[1])


def test_a_clip_is_not_written_to_standard_output(capsys):
    for argv in (["animate", "x.png", "--output", "-"], ["batch", "x", "--output", "-"]):
        assert "standard output (-) takes no clip" in refusal(capsys, argv)


def test_with_stderr_closed_the_clip_is_made_and_codes_are_kept(tmp_path):
    scene(tmp_path)
    places = ("--checkpoint", tmp_path / "tiny.safetensors", "--output", tmp_path / "clip.gif", "--device", "cpu")
    for argv, code in (
        (("inspect", tmp_path / "absent"), 2),
        (("animate", "--no-such-flag"), 2),
        (("animate", tmp_path / "still.png", *places, "--fps", "29"), 0),
    ):
        with run(*argv, preexec_fn=lambda: os.close(2)) as process:
            process.communicate(timeout=120)
        assert process.returncode == code
    assert read_recipe(tmp_path / "clip.gif").settings.fps == 29


def test_every_public_name_is_found_where_the_package_says():
    assert svd_core.__all__ == list(svd_core._HOMES)
    assert set(svd_core.__all__) < set(dir(svd_core))
    for name in svd_core.__all__:
        assert getattr(svd_core, name) is getattr(import_module(f"svd_core.{svd_core._HOMES[name]}"), name)
    with pytest.raises(AttributeError, match="has no attribute 'teleport'"):
        _ = svd_core.teleport


def test_editors_see_the_same_names():
    tree = ast.parse((ROOT / "svd_core" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: line.module for line in block.body for alias in line.names}
    assert seen == svd_core._HOMES
