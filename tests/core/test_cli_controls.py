"""Control over motion on the command line: each flag is what the library does, and each recipe does it again."""

import dataclasses
import json
import re
import shutil
import sys
from functools import cache

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence
from recipes import a_recipe
from safetensors.torch import load_file
from synthetic import write_checkpoint

from svd_core import Controls
from svd_core.cli import batch, commands, main, render
from svd_core.loading import load_checkpoint
from svd_core.media import fit_image, load_image, read_recipe, write_clip
from svd_core.recipe import FRAME_FILES, UNCONTROLLED, Source
from svd_core.settings import Settings

SIDE = 64
SIZE = f"{SIDE}x{SIDE}"


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


@pytest.fixture
def unread(monkeypatch):
    """Reading weights fails the test."""
    monkeypatch.setattr(render, "load_checkpoint", lambda *_, **__: pytest.fail("weights were read"))


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def movie(seed, count=4):
    """Smooth frames (T, H, W, 3) in [0, 1] of the clips' size."""
    coarse = noise(seed, count, 4, 4).repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    return coarse.astype(np.float32) / 255


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    """A picture, and for each control what it is made from: the masks set the right half free."""
    made = tmp_path_factory.mktemp("materials")
    Image.fromarray(noise(0, 100, 150)).save(made / "still.png")
    Image.fromarray(noise(1, 90, 70)).save(made / "end.png")
    Image.fromarray(half(100, 150)).save(made / "mask.png")
    Image.fromarray(half(SIDE, SIDE)).save(made / "fitted.png")
    for name in ("before", "before.mp4", "before.gif"):
        write_clip(movie(2), made / name, 7, a_recipe())
    return made


@pytest.fixture
def folder(materials, tmp_path):
    return shutil.copytree(materials, tmp_path, dirs_exist_ok=True)


def half(height, width):
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 255
    return mask


@pytest.fixture
def animate(folder, checkpoint):
    """Makes a clip in the folder, in one step unless flags ask for more."""

    def run(output, *flags):
        places = ["--checkpoint", str(checkpoint), "--output", f"{folder}/{output}", "--device", "cpu", "--size", SIZE]
        given = [word.format(folder) for flag in flags for word in flag.split()]
        return main(["animate", f"{folder}/still.png", *places, "--steps", "1", *given])

    return run


def again(folder, recipe, output, *flags):
    """Render the clip of a recipe again, into the same folder."""
    return main(["animate", *flags, "--recipe", f"{folder}/{recipe}", "--output", f"{folder}/{output}"])


def frames_of(path):
    return np.stack([np.asarray(Image.open(each)) for each in sorted(path.glob("*.png"))])


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def refusal(capsys, argv):
    """The one line on stderr that a refused command leaves."""
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", captured.err)
    return captured.err


# What is rendered


def rendered(svd, folder, frames, controls, **settings):
    chosen = Settings(frames=frames, width=SIDE, height=SIDE, **{"steps": 1, **settings})
    return np.rint(svd.render(load_image(folder / "still.png"), chosen, Controls(**controls)).frames * 255)


@pytest.fixture(scope="module")
def uncontrolled(svd, materials):
    """The clip of a number of frames without controls."""
    return cache(lambda frames: rendered(svd, materials, frames, {}))


def fitted_end(folder, fit="crop", background=(255, 255, 255)):
    return fit_image(load_image(folder / "end.png", background), SIDE, SIDE, fit, background).image


def read(path):
    """All frames of a clip, without the reader under test."""
    if path.is_dir():
        return frames_of(path)
    if path.suffix == ".gif":
        with Image.open(path) as animation:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)])
    with av.open(str(path)) as opened:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)])


@pytest.mark.parametrize(
    ("frames", "flags", "controls"),
    [
        (4, "--loop", lambda _: {"loop": True}),
        (4, "--loop --sequential", lambda _: {"loop": True, "sequential": True}),
        (3, "--end {}/end.png", lambda folder: {"end": fitted_end(folder)}),
        (3, "--end {}/end.png --sequential", lambda folder: {"end": fitted_end(folder), "sequential": True}),
        (2, "--brush {}/fitted.png", lambda _: {"brush": half(SIDE, SIDE) / 255}),
        (2, "--brush {}/fitted.png --feather 0", lambda _: {"brush": half(SIDE, SIDE) / 255, "feather": 0}),
        (4, "--window 0", lambda _: {"window": 3}),
        (3, "--window 2 --colour-hold 0.25", lambda _: {"window": 2, "colour_hold": 0.25}),
        (4, "--window 3 --fused --overlap 1", lambda _: {"window": 3, "fused": True, "overlap": 1}),
        (2, "--unstick 0.5", lambda _: {"unstick": 0.5}),
        (2, "--motion-bucket-points 0:10,1:250", lambda _: {"motion_bucket": [(0, 10), (1, 250)]}),
        (3, "--augmentation-points 0:0,0.5:1", lambda _: {"augmentation": [(0, 0), (0.5, 1)]}),
    ],
)
def test_a_flag_is_what_the_library_calls_it(animate, folder, svd, loaded, uncontrolled, frames, flags, controls):
    assert animate("clip/", flags, f"--frames {frames}") == 0
    found = frames_of(folder / "clip")
    np.testing.assert_array_equal(found, rendered(svd, folder, frames, controls(folder)))
    assert (found != uncontrolled(frames)[: len(found)]).mean() > 0.1


def test_an_end_is_fitted_as_the_still_is(animate, folder, svd, loaded):
    assert animate("clip/", "--frames 3 --end {}/end.png --fit pad --background #204060") == 0
    how = {"fit": "pad", "background": (32, 64, 96)}
    padded = {"end": fitted_end(folder, **how)}
    assert (padded["end"][:, 0] == np.float32((32, 64, 96)) / np.float32(255)).all()
    np.testing.assert_array_equal(frames_of(folder / "clip"), rendered(svd, folder, 3, padded, **how))


@pytest.mark.parametrize(
    ("name", "how", "shared"),
    [
        ("before", "--window 2", 1),
        ("before", "--window 3 --fused --overlap 2", 2),
        ("before.mp4", "--window 3 --fused --overlap 2", 2),
        ("before.gif", "--window 2", 1),
    ],
)
def test_a_clip_goes_on_from_the_last_frames_of_a_file(animate, folder, svd, loaded, name, how, shared):
    controls = {"window": shared + 1, "fused": shared == 2, "overlap": shared if shared == 2 else 0}
    controls["continued"] = read(folder / name)[-shared:].astype(np.float32) / 255
    assert animate("clip/", how, f"--continue {{}}/{name} --frames 4") == 0
    found = frames_of(folder / "clip")
    np.testing.assert_array_equal(found, rendered(svd, folder, 4, controls))
    assert (found != rendered(svd, folder, 4, {**controls, "continued": None})).any()


def test_one_picture_of_the_size_can_be_gone_on_from(animate, folder, svd, loaded):
    Image.fromarray(noise(5, SIDE, SIDE)).save(folder / "one.png")
    assert animate("clip/", "--window 2 --continue {}/one.png") == 0
    controls = {"window": 2, "continued": load_image(folder / "one.png")[None]}
    np.testing.assert_array_equal(frames_of(folder / "clip"), rendered(svd, folder, 3, controls))


# Masks


BOX = (slice(28, 71), slice(40, 101))
"""Rows and columns of the still that the masks below set free."""


def box(height, width, rows, columns):
    mask = np.zeros((height, width), np.uint8)
    mask[rows, columns] = 255
    return mask


def moved(folder, name, **how):
    """The pixels (H, W) of a written clip that are not the fitted still's in every frame."""
    still = fit_image(load_image(folder / "still.png", how.get("background", (255, 255, 255))), SIDE, SIDE, **how)
    frames = frames_of(folder / name)
    return (frames != np.rint(still.image * 255)).any(axis=(0, -1)), still.box


def overlaps(free, length, start, scale, reach):
    """The pixels along a side whose centre is within `reach` pixels of the clip of a free part of the picture."""
    centres = start + (np.arange(length) + 0.5) * scale
    return (centres + reach * scale > free.start) & (centres - reach * scale < free.stop)


@pytest.mark.parametrize(
    ("fit", "scale", "start"),
    [
        ("crop", (100 / 64, 100 / 64), (0, 25)),
        ("pad", (150 / 64, 150 / 64), (-(64 - 43) // 2 * 150 / 64, 0)),
        ("stretch", (100 / 64, 150 / 64), (0, 0)),
    ],
)
def test_a_mask_goes_through_the_picture_s_own_fit_and_frees_nothing_beside(animate, folder, loaded, fit, scale, start):
    Image.fromarray(box(100, 150, *BOX)).save(folder / "mask.png")
    assert animate("clip/", f"--frames 2 --feather 0 --fit {fit} --brush {{}}/mask.png") == 0
    free, _ = moved(folder, "clip", fit=fit)
    inside, around = (
        np.ix_(*(overlaps(part, SIDE, *each, reach) for part, *each in zip(BOX, start, scale, strict=True)))
        for reach in (-0.5, 1.5)
    )
    assert inside[0].size > 10 and inside[1].size > 10
    assert free[inside].mean() > 0.99  # a pixel may be the still's by chance
    beside = np.ones_like(free)
    beside[around] = False
    assert not free[beside].any()


def test_pad_bars_and_transparent_parts_stand_still(animate, folder, loaded):
    mask = np.full((100, 150, 4), 255, np.uint8)
    mask[:, :75, 3] = 0
    Image.fromarray(mask).save(folder / "mask.png")
    assert animate("clip/", "--frames 2 --feather 0 --fit pad --brush {}/mask.png --background #00ff00") == 0
    free, (left, top, right, bottom) = moved(folder, "clip", fit="pad", background=(0, 255, 0))
    assert (left, right, bottom - top) == (0, SIDE, 43)
    assert not free[:top].any() and not free[bottom:].any()
    assert not free[:, : SIDE // 2 - 1].any()
    assert free[top + 1 : bottom - 1, SIDE // 2 + 1 :].mean() > 0.99


@pytest.mark.parametrize("mode", ["1", "P"])
def test_a_mask_may_be_any_kind_of_picture(animate, folder, svd, loaded, mode):
    Image.fromarray(half(SIDE, SIDE)).convert(mode).save(folder / "mask.png")
    assert animate("clip/", "--frames 2 --brush {}/mask.png") == 0
    expected = rendered(svd, folder, 2, {"brush": half(SIDE, SIDE) / 255})
    np.testing.assert_array_equal(frames_of(folder / "clip"), expected)


# Recipes


def recipe_file(folder, checkpoint, **controls):
    """A recipe of the scene with these fields of its controls: the path of its file."""
    data = json.loads(dataclasses.replace(a_recipe(), checkpoint=Source.of(checkpoint)).to_json())
    data["image"] = dataclasses.asdict(Source.of(folder / "still.png"))
    data["controls"] |= controls
    (folder / "recipe.json").write_text(json.dumps(data))
    return f"{folder}/recipe.json"


@pytest.mark.parametrize(
    ("output", "flags"),
    [
        ("clip.mp4", "--loop --frames 4 --sequential"),
        ("clip.gif", "--unstick 0.5 --motion-bucket 40 --augmentation 0.1"),
        ("clip.webm", "--end {}/end.png --brush {}/mask.png --feather 2 --unstick 1 --motion-bucket-points 0:3,1:99"),
        ("clip.webp", "--window 0 --frames 4 --continue {}/before --colour-hold 0.5 --augmentation-points 0:0,1:0.5"),
        ("clip.gif", "--window 3 --fused --overlap 2 --frames 4 --continue {}/before.mp4 --sigmas 50,5,0 --unstick 1"),
    ],
)
def test_a_recipe_of_controls_renders_to_the_same_bytes(animate, folder, loaded, output, flags):
    assert animate(output, flags) == 0
    assert again(folder, output, f"again-{output}") == 0
    assert (folder / f"again-{output}").read_bytes() == (folder / output).read_bytes()


def test_a_recipe_holds_the_controls_and_the_settings_that_were_asked_for(animate, folder, loaded):
    asked = "--frames 4 --unstick 1 --motion-bucket 40 --augmentation 0.1 --feather 9"
    assert animate("clip.gif", asked, "--brush {}/mask.png --end {}/end.png --motion-bucket-points 0:3,1:99.5") == 0
    recipe = read_recipe(folder / "clip.gif")
    assert (recipe.settings.motion_bucket, recipe.settings.augmentation) == (40, 0.1)
    assert recipe.sigmas[0] == pytest.approx(50.0)
    assert recipe.controls == dataclasses.replace(
        UNCONTROLLED,
        brush=Source.of(folder / "mask.png"),
        end=Source.of(folder / "end.png"),
        feather=9,
        unstick=1.0,
        motion_bucket=((0.0, 3.0), (1.0, 99.5)),
    )
    assert animate("more.gif", "--window 0 --frames 4 --continue {}/before") == 0
    source = Source.of(folder / "before", FRAME_FILES)
    assert read_recipe(folder / "more.gif").controls == dataclasses.replace(UNCONTROLLED, window=3, continued=source)
    assert animate("plain.gif") == 0
    assert read_recipe(folder / "plain.gif").controls == UNCONTROLLED


def test_the_model_s_own_window_is_repeated_where_a_variant_was_chosen(animate, folder):
    assert animate("clip.gif", "--variant svd --window 0 --frames 14") == 0
    assert read_recipe(folder / "clip.gif").controls.window == 14
    assert again(folder, "clip.gif", "again.gif") == 0
    assert (folder / "again.gif").read_bytes() == (folder / "clip.gif").read_bytes()


FILES = {
    "--frames 2 --brush {}/mask.png": ("brush", "mask.png"),
    "--frames 2 --end {}/end.png": ("end", "end.png"),
    "--frames 2 --window 2 --continue {}/before": ("continue", "before"),
    "--frames 2 --window 2 --continue {}/before.gif": ("continue", "before.gif"),
}


@pytest.mark.parametrize("flags", FILES)
def test_a_file_of_a_control_is_found_by_its_hash_where_it_was_moved(
    animate, folder, loaded, capsys, monkeypatch, flags
):
    flag, name = FILES[flags]
    monkeypatch.chdir(folder)
    assert animate("clip.gif", flags.replace("{}/", "")) == 0
    shutil.move(folder / name, folder / f"moved-{name}")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    line = refusal(capsys, ["animate", "--recipe", "../clip.gif", "--output", "../again.gif"])
    said = rf"the recipe's \w+ file {name} does not exist, seen from the folder .*elsewhere: give its own path with "
    assert re.search(f"{said}--{flag} ", line)
    assert again(folder, "clip.gif", "again.gif", f"--{flag}", f"../moved-{name}") == 0
    assert (folder / "again.gif").read_bytes() == (folder / "clip.gif").read_bytes()


def change(path, height=None):
    """Other frames or pixels; in a folder, of its last PNG alone."""
    if path.suffix == ".gif":
        path.unlink()
        write_clip(movie(9), path, 7, a_recipe())
        return
    path = max(path.glob("*.png")) if path.is_dir() else path
    with Image.open(path) as picture:
        width, rows = picture.size
    Image.fromarray(noise(9, height or rows, width)).save(path)


@pytest.mark.parametrize("flags", FILES)
def test_a_changed_file_of_a_control_is_refused_unless_told_to_ignore_that(
    animate, folder, loaded, monkeypatch, capsys, flags
):
    _, name = FILES[flags]
    assert animate("clip.gif", flags) == 0
    change(folder / name, height=33 if name == "mask.png" else None)
    before = contents(folder)
    with monkeypatch.context() as patched:
        patched.setattr(render, "load_checkpoint", lambda *_, **__: pytest.fail("weights were read"))
        command = ["animate", "--recipe", f"{folder}/clip.gif", "--output", f"{folder}/again.gif"]
        line = refusal(capsys, command)
    assert re.search(rf"{name} has SHA-256 \w{{12}}, the recipe was made with \w{{12}} .*--ignore-hash", line)
    assert contents(folder) == before
    change(folder / name, height=100 if name == "mask.png" else None)
    assert again(folder, "clip.gif", "again.gif", "--ignore-hash") == 0
    recorded = read_recipe(folder / "again.gif").controls.files.values()
    assert list(recorded) == [Source.of(folder / name, FRAME_FILES)]


def test_a_recipe_knows_a_folder_by_the_pngs_that_are_its_frames(animate, folder, loaded, capsys):
    assert animate("clip.gif", "--frames 2 --window 2 --continue {}/before") == 0
    Image.new("RGB", (SIDE, SIDE)).save(folder / "before" / ".hidden.png")
    (folder / "before" / "notes.txt").write_text("beside them")
    assert again(folder, "clip.gif", "again.gif") == 0
    assert (folder / "again.gif").read_bytes() == (folder / "clip.gif").read_bytes()
    Image.new("RGB", (SIDE, SIDE)).save(folder / "before" / "99999999.png")
    line = refusal(capsys, ["animate", "--recipe", f"{folder}/clip.gif", "--output", f"{folder}/more.gif"])
    assert "before has SHA-256" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--end {}/end.png", "--end beside --recipe, whose clip was made without: leave it out"),
        ("--continue {}/before", "--continue beside --recipe, whose clip was made without: leave it out"),
        ("--brush {}/none.png", "picture .*none.png does not exist|none.png cannot be read"),
        ("--brush {}/end.png", "end.png has SHA-256"),
        ("--loop", "--loop beside --recipe, which settles it: leave out either"),
        ("--unstick 0.5", "--unstick beside --recipe, which settles it"),
        ("--motion-bucket-points 0:1", "--motion-bucket-points beside --recipe, which settles it"),
        ("--colour-hold 1", "--colour-hold beside --recipe, which settles it"),
    ],
)
def test_what_a_recipe_has_no_use_for_is_refused(folder, checkpoint, unread, capsys, flags, message):
    repeated = recipe_file(folder, checkpoint, brush=dataclasses.asdict(Source.of(folder / "mask.png")))
    before = contents(folder)
    command = ["animate", "--recipe", repeated, "--output", f"{folder}/again.gif"]
    assert re.search(message, refusal(capsys, [*command, *flags.format(folder).split()]))
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"loop": True, "window": 2}, "an end is not known to windows"),
        ({"unstick": 3.0}, "un-stick strength 3.0 is outside 0 to 1"),
        ({"sequential": True}, "sequential is a way to reach an end"),
        ({"feather": 10**12}, "feather 1000000000000 is above 256 pixels"),
        ({"window": 10**19, "fused": True}, "windows of 10000000000000000000 frames are longer than the clip of 4"),
        ({"motion_bucket": [[0, 0], [1, 5000]]}, "the motion bucket curve goes from 0 to 5000"),
        ({"augmentation": []}, "without points|needed|give"),
        ({"loop": "yes"}, "recipe.controls.loop is 'yes': needed a modest bool"),
        ({"end": {"path": "end.png", "sha256": "0"}}, "recipe.end.sha256 is not 64 hexadecimal digits"),
        ({"end": {"path": "/dev/zero", "sha256": "0" * 64}}, "/dev/zero is neither a file nor a folder"),
        ({"end": {"path": "\0", "sha256": "0" * 64}}, "recipe.controls.end.path"),
    ],
)
def test_a_recipe_with_damaged_controls_is_refused(folder, checkpoint, unread, capsys, controls, message):
    repeated = recipe_file(folder, checkpoint, **controls)
    before = contents(folder)
    command = ["animate", "--recipe", repeated, "--output", f"{folder}/again.gif"]
    assert re.search(message, refusal(capsys, command))
    assert contents(folder) == before


# Refusals


def bad_files(folder):
    (folder / "text.png").write_text("not a picture")
    (folder / "clip.txt").write_text("not a clip")
    (folder / "empty").mkdir()
    Image.fromarray(noise(3, SIDE, SIDE)).save(folder / "one.png")
    (folder / "mixed").mkdir()
    for index, name in enumerate(("one.png", "end.png")):
        shutil.copy(folder / name, folder / "mixed" / f"{index}.png")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--loop --end {}/end.png", "choose one of them"),
        ("--loop --window 2", "leave out window, or loop and end"),
        ("--loop --frames 2", "a loop of 2 frames cannot leave the picture and come back: ask for at least 4"),
        ("--loop", "a loop of 3 frames cannot leave"),
        ("--loop --frames 4 --sequential --sampler heun", "sequential takes Euler steps of its own"),
        ("--sequential", "sequential is a way to reach an end: give an end picture or loop"),
        ("--end {}/end.png --frames 1", "a clip of 1 frame has no end beside its start"),
        ("--end {}/text.png", "text.png is not a picture"),
        ("--end {}/none.png", "none.png"),
        ("--end {}/before", "before is a folder: give one picture file in it"),
        ("--brush {}/text.png", "text.png is not a picture"),
        ("--brush {}/end.png", "mask .*end.png is 70x90 and the picture 150x100: paint it on the picture, at its size"),
        ("--brush {}/mask.png --feather -1", "feather -1 is not a whole number of 0 or more"),
        ("--brush {}/mask.png --feather 257", "feather 257 is above 256 pixels"),
        ("--fused", "fused and overlap are about windows: give a window"),
        ("--window 2 --overlap 2", "an overlap of 2 for windows in turns, which share one frame"),
        ("--window 1", "the overlap must be at least 1 and shorter than the window"),
        ("--window 2 --colour-hold 1.5", "colour hold 1.5 is outside 0 to 1"),
        ("--continue {}/before", "a clip is continued in windows: give a window"),
        ("--window 2 --continue {}/still.png", "a frame to go on from is 150x100 and the clip 64x64"),
        ("--window 2 --continue {}/text.png", "text.png cannot be read"),
        ("--window 2 --continue {}/clip.txt", "clip.txt is no clip: give a folder of PNGs or a file of"),
        ("--window 2 --continue {}/none.mp4", "none.mp4"),
        ("--window 2 --continue {}/empty", "empty holds no frames"),
        ("--window 3 --fused --overlap 2 --continue {}/mixed", "mixed holds frames of several sizes"),
        ("--window 3 --fused --overlap 2 --continue {}/one.png", "has 1 frames and windows share 2"),
        ("--window 99999999999999999999 --fused --continue {}/before", "are longer than the clip of 3"),
        ("--unstick 3", "un-stick strength 3.0 is outside 0 to 1"),
        ("--unstick 1 --sigmas 700,600,0", "un-stick starts at sigma 50, and the last level"),
        ("--motion-bucket-points 0:0,0.5:5000,1:0", "the motion bucket curve goes from 0 to 5000"),
        ("--augmentation-points 0:0,1:11", "the augmentation curve goes from 0 to 11: values must lie within 0 to 10"),
        ("--motion-bucket-points 0:0,1:nan", "curve of 0, nan: needed numbers"),
        ("--motion-bucket-points 1:1,0:2", "positions must rise, from 0 to 1 at most"),
        ("--motion-bucket-points 0:1:2", "'0:1:2' is not position:value pairs"),
    ],
)
def test_controls_that_do_not_fit_are_refused_before_weights_are_read(
    animate, folder, checkpoint, unread, capsys, flags, message
):
    bad_files(folder)
    before = contents(folder)
    places = ["--checkpoint", str(checkpoint), "--output", f"{folder}/clip.gif", "--size", SIZE, "--device", "cpu"]
    line = refusal(capsys, ["animate", f"{folder}/still.png", *places, *flags.format(folder).split()])
    assert re.search(message, line)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "flags",
    [
        "--output {}/mask.webp --brush {}/mask.webp",
        "--output {}/end.gif --end {}/link.gif",
        "--output {}/before.mp4 --window 2 --continue {}/before.mp4",
        "--output {}/before/ --window 2 --continue {}/before",
        "--output {}/before/clip.gif --window 2 --continue {}/before",
        "--output {}/clip.gif --save-latents {}/before/l.safetensors --window 2 --continue {}/before",
    ],
)
def test_an_output_that_would_overwrite_a_control_s_file_is_refused(folder, checkpoint, unread, capsys, flags):
    Image.fromarray(half(100, 150)).save(folder / "mask.webp")
    Image.new("RGB", (70, 90)).save(folder / "end.gif")
    (folder / "link.gif").symlink_to(folder / "end.gif")
    before = contents(folder)
    given = flags.replace("{}", str(folder)).split()
    line = refusal(capsys, ["animate", f"{folder}/still.png", "--checkpoint", str(checkpoint), *given])
    assert "would overwrite" in line
    assert contents(folder) == before


DECODE, PLAN = "decode l.safetensors --output clip.gif", "plan --memory 8GiB"


@pytest.mark.parametrize("command", [DECODE, PLAN])
@pytest.mark.parametrize("control", ["--unstick", "--brush", "--continue", "--colour-hold", "--motion-bucket-points"])
def test_decode_and_plan_know_no_controls_of_what_moves(capsys, command, control):
    assert f"unrecognized arguments: {control}" in refusal(capsys, [*command.split(), control])


@pytest.mark.parametrize("control", ["--loop", "--end", "--sequential", "--window", "--fused", "--overlap"])
def test_decode_knows_no_controls_of_length(capsys, control):
    assert f"unrecognized arguments: {control}" in refusal(capsys, [*DECODE.split(), control])


# Latents


@pytest.fixture
def decoded(animate, folder, checkpoint, svd, monkeypatch):
    """Make a clip and decode its latents: the flags of the clip."""
    monkeypatch.setattr(commands, "open_model", lambda *_, **__: svd)

    def run(*flags):
        assert animate("clip.gif", "--frames 2", *flags, "--save-latents {}/l.safetensors") == 0
        places = ["--checkpoint", str(checkpoint), "--output", f"{folder}/again.gif", "--device", "cpu"]
        assert main(["decode", f"{folder}/l.safetensors", *places]) == 0
        return (folder / "clip.gif").read_bytes() == (folder / "again.gif").read_bytes()

    return run


def test_latents_of_a_loop_decode_to_the_loop_and_keep_its_recipe(decoded, folder, svd, loaded, capsys):
    assert decoded("--loop --frames 4")
    assert read_recipe(folder / "again.gif").controls.loop
    latents = load_file(folder / "l.safetensors")["latent"]
    assert len(latents) == 3
    assert (svd.decode_latents(latents) != svd.decode_latents(latents, circular=True)).any()
    assert "will carry no recipe" not in capsys.readouterr().err


def test_latents_of_another_loop_are_decoded_as_a_loop_although_the_recipe_is_dropped(
    animate, folder, svd, loaded, monkeypatch, capsys
):
    other = write_checkpoint(folder / "other.safetensors", seed=1)
    monkeypatch.setattr(commands, "open_model", lambda *_, **__: svd)
    assert animate("clip/", "--loop --frames 4", "--save-latents {}/l.safetensors") == 0
    places = ["--checkpoint", str(other), "--output", f"{folder}/again/", "--device", "cpu"]
    assert main(["decode", f"{folder}/l.safetensors", *places]) == 0
    assert "note: the clip will carry no recipe" in capsys.readouterr().err
    np.testing.assert_array_equal(frames_of(folder / "again"), frames_of(folder / "clip"))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--brush {}/mask.png", "--brush keeps pixels of its picture"),
        ("--window 2", "--colour-hold changes pixels"),
        ("--window 2 --colour-hold 0.1 --brush {}/mask.png", "--brush keeps pixels of its picture"),
    ],
)
def test_latents_of_what_is_finished_after_decoding_carry_no_recipe_and_that_is_said(
    decoded, folder, loaded, capsys, flags, why
):
    assert not decoded(flags)
    said = f"note: the clip will carry no recipe, for rendering it would give other frames: {why}\n"
    assert said in capsys.readouterr().err
    line = refusal(capsys, ["animate", "--recipe", f"{folder}/again.gif", "--output", f"{folder}/more.gif"])
    assert "carries no recipe" in line


@pytest.mark.parametrize(
    "flags", ["--window 2 --colour-hold 0", "--end {}/end.png", "--unstick 1", "--motion-bucket-points 0:1,1:9"]
)
def test_latents_of_other_controls_keep_their_recipe(decoded, loaded, flags):
    assert decoded(flags)


# The content filter


def reddish(frames):
    """Objects to pictures that are red."""
    return [bool(frame[..., 0].mean() > 0.9 and frame[..., 1:].mean() < 0.1) for frame in frames]


@pytest.mark.parametrize(
    ("flags", "name"),
    [("--frames 2 --end {}/end.png", "end.png"), ("--window 2 --frames 2 --continue {}/far.png", "far.png")],
)
def test_the_content_filter_sees_the_end_picture_and_what_is_continued(
    animate, folder, loaded, monkeypatch, capsys, flags, name
):
    monkeypatch.setitem(sys.modules, "my_checkers", sys.modules[__name__])
    checked = f"{flags} --content-filter my_checkers:reddish"
    assert animate("far/", "--frames 1") == 0
    (folder / "far" / "frame_0000.png").rename(folder / "far.png")
    shutil.rmtree(folder / "far")
    assert animate("fine.gif", checked) == 0
    with Image.open(folder / name) as picture:
        size = picture.size
    Image.new("RGB", size, "red").save(folder / name)
    before = contents(folder)
    monkeypatch.setattr(render, "load_checkpoint", lambda *_, **__: pytest.fail("weights were read"))
    capsys.readouterr()
    assert animate("clip.gif", checked) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*{name} is refused by the content filter my_checkers:reddish[^\n]*\n", err)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--feather", "3"), "--feather is about --brush, which was not given"),
        (("--colour-hold", "0.5"), "--colour-hold is about --window, which was not given"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(folder, capsys, flags, said):
    assert said in refusal(capsys, ["animate", f"{folder}/still.png", "--output", f"{folder}/clip.gif", *flags])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--unstick", "3"), "un-stick strength 3.0 is outside 0 to 1"),
        (("--loop", "--frames", "2"), "a loop of 2 frames"),
        (("--window", "9"), "windows of 9 frames are longer than the clip"),
        (("--motion-bucket-points", "0:2000"), "the motion bucket curve goes from 2000"),
    ],
)
def test_a_batch_refuses_before_it_starts_a_worker(folder, checkpoint, capsys, monkeypatch, flags, said):
    monkeypatch.setattr(batch, "_connected", lambda *_: pytest.fail("workers were started"))
    places = ("--output", f"{folder}/clips", "--checkpoint", str(checkpoint))
    assert said in refusal(capsys, ["batch", str(folder), *places, *flags])
    assert not (folder / "clips").exists()


@pytest.mark.parametrize("flag", ["motion-bucket-points", "augmentation-points", "guidance-points", "sigmas"])
def test_more_values_than_a_recipe_keeps_are_refused(folder, capsys, flag):
    many = [f"{index / 2000}:1" if "points" in flag else str(2000 - index) for index in range(1002)]
    line = refusal(
        capsys, ["animate", f"{folder}/still.png", "--output", f"{folder}/clip.gif", f"--{flag}", ",".join(many)]
    )
    assert f"{flag.replace('-', '_')} has 1002 values: give at most 1001" in line
