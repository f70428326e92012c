"""The camera on the command line: each flag is what the library does, and each recipe does it again."""

import dataclasses
import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from recipes import a_recipe
from synthetic import write_checkpoint

from svd_core import Controls
from svd_core.cli import batch, commands, main, render
from svd_core.cli.flags import parser
from svd_core.cli.order import order_from_flags
from svd_core.loading import load_checkpoint
from svd_core.media import fit_image, load_image, read_recipe
from svd_core.motion import CameraMove
from svd_core.recipe import UNCONTROLLED, Source
from svd_core.settings import Settings

SIDE = 64
MOVED = CameraMove(0.25, -0.1, 1.2, -5, ease=True)
FLAGS = "--pan 0.25 -0.1 --zoom 1.2 --roll -5 --ease"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture(scope="module")
def svd(checkpoint):
    return load_checkpoint(checkpoint)


@pytest.fixture
def loaded(svd, monkeypatch):
    """The commands get the checkpoint as it was read once for all tests."""
    monkeypatch.setattr(render, "load_checkpoint", lambda path, **options: svd)
    monkeypatch.setattr(commands, "open_model", lambda *_, **__: svd)


@pytest.fixture
def unread(monkeypatch):
    """Reading weights fails the test."""
    monkeypatch.setattr(render, "load_checkpoint", lambda *_, **__: pytest.fail("weights were read"))


def grey(height, width):
    """A map (H, W), near on the right."""
    return np.linspace(0, 255, width).astype(np.uint8)[None].repeat(height, axis=0)


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "still.png")
    Image.fromarray(grey(100, 150)).save(tmp_path / "depth.png")
    Image.fromarray(grey(SIDE, SIDE)).save(tmp_path / "fitted.png")
    Image.fromarray(grey(90, 70)).save(tmp_path / "other.png")
    return tmp_path


def refusal(capsys, argv):
    """The one line on stderr that a refused command leaves."""
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", captured.err)
    return captured.err


@pytest.fixture
def words(folder, checkpoint):
    """The command of a clip of two frames in one step."""

    def made(output, flags):
        places = ["--checkpoint", str(checkpoint), "--output", f"{folder}/{output}", "--device", "cpu"]
        size = ["--size", f"{SIDE}x{SIDE}", "--steps", "1", "--frames", "2"]
        return ["animate", f"{folder}/still.png", *places, *size, *flags.replace("{}", str(folder)).split()]

    return made


def frames_of(path):
    return np.stack([np.asarray(Image.open(each)) for each in sorted(path.glob("*.png"))])


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


# What is rendered


@pytest.mark.parametrize(
    ("flags", "controls"),
    [
        (FLAGS, lambda _: {"camera": MOVED}),
        ("--zoom 0.5 --unstick 0.5 --motion-bucket-points 0:10,1:250", lambda _: BESIDE),
        (f"{FLAGS} --depth {{}}/fitted.png", lambda _: {"camera": MOVED, "depth": grey(SIDE, SIDE) / 255}),
        (f"{FLAGS} --depth {{}}/depth.png", lambda folder: {"camera": MOVED, "depth": fitted_depth(folder, "crop")}),
        (
            f"{FLAGS} --fit pad --depth {{}}/depth.png",
            lambda folder: {"camera": MOVED, "depth": fitted_depth(folder, "pad"), "fit": "pad"},
        ),
    ],
)
def test_a_flag_is_what_the_library_calls_it(words, folder, svd, loaded, flags, controls):
    assert main(words("clip/", flags)) == 0
    asked = controls(folder)
    settings = Settings(frames=2, steps=1, width=SIDE, height=SIDE, fit=asked.pop("fit", "crop"))
    expected = svd.render(load_image(folder / "still.png"), settings, Controls(**asked)).frames
    found = frames_of(folder / "clip")
    np.testing.assert_allclose(found, np.rint(expected * 255), rtol=0, atol=1)
    still = svd.render(
        load_image(folder / "still.png"), settings, Controls(**(asked | {"camera": None, "depth": None}))
    )
    assert (found != np.rint(still.frames * 255)).mean() > 0.1


BESIDE = {"camera": CameraMove(zoom=0.5), "unstick": 0.5, "motion_bucket": [(0, 10), (1, 250)]}


def fitted_depth(folder, fit):
    """The map goes through the picture's own fit, smoothly and with black bars, which are far."""
    black, smooth = (0, 0, 0), Image.Resampling.BILINEAR
    fitted = fit_image(load_image(folder / "depth.png", black), SIDE, SIDE, fit, black, smooth).image[..., 0]
    assert (fitted[0] == 0).all() == (fit == "pad")
    return fitted


def test_a_depth_of_16_bits_keeps_its_steps(words, folder, loaded):
    """As depth programs write them; 8 bits of it are the same to the eye, and nothing is clipped to white."""
    deep = np.linspace(0, 65535, 150).astype(np.uint16)[None].repeat(100, axis=0)
    Image.fromarray(deep).save(folder / "deep.png")
    assert main(words("deep/", f"{FLAGS} --depth {{}}/deep.png")) == 0
    assert main(words("eight/", f"{FLAGS} --depth {{}}/depth.png")) == 0
    assert main(words("none/", FLAGS)) == 0
    deep, eight, none = (frames_of(folder / name).astype(int) for name in ("deep", "eight", "none"))
    assert np.abs(deep - eight).mean() < 0.2 * np.abs(none - eight).mean()


@pytest.mark.parametrize(("level", "fit"), [(255, "crop"), (255, "stretch"), (255, "pad"), (0, "crop")])
def test_a_map_of_one_grey_is_within_range_after_its_fit(words, folder, loaded, level, fit):
    Image.fromarray(np.full((100, 150), level, np.uint8)).save(folder / "flat.png")
    assert main(words("flat/", f"{FLAGS} --fit {fit} --depth {{}}/flat.png")) == 0


# What the flags say


def camera_of(*flags):
    return order_from_flags(parser().parse_args(["animate", "p.png", "--output", "c.gif", *flags])).controls.camera


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--pan -0.2 -.5", CameraMove(-0.2, -0.5)),
        ("--pan -1 1", CameraMove(-1, 1)),
        ("--pan 0 0", CameraMove()),
        ("--roll -180", CameraMove(roll=-180)),
        ("--zoom=0.25", CameraMove(zoom=0.25)),
        ("--ease --pan 0.1 0", CameraMove(0.1, ease=True)),
        ("--roll 3 --zoom 2", CameraMove(zoom=2, roll=3)),
    ],
)
def test_flags_are_a_camera(flags, expected):
    assert camera_of(*flags.split()) == expected


def test_without_flags_there_is_none():
    assert camera_of() is None and camera_of("--unstick", "0.5") is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--ease", "--ease is about --pan, --zoom, --roll or --drag, and none was given: give one"),
        ("--depth {}/depth.png", "--depth is about --pan, --zoom or --roll, and none was given"),
        ("--ease --depth {}/depth.png", "--(ease|depth) is about --pan, --zoom or --roll, and none was given"),
        ("--pan 0.2", "--pan: expected 2 arguments"),
        ("--pan", "--pan: expected 2 arguments"),
        ("--pan 0.1 0.2 0.3", "unrecognized arguments: 0.3"),
        ("--pan right 0", "--pan: invalid float value: 'right'"),
        ("--pan 2 0", "camera pan_x 2.0 is no number from -1 to 1: 0.2 is a fifth of the picture"),
        ("--pan 0 -1.5", "camera pan_y -1.5 is no number from -1 to 1"),
        ("--pan nan 0", "camera pan_x nan is no number"),
        ("--zoom 0", "camera zoom 0.0 is no number from 0.25 to 4: 1.2 comes closer, 0.8 goes back"),
        ("--zoom -1", "camera zoom -1.0 is no number"),
        ("--zoom inf", "camera zoom inf is no number"),
        ("--roll 181", "camera roll 181.0 is no number from -180 to 180: degrees, 5 is a slight turn"),
        ("--roll", "--roll: expected one argument"),
        ("--pan 0.2 0 --loop --frames 4", "a camera leaves its picture, and an end would hold the clip to it"),
        ("--pan 0.2 0 --end {}/other.png", "and an end would hold the clip to it: choose one of them"),
        ("--pan 0.2 0 --window 2", "and windows would hold the clip to it: choose one of them"),
        ("--zoom 1.1 --brush {}/depth.png", "and a brush would hold the clip to it: choose one of them"),
        (
            "--pan 0.2 0 --depth {}/other.png",
            "depth map .*other.png is 70x90 and the picture 150x100: make it from the picture, at its size",
        ),
        ("--pan 0.2 0 --depth {}/none.png", "none.png"),
        ("--pan 0.2 0 --depth {}/text.png", "text.png is not a picture"),
        ("--pan 0.2 0 --depth {}/maps", "maps is a folder: give one picture file in it"),
    ],
)
def test_a_camera_that_does_not_fit_is_refused_before_weights_are_read(words, folder, unread, capsys, flags, message):
    (folder / "text.png").write_text("not a picture")
    (folder / "maps").mkdir()
    before = contents(folder)
    assert re.search(message, refusal(capsys, words("clip.gif", flags)))
    assert contents(folder) == before


def test_an_output_that_would_overwrite_the_depth_map_is_refused(words, folder, unread, capsys):
    Image.fromarray(grey(100, 150)).save(folder / "depth.webp")
    before = contents(folder)
    line = refusal(capsys, words("depth.webp", f"{FLAGS} --depth {{}}/depth.webp"))
    assert "would overwrite" in line and contents(folder) == before


# Recipes


@pytest.mark.parametrize(("flags", "output"), [(FLAGS, "clip.mp4"), (f"{FLAGS} --depth {{}}/depth.png", "clip.gif")])
def test_a_recipe_of_a_camera_renders_to_the_same_bytes(words, folder, loaded, flags, output):
    assert main(words(output, flags)) == 0
    recorded = read_recipe(folder / output).controls
    depth = Source.of(folder / "depth.png") if "depth" in flags else None
    assert recorded == dataclasses.replace(UNCONTROLLED, camera=MOVED, depth=depth)
    assert main(["animate", "--recipe", f"{folder}/{output}", "--output", f"{folder}/again-{output}"]) == 0
    assert (folder / f"again-{output}").read_bytes() == (folder / output).read_bytes()


def test_a_depth_map_that_was_moved_is_found_by_its_hash_and_one_that_was_changed_is_refused(
    words, folder, loaded, capsys
):
    assert main(words("clip.gif", f"{FLAGS} --depth {{}}/depth.png")) == 0
    shutil.move(folder / "depth.png", folder / "moved.png")
    again = ["animate", "--recipe", f"{folder}/clip.gif", "--output", f"{folder}/again.gif"]
    line = refusal(capsys, again)
    assert re.search(r"the recipe's depth file .*depth.png does not exist, .*: give its own path with --depth ", line)
    assert main([*again, "--depth", f"{folder}/moved.png"]) == 0
    assert (folder / "again.gif").read_bytes() == (folder / "clip.gif").read_bytes()
    Image.fromarray(grey(100, 150)[:, ::-1].copy()).save(folder / "depth.png")
    line = refusal(capsys, again)
    assert re.search(r"depth.png has SHA-256 \w{12}, the recipe was made with \w{12} .*--ignore-hash", line)
    assert main([*again, "--ignore-hash"]) == 0
    assert (folder / "again.gif").read_bytes() != (folder / "clip.gif").read_bytes()
    assert read_recipe(folder / "again.gif").controls.depth == Source.of(folder / "depth.png")


def recipe_file(folder, checkpoint, **controls):
    """A recipe of the still with these fields of its controls: the path of its file."""
    data = json.loads(dataclasses.replace(a_recipe(), checkpoint=Source.of(checkpoint)).to_json())
    data["image"] = dataclasses.asdict(Source.of(folder / "still.png"))
    data["controls"] |= controls
    (folder / "recipe.json").write_text(json.dumps(data))
    return f"{folder}/recipe.json"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--pan 0.2 0", "--pan beside --recipe, which settles it: leave out either"),
        ("--zoom 1", "--zoom beside --recipe, which settles it"),
        ("--roll 0 --ease", "--ease, --roll beside --recipe, which settles it"),
        ("--depth {}/depth.png", "--depth beside --recipe, whose clip was made without: leave it out"),
    ],
)
def test_flags_of_a_camera_beside_a_recipe_are_refused(folder, checkpoint, unread, capsys, flags, message):
    recipe = recipe_file(folder, checkpoint, camera={"pan_x": 0.2})
    command = ["animate", "--recipe", recipe, "--output", f"{folder}/again.gif"]
    assert message in refusal(capsys, [*command, *flags.format(folder).split()])


EMPTY = {"path": "/dev/null", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"camera": {"zoom": 0}}, "camera zoom 0.0 is no number from 0.25 to 4"),
        ({"camera": "right"}, "recipe.controls.camera is 'right': needed an object"),
        ({"camera": {"pan_x": 0.2}, "loop": True}, "a camera leaves its picture, and an end would hold the clip to it"),
        ({"camera": {}, "window": 2}, "a camera leaves its picture, and windows would hold the clip to it"),
        (
            {"camera": {}, "depth": {"path": "depth.png", "sha256": "0" * 64}},
            "the recipe's depth file depth.png does not exist",
        ),
        (
            {"camera": {}, "depth": {"path": "/dev/zero", "sha256": "0" * 64}},
            "/dev/zero is neither a file nor a folder",
        ),
        ({"depth": EMPTY}, "a depth map is about how the camera passes things, and there is none: give a camera"),
        ({"camera": {}, "depth": "depth.png"}, "recipe.controls.depth is 'depth.png': needed an object"),
        ({"camera": {}, "depth": {"path": "depth.png", "sha256": "0"}}, "recipe.depth.sha256 is not 64 hexadecimal"),
    ],
)
def test_a_recipe_with_a_damaged_camera_is_refused(folder, checkpoint, unread, capsys, controls, message):
    command = ["animate", "--recipe", recipe_file(folder, checkpoint, **controls), "--output", f"{folder}/again.gif"]
    before = contents(folder)
    assert re.search(message, refusal(capsys, command))
    assert contents(folder) == before


# Latents, the content filter, and batches


def test_latents_of_a_camera_decode_to_its_clip_and_keep_its_recipe(words, folder, loaded, checkpoint, capsys):
    flags = f"{FLAGS} --depth {{}}/depth.png --save-latents {{}}/l.safetensors"
    assert main(words("clip.gif", flags)) == 0
    places = ["--checkpoint", str(checkpoint), "--output", f"{folder}/again.gif", "--device", "cpu"]
    assert main(["decode", f"{folder}/l.safetensors", *places]) == 0
    assert (folder / "again.gif").read_bytes() == (folder / "clip.gif").read_bytes()
    assert read_recipe(folder / "again.gif").controls.camera == MOVED
    assert "no recipe" not in capsys.readouterr().err


SEEN = []


def watching(frames):
    """Refuses nothing and remembers what it was shown."""
    SEEN.append(np.array(frames))
    return [False] * len(frames)


def test_the_content_filter_sees_the_picture_and_the_clip_and_no_depth_map(words, folder, loaded, monkeypatch):
    """Of a depth map no pixel is shown to anyone, as of a brush; what the camera sees is in the clip."""
    monkeypatch.setitem(sys.modules, "my_watchers", sys.modules[__name__])
    SEEN.clear()
    flags = f"{FLAGS} --depth {{}}/depth.png --content-filter my_watchers:watching"
    assert main(words("clip.gif", flags)) == 0
    assert [each.shape for each in SEEN] == [(1, 100, 150, 3), (2, SIDE, SIDE, 3)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--pan 2 0", "camera pan_x 2.0 is no number from -1 to 1"),
        ("--ease", "--ease is about --pan, --zoom, --roll or --drag"),
        ("--pan 0.1 0 --window 2", "a camera leaves its picture, and windows"),
        ("--zoom 1.1 --loop", "a camera leaves its picture, and an end"),
        ("--pan 0.1 0 --depth d.png", "unrecognized arguments: --depth"),
    ],
)
def test_a_batch_refuses_a_camera_before_it_starts_a_worker(folder, checkpoint, capsys, monkeypatch, flags, said):
    monkeypatch.setattr(batch, "_connected", lambda *_: pytest.fail("workers were started"))
    places = ("--output", f"{folder}/clips", "--checkpoint", str(checkpoint))
    assert said in refusal(capsys, ["batch", str(folder), *places, *flags.split()])
    assert not (folder / "clips").exists()


@pytest.mark.parametrize("command", ["decode l.safetensors --output clip.gif", "plan --memory 8GiB"])
def test_decode_and_plan_know_no_camera(capsys, command):
    for flag in ("pan", "zoom", "roll", "ease", "depth"):
        assert f"--{flag}" in refusal(capsys, [*command.split(), f"--{flag}", "1"])
