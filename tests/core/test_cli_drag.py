"""The drag on the command line: each flag is what the library does, and each recipe does it again."""

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
from svd_core.motion import CameraMove, ObjectMove
from svd_core.recipe import UNCONTROLLED, Source
from svd_core.settings import Settings

SIDE = 64
MOVED = ObjectMove(0.25, -0.1, 1.2, -45, ease=True)
WAY = "--drag-by 0.25 -0.1 --drag-scale 1.2 --drag-turn -45 --ease"
FLAGS = f"--drag {{}}/mask.png {WAY}"


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


def painted(height, width):
    """White and a grey edge on black, left of the middle."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : 3 * height // 4, width // 4 : width // 2] = 255
    mask[height // 4 : 3 * height // 4, width // 2 : width // 2 + 3] = 100
    return mask


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "still.png")
    Image.fromarray(painted(100, 150)).save(tmp_path / "mask.png")
    Image.fromarray(painted(SIDE, SIDE)).save(tmp_path / "fitted.png")
    Image.fromarray(painted(90, 70)).save(tmp_path / "other.png")
    Image.fromarray(np.zeros((100, 150), np.uint8)).save(tmp_path / "black.png")
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


def fitted_mask(folder, fit):
    """The mask goes through the picture's own fit, smoothly, and bars are not painted."""
    black, smooth = (0, 0, 0), Image.Resampling.BILINEAR
    fitted = fit_image(load_image(folder / "mask.png", black), SIDE, SIDE, fit, black, smooth).image[..., 0]
    assert 0 < fitted.max() <= 1 and fitted.min() == 0
    return fitted


@pytest.mark.parametrize(
    ("flags", "fit", "controls"),
    [
        (FLAGS, "crop", lambda folder: {"drag": fitted_mask(folder, "crop")}),
        (f"{FLAGS} --fit pad", "pad", lambda folder: {"drag": fitted_mask(folder, "pad")}),
        (f"--drag {{}}/fitted.png {WAY}", "crop", lambda _: {"drag": painted(SIDE, SIDE) / 255}),
        (
            f"{FLAGS} --zoom 0.5 --unstick 0.5 --motion-bucket-points 0:10,1:250",
            "crop",
            lambda folder: {
                "drag": fitted_mask(folder, "crop"),
                "camera": CameraMove(zoom=0.5, ease=True),
                "unstick": 0.5,
                "motion_bucket": [(0, 10), (1, 250)],
            },
        ),
    ],
)
def test_a_flag_is_what_the_library_calls_it(words, folder, svd, loaded, flags, fit, controls):
    assert main(words("clip/", flags)) == 0
    asked = controls(folder)
    settings = Settings(frames=2, steps=1, width=SIDE, height=SIDE, fit=fit)
    picture = load_image(folder / "still.png")
    expected = svd.render(picture, settings, Controls(**asked, drag_move=MOVED)).frames
    found = frames_of(folder / "clip")
    np.testing.assert_allclose(found, np.rint(expected * 255), rtol=0, atol=1)
    del asked["drag"]
    still = svd.render(picture, settings, Controls(**asked)).frames
    assert (found != np.rint(still * 255)).mean() > 0.1


# What the flags say


def controls_of(folder, *flags):
    order = order_from_flags(parser().parse_args(["animate", "p.png", "--output", "c.gif", *flags]))
    assert order.controls.drag == (Source.of(folder / "mask.png") if "--drag" in flags else None)
    return order.controls.drag_move, order.controls.camera


@pytest.mark.parametrize(
    ("flags", "drag", "camera"),
    [
        ("--drag-by -0.2 -.5", ObjectMove(-0.2, -0.5), None),
        ("--drag-by -1 1", ObjectMove(-1, 1), None),
        ("--drag-by 0 0", ObjectMove(), None),
        ("--drag-turn -360", ObjectMove(turn=-360), None),
        ("--drag-scale=0.25", ObjectMove(scale=0.25), None),
        ("--ease --drag-by 0.1 0", ObjectMove(0.1, ease=True), None),
        ("--drag-turn 3 --drag-scale 2", ObjectMove(scale=2, turn=3), None),
        ("--drag-by 0.1 0 --pan 0 0.2", ObjectMove(0.1), CameraMove(0, 0.2)),
        ("--drag-by 0.1 0 --roll 5 --ease", ObjectMove(0.1, ease=True), CameraMove(roll=5, ease=True)),
    ],
)
def test_flags_are_a_drag_and_one_ease_is_for_both(folder, flags, drag, camera):
    assert controls_of(folder, "--drag", f"{folder}/mask.png", *flags.split()) == (drag, camera)


def test_without_flags_there_is_none(folder):
    assert controls_of(folder) == (None, None)
    assert controls_of(folder, "--zoom", "2", "--ease") == (None, CameraMove(zoom=2, ease=True))


ALONE = "--drag-by, --drag-scale and --drag-turn move what --drag shows, which was not given: give it"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--drag {}/mask.png", "--drag says what moves and not where to: give --drag-by, --drag-scale or --drag-turn"),
        ("--drag {}/mask.png --ease", "--drag says what moves and not where to"),
        ("--drag {}/mask.png --pan 0.2 0", "--drag says what moves and not where to"),
        ("--drag-by 0.2 0", ALONE),
        ("--drag-scale 2 --ease", "(--drag-by|--ease)"),
        ("--drag-turn 5 --pan 0.2 0", ALONE),
        (f"{FLAGS} --depth {{}}/mask.png", "--depth is about --pan, --zoom or --roll, and none was given"),
        (f"{FLAGS} --zoom 2 --depth {{}}/mask.png", "a depth map says where things are, and a drag moves one of them"),
        ("--drag", "--drag: expected one argument"),
        ("--drag {}/mask.png --drag-by 0.2", "--drag-by: expected 2 arguments"),
        ("--drag {}/mask.png --drag-by 0.1 0.2 0.3", "unrecognized arguments: 0.3"),
        ("--drag {}/mask.png --drag-by right 0", "--drag-by: invalid float value: 'right'"),
        ("--drag {}/mask.png --drag-by 2 0", "drag right 2.0 is no number from -1 to 1: 0.2 is a fifth of the picture"),
        ("--drag {}/mask.png --drag-by 0 -1.5", "drag down -1.5 is no number from -1 to 1"),
        ("--drag {}/mask.png --drag-by nan 0", "drag right nan is no number"),
        ("--drag {}/mask.png --drag-scale 0", "drag scale 0.0 is no number from 0.25 to 4: 1.5 grows as what comes"),
        ("--drag {}/mask.png --drag-scale inf", "drag scale inf is no number"),
        ("--drag {}/mask.png --drag-turn 361", "drag turn 361.0 is no number from -360 to 360: degrees"),
        (f"{FLAGS} --loop --frames 4", "a drag changes its picture, and an end would hold the clip to it"),
        (f"{FLAGS} --end {{}}/other.png", "and an end would hold the clip to it: choose one of them"),
        (f"{FLAGS} --window 2", "a drag changes its picture, and windows would hold the clip to it"),
        (f"{FLAGS} --brush {{}}/mask.png", "a drag changes its picture, and a brush would hold the clip to it"),
        (
            f"--drag {{}}/other.png {WAY}",
            "mask .*other.png is 70x90 and the picture 150x100: paint it on the picture, at its size",
        ),
        (f"--drag {{}}/black.png {WAY}", "nothing is painted in the drag's mask: paint what moves in white"),
        (f"--drag {{}}/none.png {WAY}", "none.png"),
        (f"--drag {{}}/text.png {WAY}", "text.png is not a picture"),
        (f"--drag {{}}/masks {WAY}", "masks is a folder: give one picture file in it"),
    ],
)
def test_a_drag_that_does_not_fit_is_refused_before_weights_are_read(words, folder, unread, capsys, flags, message):
    (folder / "text.png").write_text("not a picture")
    (folder / "masks").mkdir()
    before = contents(folder)
    assert re.search(message, refusal(capsys, words("clip.gif", flags)))
    assert contents(folder) == before


def test_an_output_that_would_overwrite_the_mask_is_refused(words, folder, unread, capsys):
    Image.fromarray(painted(100, 150)).save(folder / "mask.webp")
    before = contents(folder)
    line = refusal(capsys, words("mask.webp", f"--drag {{}}/mask.webp {WAY}"))
    assert "would overwrite" in line and contents(folder) == before


# Recipes


@pytest.mark.parametrize(
    ("flags", "output", "camera"),
    [(FLAGS, "clip.mp4", None), (f"{FLAGS} --pan 0.2 0", "clip.gif", CameraMove(0.2, ease=True))],
)
def test_a_recipe_of_a_drag_renders_to_the_same_bytes(words, folder, loaded, flags, output, camera):
    assert main(words(output, flags)) == 0
    recorded, mask = read_recipe(folder / output).controls, Source.of(folder / "mask.png")
    assert recorded == dataclasses.replace(UNCONTROLLED, drag=mask, drag_move=MOVED, camera=camera)
    assert main(["animate", "--recipe", f"{folder}/{output}", "--output", f"{folder}/again-{output}"]) == 0
    assert (folder / f"again-{output}").read_bytes() == (folder / output).read_bytes()


def test_a_mask_that_was_moved_is_found_by_its_hash_and_one_that_was_changed_is_refused(words, folder, loaded, capsys):
    assert main(words("clip.gif", FLAGS)) == 0
    shutil.move(folder / "mask.png", folder / "moved.png")
    again = ["animate", "--recipe", f"{folder}/clip.gif", "--output", f"{folder}/again.gif"]
    line = refusal(capsys, again)
    assert re.search(r"the recipe's drag file .*mask.png does not exist, .*: give its own path with --drag ", line)
    assert main([*again, "--drag", f"{folder}/moved.png"]) == 0
    assert (folder / "again.gif").read_bytes() == (folder / "clip.gif").read_bytes()
    Image.fromarray(painted(100, 150)[:, ::-1].copy()).save(folder / "mask.png")
    line = refusal(capsys, again)
    assert re.search(r"mask.png has SHA-256 \w{12}, the recipe was made with \w{12} .*--ignore-hash", line)
    assert main([*again, "--ignore-hash"]) == 0
    assert (folder / "again.gif").read_bytes() != (folder / "clip.gif").read_bytes()
    assert read_recipe(folder / "again.gif").controls.drag == Source.of(folder / "mask.png")


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
        ("--drag-by 0.2 0", "--drag-by beside --recipe, which settles it: leave out either"),
        ("--drag-scale 1", "--drag-scale beside --recipe, which settles it"),
        ("--drag-turn 0 --ease", "--drag-turn, --ease beside --recipe, which settles it"),
        ("--drag {}/mask.png", "--drag beside --recipe, whose clip was made without: leave it out"),
    ],
)
def test_flags_of_a_drag_beside_a_recipe_are_refused(folder, checkpoint, unread, capsys, flags, message):
    recipe = recipe_file(folder, checkpoint, camera={"pan_x": 0.2})
    command = ["animate", "--recipe", recipe, "--output", f"{folder}/again.gif"]
    assert message in refusal(capsys, [*command, *flags.format(folder).split()])


MASK = {"path": "/dev/null", "sha256": "0" * 64}
BOTH = {"drag": MASK, "drag_move": {"right": 0.2}}


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"drag": MASK, "drag_move": {"scale": 0}}, "drag scale 0.0 is no number from 0.25 to 4"),
        ({"drag": MASK, "drag_move": "right"}, "recipe.controls.drag_move is 'right': needed an object"),
        ({"drag": MASK}, "a drag takes the mask of a thing and where it goes: give both drag and drag_move"),
        ({"drag_move": {"right": 0.2}}, "a drag takes the mask of a thing and where it goes"),
        ({**BOTH, "loop": True}, "a drag changes its picture, and an end would hold the clip to it"),
        ({**BOTH, "window": 2}, "a drag changes its picture, and windows would hold the clip to it"),
        ({**BOTH, "brush": MASK}, "a drag changes its picture, and a brush would hold the clip to it"),
        ({**BOTH, "camera": {}, "depth": MASK}, "a depth map says where things are, and a drag moves one of them"),
        (
            {**BOTH, "drag": {"path": "mask.png", "sha256": "0" * 64}},
            "the recipe's drag file mask.png does not exist",
        ),
        ({**BOTH, "drag": {"path": "/dev/zero", "sha256": "0" * 64}}, "/dev/zero is neither a file nor a folder"),
        ({**BOTH, "drag": "mask.png"}, "recipe.controls.drag is 'mask.png': needed an object"),
        ({**BOTH, "drag": {"path": "mask.png", "sha256": "0"}}, "recipe.drag.sha256 is not 64 hexadecimal"),
    ],
)
def test_a_recipe_with_a_damaged_drag_is_refused(folder, checkpoint, unread, capsys, controls, message):
    command = ["animate", "--recipe", recipe_file(folder, checkpoint, **controls), "--output", f"{folder}/again.gif"]
    before = contents(folder)
    assert re.search(message, refusal(capsys, command))
    assert contents(folder) == before


# Latents, the content filter, batches and the other commands


def test_latents_of_a_drag_decode_to_its_clip_and_keep_its_recipe(words, folder, loaded, checkpoint, capsys):
    assert main(words("clip.gif", f"{FLAGS} --save-latents {{}}/l.safetensors")) == 0
    places = ["--checkpoint", str(checkpoint), "--output", f"{folder}/again.gif", "--device", "cpu"]
    assert main(["decode", f"{folder}/l.safetensors", *places]) == 0
    assert (folder / "again.gif").read_bytes() == (folder / "clip.gif").read_bytes()
    assert read_recipe(folder / "again.gif").controls.drag_move == MOVED
    assert "no recipe" not in capsys.readouterr().err


SEEN = []


def watching(frames):
    """Refuses nothing and remembers what it was shown."""
    SEEN.append(np.array(frames))
    return [False] * len(frames)


def test_the_content_filter_sees_the_picture_and_the_clip_and_no_mask(words, folder, loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_drag_watchers", sys.modules[__name__])
    SEEN.clear()
    assert main(words("clip.gif", f"{FLAGS} --content-filter my_drag_watchers:watching")) == 0
    assert [each.shape for each in SEEN] == [(1, 100, 150, 3), (2, SIDE, SIDE, 3)]


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("batch {} --output {}/clips --checkpoint {}/none", ("--drag m.png", "--drag-by 0.1 0", "--drag-turn 5")),
        ("decode l.safetensors --output clip.gif", ("--drag m.png", "--drag-by 0.1 0", "--drag-scale 2")),
        ("plan --memory 8GiB", ("--drag m.png", "--drag-by 0.1 0", "--drag-scale 2")),
    ],
)
def test_commands_without_a_picture_of_their_own_know_no_drag(folder, capsys, monkeypatch, command, flags):
    """A mask is painted on one picture, and a batch has many."""
    monkeypatch.setattr(batch, "_connected", lambda *_: pytest.fail("workers were started"))
    for flag in flags:
        line = refusal(capsys, [*command.replace("{}", str(folder)).split(), *flag.split()])
        assert "unrecognized arguments: --drag" in line
    assert not (folder / "clips").exists()
