"""The command line as its user meets it: files appear whole or not at all, and every refusal is one line."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import a_recipe
from safetensors.torch import load_file, save_file
from synthetic import TINY, write_checkpoint

from svd_core import __version__
from svd_core.cli import commands, main
from svd_core.errors import InputError
from svd_core.media import load_image, read_recipe, write_clip
from svd_core.media.metadata import TEXT_KEY
from svd_core.pipeline import Clip, Progress, load_checkpoint
from svd_core.recipe import Source
from svd_core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


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
        self.opened = self.image = self.settings = self.limits = None

    def open(self, path, **options):
        self.opened = (path, options)
        return self

    def render(self, image, settings, *, callback, **limits):
        self.image, self.settings, self.limits = image, settings, limits
        callback(Progress("sample", 1, 1))
        resolved = settings.for_variant(TINY.variant)
        return Clip(np.zeros((2, 64, 64, 3), np.float32), torch.zeros(2, 4, 8, 8), resolved, (700.0, 0.0), "kept")


def recorded(monkeypatch, folder, *flags):
    recorder = Recorder()
    monkeypatch.setattr(commands, "load_checkpoint", recorder.open)
    if not (folder / "still.png").exists():
        Image.new("RGB", (64, 64)).save(folder / "still.png")
    (folder / "tiny.safetensors").write_bytes(b"weights")
    assert animate(folder, "clip/", *flags) == 0
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
    assert err == ""
    asked = r" \(100x70 was asked for; sides are multiples of 64\)"
    assert re.fullmatch(rf".*/still\.png: 150x100 cropped to 128x64, 25 % of the height lost{asked}", fitted)
    assert re.fullmatch(r".*/clip: 128x64, 3 frames, \d+\.\d s", done)


def test_a_recipe_holds_everything_that_decided_the_clip(tmp_path):
    scene(tmp_path)
    assert animate(tmp_path, "clip.webp", "--seed", "5", "--playback-fps", "12", "--fit", "pad") == 0
    recipe = read_recipe(tmp_path / "clip.webp")
    assert recipe.settings == Settings(
        frames=3, steps=2, width=128, height=64, min_guidance=1.0, max_guidance=2.0, seed=5, fit="pad"
    )
    assert recipe.sigmas == tuple(commands.sigmas_for(recipe.settings).tolist())
    assert recipe.checkpoint == Source.of(tmp_path / "tiny.safetensors")
    assert recipe.image == Source.of(tmp_path / "still.png")
    assert (recipe.playback_fps, recipe.device, recipe.dtype) == (12, "cpu", "float32")


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
    assert main(["decode", f"{tmp_path}/latents.safetensors", *places, "--budget", "1MiB"]) == 0
    assert (tmp_path / "again.webm").read_bytes() == (tmp_path / "clip.webm").read_bytes()


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


# Flags


def test_every_flag_reaches_the_pipeline(tmp_path, monkeypatch):
    flags = (
        "--size 640x384 --fit stretch --background #102030 --frames 5 --steps 7 --fps 9 --motion-bucket 33 "
        "--augmentation 0.5 --min-guidance 1.5 --max-guidance 4 --guidance-curve triangle "
        "--guidance-points 0:1,0.5:3,1:1 --guidance-interval 0.5 20 --schedule align_your_steps --sigmas 50,5,0.5,0 "
        "--sampler heun --churn 0.3 --seed 77 --dtype float16 --chunk 3 --budget 1.5GiB --variant svd_xt"
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
    )
    options = {"device": "cpu", "dtype": torch.float16, "variant": "svd_xt"}
    assert found.opened == (f"{tmp_path}/tiny.safetensors", options)
    assert found.limits == {"chunk": 3, "budget": 3 * 2**29}


def test_without_flags_the_variant_decides_and_the_exact_decoder_runs(tmp_path, monkeypatch):
    found = recorded(monkeypatch, tmp_path)
    assert found.settings == Settings()
    assert found.limits["chunk"] >= Settings().for_variant(TINY.variant).frames
    assert found.opened[1]["dtype"] == torch.float32


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
        ("--guidance-points 0-1", "is not position:scale pairs|is not numbers"),
        ("--guidance-interval 5 1", "5"),
        ("--sigmas 1,x", "'1,x' is not numbers"),
        ("--sigmas 1,2,0", "2"),
        ("--sampler quick", "sampler 'quick' is not known: choose one of euler"),
        ("--churn -1", "churn -1.0 is outside"),
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
    assert "--checkpoint was not given and no demo model ships" in refusal(
        capsys, ["animate", f"{tmp_path}/still.png", *output]
    )
    assert "no picture was given" in refusal(capsys, ["animate", *output, "--checkpoint", "x"])
    assert "required: --output" in refusal(capsys, ["animate", f"{tmp_path}/still.png"])
    assert "COMMAND" in refusal(capsys, [])
    assert "invalid choice: 'dance'" in refusal(capsys, ["dance"])


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
    ],
)
def test_bad_latents_are_refused(tmp_path, capsys, tensors, message):
    scene(tmp_path)
    path = tmp_path / "latents.safetensors"
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    elif tensors:
        save_file(tensors, path)
    before = contents(tmp_path)
    places = ["--checkpoint", f"{tmp_path}/tiny.safetensors", "--output", f"{tmp_path}/clip.mp4"]
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

    monkeypatch.setattr(commands.Bars, "__call__", interrupt)
    assert animate(tmp_path, "clip.mp4", "--steps", "5", "--save-latents", f"{tmp_path}/l.safetensors") == 130
    assert capsys.readouterr().err == "interrupted: the clip was not written\n"
    assert heard[-1] == Progress("sample", 2, 5)
    assert contents(tmp_path) == before


def run(*argv, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "svd_core", *map(str, argv)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        **options,
    )


def test_a_process_refuses_with_code_2_and_one_line(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    places = ("--checkpoint", tmp_path / "absent.safetensors", "--output", tmp_path / "clip.mp4")
    with run("animate", tmp_path / "dot.png", *places, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]*dot\.png is 1x1[^\n]*\n", err)
    assert [path.name for path in tmp_path.iterdir()] == ["dot.png"]


def read_until(descriptor, text, deadline):
    """What a terminal shows until `text` appears or its last writer leaves."""
    shown = b""
    while text not in shown and time.monotonic() < deadline:
        try:
            shown += os.read(descriptor, 4096)
        except OSError:  # how Linux says that nobody writes any more
            break
    return shown


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
        shown += read_until(ours, b"interrupted: the clip was not written", deadline)
        process.communicate(timeout=60)
    os.close(ours)
    assert re.search(rb"sample +0%.* 3/1000 \[.*s/step, .* gone, .* left\]", shown)
    assert process.returncode == 130
    assert b"Traceback" not in shown
    assert time.monotonic() - sent < 30
    assert contents(tmp_path) == before
