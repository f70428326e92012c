"""The invisible watermark is found in what was marked and nowhere else, and a content filter keeps clips from disk."""

import dataclasses
import json
import math
import re
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import a_recipe
from synthetic import TINY, write_checkpoint

from svd_core.cli import main, provenance, render
from svd_core.clip import Clip
from svd_core.errors import InputError
from svd_core.media import content_filter, read_recipe, reading, watermark, write_clip
from svd_core.media.content_filter import filter_named, installed_filters
from svd_core.media.reading import read_frames
from svd_core.media.watermark import CERTAIN, MESSAGE, detect, embed, library, obstacle, rank_sum_chance
from svd_core.recipe import Recipe

SIDE = 256
FLAT = np.full((1, SIDE, SIDE, 3), (0.7, 0.5, 0.2), np.float32)


def scene(frames=2):
    """Soft shapes in motion, with the grain of a photograph: (T, 256, 256, 3)."""
    across, down = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(0, 1, SIDE))
    still = np.stack([across, down, 0.5 + 0.4 * np.sin(6 * across + 4 * down)], axis=-1)
    moving = np.stack([np.roll(still, 2 * index, axis=1) for index in range(frames)])
    grain = np.random.default_rng(0).normal(0, 0.02, moving.shape)
    return np.clip(moving + grain, 0, 1).astype(np.float32)


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "imwatermark", None)


# The mark


def test_the_message_is_the_reference_s():
    assert "".join(map(str, MESSAGE)) == "101100111110110010010000011110111011000110011110"


def test_a_marked_clip_is_recognised_and_an_unmarked_one_is_not():
    frames = scene()
    marked = embed(frames)
    assert detect(marked).found
    assert not detect(frames).found
    assert marked.shape == frames.shape
    assert marked.dtype == np.float32
    assert marked.min() >= 0
    assert marked.max() <= 1
    assert -10 * math.log10(np.square(marked - frames).mean()) > 33, "decibels: what cannot be seen"
    np.testing.assert_array_equal(marked, embed(frames))


def test_the_mark_is_what_a_file_of_8_bits_holds():
    marked = embed(FLAT)
    np.testing.assert_array_equal(marked, (np.rint(marked * 255) / 255).astype(np.float32))


def test_a_photograph_whose_bits_all_lean_one_way_is_recognised():
    data = pytest.importorskip("skimage.data")
    frame = data.coffee()[None, 100:356, 150:406] / 255
    found = detect(embed(frame))
    assert found.found
    assert found.matched < 41, "counting matches alone would have missed it"
    assert not detect(frame).found


def test_flat_colour_holds_no_mark_and_is_not_taken_for_marked():
    assert not detect(FLAT).found
    assert not detect(embed(FLAT)).found


def test_the_mark_survives_the_encoder_of_mp4(tmp_path):
    import av

    path = write_clip(embed(scene(3)), tmp_path / "clip.mp4", 7)
    with av.open(str(path)) as movie:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in movie.decode(video=0)])
    assert detect(frames / 255).found


def test_our_votes_are_what_the_library_reads():
    from imwatermark import WatermarkDecoder

    frame = embed(scene(1))
    bgr = np.ascontiguousarray(np.rint(frame[0] * 255).astype(np.uint8)[..., ::-1])
    read = WatermarkDecoder("bits", len(MESSAGE)).decode(bgr, "dwtDct")
    assert detect(frame).matched == int((np.array(read, int) == MESSAGE).sum())


def test_the_chance_of_a_rank_sum_is_exact():
    message = np.array(MESSAGE, float)
    assert rank_sum_chance(message) == pytest.approx(1 / math.comb(48, sum(MESSAGE)))
    assert rank_sum_chance(1 - message) == rank_sum_chance(np.zeros(48)) == pytest.approx(1)
    scipy = pytest.importorskip("scipy.stats")
    votes = np.random.default_rng(1).random(48)
    expected = scipy.mannwhitneyu(votes[message == 1], votes[message == 0], alternative="greater", method="exact")
    assert rank_sum_chance(votes) == pytest.approx(expected.pvalue)


def test_a_detection_says_what_it_found():
    assert str(watermark.WatermarkMatch(48, 1e-13)) == "watermark found: 48 of 48 bits match, p = 1e-13"
    assert str(watermark.WatermarkMatch(25, CERTAIN)) == "no watermark found: 25 of 48 bits match, p = 1e-06"


def test_small_frames_and_what_is_no_clip_are_refused():
    with pytest.raises(InputError, match="frames of 128x64 are too small for a watermark"):
        embed(np.zeros((1, 64, 128, 3), np.float32))
    for shape in ((0, SIDE, SIDE, 3), (SIDE, SIDE, 3), (1, SIDE, SIDE, 4)):
        with pytest.raises(InputError, match="are no clip"):
            detect(np.zeros(shape, np.float32))


def test_without_the_library_one_line_says_what_to_install(no_library):
    assert library() == ""
    assert obstacle(1024, 576) == "a watermark needs the package invisible-watermark: pip install invisible-watermark"
    with pytest.raises(InputError, match="pip install invisible-watermark"):
        embed(FLAT)


def test_a_library_that_does_not_load_says_why(monkeypatch):
    monkeypatch.setattr(watermark, "library", lambda: "invisible-watermark 0.2.0")
    monkeypatch.setitem(sys.modules, "imwatermark.watermark", None)
    with pytest.raises(InputError, match=r"does not load \(.*imwatermark.watermark.*\): pip install"):
        embed(FLAT)


# The command line


class Renderer:
    """Stands where a model would."""

    config = TINY
    variant_note = ""

    def render_shot(self, shot, *, callback, **limits):
        return Clip(scene(), torch.zeros(2, 4, 32, 32), shot.settings, (700.0, 0.0), "kept")

    def decode_latents(self, latents, **limits):
        return scene()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "load_checkpoint", lambda path, **options: Renderer())
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "still.png")
    write_checkpoint(tmp_path / "tiny.safetensors")
    return tmp_path


def animate(folder, output, *flags):
    places = ("--checkpoint", f"{folder}/tiny.safetensors", "--output", f"{folder}/{output}", "--device", "cpu")
    return main(["animate", f"{folder}/still.png", *places, "--size", f"{SIDE}x{SIDE}", *flags])


def repeat(folder, recipe, output, *flags):
    return main(["animate", "--recipe", f"{folder}/{recipe}", "--output", f"{folder}/{output}", *flags])


def pngs(path):
    return np.stack([np.asarray(Image.open(each)) for each in sorted(path.iterdir())]) / 255


def test_a_clip_is_marked_unless_asked_otherwise(folder):
    assert animate(folder, "clip/") == 0
    assert detect(pngs(folder / "clip")).found
    assert read_recipe(folder / "clip").watermark == library()
    assert animate(folder, "plain/", "--no-watermark") == 0
    np.testing.assert_array_equal(pngs(folder / "plain") * 255, np.rint(scene() * 255))
    assert read_recipe(folder / "plain").watermark == ""


@pytest.mark.parametrize("flags", [(), ("--no-watermark",)])
def test_a_recipe_repeats_the_mark_or_its_absence(folder, flags):
    assert animate(folder, "clip.webp", "--save-latents", f"{folder}/latents.safetensors", *flags) == 0
    assert repeat(folder, "clip.webp", "again.webp") == 0
    places = ("--checkpoint", f"{folder}/tiny.safetensors", "--device", "cpu", "--output", f"{folder}/decoded.webp")
    assert main(["decode", f"{folder}/latents.safetensors", *places]) == 0
    written = {(folder / name).read_bytes() for name in ("clip.webp", "again.webp", "decoded.webp")}
    assert len(written) == 1


def test_a_recipe_s_mark_can_be_left_out(folder):
    assert animate(folder, "clip.webp") == 0
    assert repeat(folder, "clip.webp", "plain.webp", "--no-watermark") == 0
    assert animate(folder, "never.webp", "--no-watermark") == 0
    assert (folder / "plain.webp").read_bytes() == (folder / "never.webp").read_bytes()


def test_without_the_library_a_clip_is_written_with_a_note(folder, capsys, no_library):
    assert animate(folder, "clip/") == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "watermark" in line]
    assert notes == [f"note: {obstacle(SIDE, SIDE)}; the clip is written without"]
    assert read_recipe(folder / "clip").watermark == ""


def test_without_the_library_a_marked_clip_is_not_repeated_unmarked(folder, capsys, monkeypatch):
    assert animate(folder, "clip.gif") == 0
    monkeypatch.setitem(sys.modules, "imwatermark", None)
    capsys.readouterr()
    assert repeat(folder, "clip.gif", "again.gif") == 2
    line = "error: the recipe's clip is marked, and a watermark needs the package invisible-watermark: pip install .*\n"
    assert re.search(line + "$", capsys.readouterr().err)
    assert not (folder / "again.gif").exists()


def test_a_mark_of_another_version_is_said(folder, capsys):
    assert animate(folder, "clip.gif") == 0
    data = json.loads(read_recipe(folder / "clip.gif").to_json())
    data["watermark"] = "invisible-watermark 0.1"
    (folder / "old.json").write_text(json.dumps(data))
    assert repeat(folder, "old.json", "again.gif") == 0
    assert "note: the clip was marked by invisible-watermark 0.1, bytes may differ" in capsys.readouterr().err


def test_a_recipe_from_before_there_was_a_mark_says_that_there_is_none():
    data = json.loads(a_recipe().to_json())
    del data["watermark"]
    assert Recipe.from_json(json.dumps(data)) == dataclasses.replace(a_recipe(), watermark="")


def looked_for(path, capsys):
    """What the command says of a clip, after its name."""
    assert main(["watermark", str(path)]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{path}: ") and line.count("\n") == 1
    return line.removeprefix(f"{path}: ").strip()


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.webp", "folder/"])
def test_the_command_finds_the_mark_in_what_is_written(name, tmp_path, capsys):
    frames = scene(3)
    marked = write_clip(embed(frames), tmp_path / name, 7)
    assert re.fullmatch(
        r"watermark found: \d\d of 48 bits match, p = \S+ \(3 frames looked at\)", looked_for(marked, capsys)
    )
    plain = write_clip(frames, tmp_path / f"plain-{name}", 7)
    assert looked_for(plain, capsys).startswith("no watermark found: ")


def test_the_command_reads_a_picture_and_stops_where_memory_would(tmp_path, capsys, monkeypatch):
    folder = write_clip(embed(scene(3)), tmp_path / "folder/", 7)
    first = sorted(folder.glob("*.png"))[0]
    assert looked_for(first, capsys).endswith("(1 frame looked at)")
    monkeypatch.setattr(provenance, "MOST_VALUES", 2 * SIDE * SIDE * 3)
    assert looked_for(folder, capsys).endswith("(2 frames looked at)")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.mp4", None, "does not exist: check the path"),
        ("clip.txt", b"words", "is no clip: give a folder of PNGs or a file of .mp4"),
        ("clip.mp4", b"#EXTM3U\nhttp://example.com/", "cannot be read"),
        ("clip.webp", b"RIFF", "cannot be read"),
        ("clip.png", b"", "cannot be read"),
        ("empty/", None, "holds no frames: give a clip as svd_core wrote it"),
    ],
)
def test_what_holds_no_frames_is_refused_in_one_line(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    if content is not None:
        path.write_bytes(content)
    assert main(["watermark", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_bad_picture_in_a_folder_is_named(tmp_path, capsys):
    Image.new("RGB", (256, 256)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    Image.new("RGB", (256, 256)).save(tmp_path / "2.png")
    assert main(["watermark", str(tmp_path)]) == 2
    why = "it is damaged, or not what its name says"
    assert capsys.readouterr().err == f"error: {tmp_path}/1.png cannot be read ({why}): save the clip again\n"


def test_a_long_reason_is_cut_between_words(tmp_path, monkeypatch):
    def fail(_):
        raise OSError("seven letters " * 20)

    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    monkeypatch.setattr(reading, "frames_of", fail)
    with pytest.raises(InputError, match=r"0\.png cannot be read \(seven .* (seven|letters) \.\.\.\): save"):
        read_frames(tmp_path / "0.png", 2**30)


def test_frames_of_several_sizes_are_refused(tmp_path):
    for index, side in enumerate((256, 320)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{index}.png")
    with pytest.raises(InputError, match="holds frames of several sizes"):
        read_frames(tmp_path, 2**30)


# The content filter


def nothing(frames):
    return [False] * len(frames)


def second_frame(frames):
    return np.arange(len(frames)) == 1


def everything_blurred(frames):
    return frames * 0


def broken(frames):
    raise RuntimeError("no model\nfound")


def odd(frames):
    return "yes"


@pytest.fixture
def checkers(monkeypatch):
    """This module by the name that the flag is given."""
    monkeypatch.setitem(sys.modules, "my_checkers", sys.modules[__name__])


def test_a_checker_that_objects_to_nothing_lets_the_clip_be_written(folder, checkers):
    assert animate(folder, "clip/", "--content-filter", "my_checkers:nothing") == 0
    assert (folder / "clip").is_dir()


@pytest.mark.parametrize(
    ("checker", "line"),
    [
        (
            "my_checkers:second_frame",
            "the clip of .*still.png is refused by the content filter .* in frames 1: ",
        ),
        ("my_checkers:everything_blurred", "still.png is refused by the content filter my_checkers:everything_blurred"),
        ("my_checkers:broken", r"failed \(RuntimeError: no model found\)"),
        ("my_checkers:odd", r"answered with <U3 of shape \(\): it must give 1 booleans, or frames of shape \(1, 64"),
        ("my_checkers:absent", "content filter my_checkers:absent cannot be used"),
        ("no_such_module:flag", "content filter no_such_module:flag cannot be used"),
        ("my_checkers:SIDE", "is no function"),
        ("my_checkers", "is not module:function"),
    ],
)
def test_a_checker_that_objects_or_fails_keeps_the_clip_from_disk(folder, checkers, capsys, checker, line):
    before = sorted(folder.iterdir())
    assert animate(folder, "clip/", "--no-watermark", "--content-filter", checker) == 2
    errors = [each for each in capsys.readouterr().err.splitlines() if not each.startswith("note:")]
    assert len(errors) == 1
    assert re.search(line, errors[0])
    assert sorted(folder.iterdir()) == before


def test_a_checker_cannot_change_the_frames_behind_our_back():
    frames = scene()

    def scribbles(given):
        given[:] = 0
        return nothing(given)

    kept = frames.copy()
    np.testing.assert_array_equal(content_filter.ContentFilter("scribbles", scribbles).check(frames).frames, kept)


def test_blurred_frames_are_told_from_the_others(checkers):
    frames = scene(3)
    frames[1] = 0
    checked = filter_named("my_checkers:everything_blurred").check(frames)
    assert checked.blurred
    assert checked.flagged == (0, 2)
    assert not checked.frames.any()


def test_installed_packages_offer_checkers(monkeypatch, checkers):
    offered = [
        EntryPoint("b", "my_checkers:nothing", content_filter.GROUP),
        EntryPoint("a", "my_checkers:second_frame", content_filter.GROUP),
    ]
    monkeypatch.setattr(content_filter, "entry_points", lambda group: [each for each in offered if each.group == group])
    assert [each.name for each in installed_filters()] == ["a", "b"]
    offered.append(EntryPoint("c", "my_checkers:absent", content_filter.GROUP))
    with pytest.raises(InputError, match="content filter c cannot be loaded"):
        installed_filters()
