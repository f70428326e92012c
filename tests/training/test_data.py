"""Clips from folders and from the synthetic world, and what is said about those that cannot be used."""

import shutil
import struct

import numpy as np
import pytest
import torch
from moving_square import square, write_pngs
from PIL import Image

from svd_core.errors import InputError
from svd_core.media import load_image, write_clip
from training import data
from training.data import ClipFolder, WorldDataset, as_pixels, open_folder, open_source, training_seed, with_rockets
from training.recipe import Data
from training.world import HELD_OUT_SEEDS, TRAIN_SEEDS

FRAMES = 3


def restored(pixels: torch.Tensor) -> np.ndarray:
    return (pixels.permute(0, 2, 3, 1).numpy() + 1) * 127.5


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a/"])
def test_every_kind_of_file_gives_its_frames(tmp_path, name):
    clip = square(0, frames=5)
    write_clip(clip.astype(np.float32) / 255, f"{tmp_path}/{name}", fps=10)
    folder = open_folder(tmp_path, frames=5)
    found = folder.clip(0)
    assert found.pixels.shape == (5, 3, 64, 64)
    assert found.pixels.min() >= -1 and found.pixels.max() <= 1
    assert found.fps == (data.DEFAULT_FPS if name == "a/" else pytest.approx(10))
    assert abs(restored(found.pixels) - clip).mean() < 8, "lossy, but these frames in this order"


def test_bad_clips_are_each_named_and_skipped(tmp_path):
    for index in range(2):
        write_pngs(tmp_path / f"good{index}", square(index))
    write_pngs(tmp_path / "short", square(0, frames=2))
    write_pngs(tmp_path / "wide", square(0, width=128))
    write_pngs(tmp_path / "mixed", square(0, frames=2))
    write_pngs(tmp_path / "more", square(0, frames=2, width=128))
    (tmp_path / "more" / "000.png").rename(tmp_path / "mixed" / "999.png")
    (tmp_path / "broken.mp4").write_bytes(b"this is no movie")
    (tmp_path / "empty.gif").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a clip at all")
    (tmp_path / ".hidden.mp4").write_bytes(b"")
    folder = open_folder(tmp_path, frames=FRAMES)
    assert [file.path.name for file in folder.files] == ["good0", "good1"]
    reasons = {each.path.name: each.reason for each in folder.skipped}
    assert set(reasons) == {"short", "wide", "mixed", "more", "broken.mp4", "empty.gif"}
    assert reasons["short"] == "has 2 frames, 3 needed"
    assert reasons["more"] == "has 1 frames, 3 needed"
    assert reasons["wide"] == "is 128x64, 64x64 needed"
    assert reasons["mixed"] == "has frames of 2 sizes"
    assert reasons["broken.mp4"].startswith("cannot be read") and reasons["empty.gif"].startswith("cannot be read")


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_an_animations_speed_is_that_of_all_its_frames(tmp_path, name):
    """The first one often stands longer."""
    first, *others = [Image.fromarray(frame) for frame in square(0, frames=5)]
    first.save(tmp_path / name, save_all=True, append_images=others, duration=[1000, 50, 50, 50, 50])
    assert open_folder(tmp_path, frames=5).clip(0).fps == pytest.approx(5 / 1.2)


def test_a_movie_too_fast_to_be_told_is_skipped(tmp_path, monkeypatch):
    write_pngs(tmp_path / "good", square(0))
    write_clip(square(0).astype(np.float32) / 255, tmp_path / "fast.mp4", fps=10)
    monkeypatch.setattr(data, "_movie_fps", lambda path: 2000.0)
    (skipped,) = open_folder(tmp_path, frames=FRAMES).skipped
    assert skipped.path.name == "fast.mp4"
    assert skipped.reason == "plays at 2000 frames per second, at most 1024 can be said"


@pytest.mark.parametrize(("turns", "matrix"), [(1, (0, -1, 1, 0)), (2, (-1, 0, 0, -1)), (3, (0, 1, -1, 0))])
def test_a_phones_movie_stands_as_players_show_it(tmp_path, turns, matrix):
    """turns: quarters counterclockwise, by the matrix in the track's header (ISO 14496-12, tkhd)."""
    path, clip = tmp_path / "a.mp4", square(0, width=96)
    write_clip(clip.astype(np.float32) / 255, path, fps=10)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    shown = np.rot90(clip, turns, axes=(1, 2))
    assert abs(restored(open_folder(tmp_path, frames=FRAMES).clip(0).pixels) - shown).mean() < 8


def test_a_clip_cut_short_is_found_before_training(tmp_path):
    write_clip(square(0, frames=8).astype(np.float32) / 255, tmp_path / "whole.gif", fps=10)
    whole = (tmp_path / "whole.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(whole[: len(whole) // 2])
    folder = open_folder(tmp_path, frames=8)
    assert [each.path.name for each in folder.skipped] == ["cut.gif"]


def test_too_few_clips_stop_with_their_names(tmp_path):
    write_pngs(tmp_path / "good", square(0))
    write_pngs(tmp_path / "short", square(0, frames=1))
    with pytest.raises(InputError, match=r"^1 of 2 clips in .* can be used, 2 needed: .*short has 1 frames, 3 needed$"):
        open_folder(tmp_path, frames=FRAMES, needed=2)


def test_an_empty_folder_and_no_folder_are_said_so(tmp_path):
    with pytest.raises(InputError, match=r"^0 of 0 clips in .* can be used, 1 needed: add clips$"):
        open_folder(tmp_path, frames=FRAMES)
    with pytest.raises(InputError, match="is not a folder"):
        open_folder(tmp_path / "nowhere", frames=FRAMES)


def test_sizes_the_autoencoder_cannot_take_are_refused(tmp_path):
    write_pngs(tmp_path / "odd", square(0, width=60))
    with pytest.raises(InputError, match=r"60x64 .* multiples of 8"):
        open_folder(tmp_path, frames=FRAMES)


def test_a_motion_bucket_out_of_range_is_refused(tmp_path):
    with pytest.raises(InputError, match="motion bucket 5000"):
        open_folder(tmp_path, frames=FRAMES, motion_bucket=5000)


def test_a_long_clip_gives_runs_from_all_over_it(tmp_path):
    long = np.repeat(np.arange(0, 250, 10, dtype=np.uint8)[:, None, None, None], 64, axis=1).repeat(64, axis=2)
    write_pngs(tmp_path / "long", long.repeat(3, axis=3))
    folder = open_folder(tmp_path, frames=FRAMES)
    starts = set()
    for number in range(150):
        values = restored(folder.clip(number).pixels)[:, 0, 0, 0]
        assert np.allclose(np.diff(values), 10, atol=0.1), "consecutive frames"
        starts.add(round(float(values[0])))
    assert min(starts) == 0 and max(starts) == 220 and len(starts) > 15


def test_a_number_is_a_clip_for_good(clips):
    first, second = (open_folder(clips, frames=FRAMES, seed=5) for _ in range(2))
    for number in range(4):
        assert torch.equal(first.clip(number).pixels, second.clip(number).pixels)


def test_a_clip_that_vanishes_is_named(tmp_path):
    write_pngs(tmp_path / "good", square(0))
    folder = open_folder(tmp_path, frames=FRAMES)
    for frame in (tmp_path / "good").iterdir():
        frame.unlink()
    with pytest.raises(InputError, match="good can no longer be read"):
        folder.clip(0)


@pytest.mark.parametrize("change", ["shorter", "larger", "other"])
def test_a_clip_that_changes_after_it_was_looked_at_is_named(tmp_path, change):
    frames, width = {"shorter": (FRAMES, 64), "larger": (FRAMES + 2, 96), "other": (FRAMES + 2, 64)}[change]
    write_pngs(tmp_path / "good", square(0, frames=FRAMES + 2))
    folder = open_folder(tmp_path, frames=FRAMES + 1)
    shutil.rmtree(tmp_path / "good")
    write_pngs(tmp_path / "good", 255 - square(9, frames=frames, width=width))
    with pytest.raises(InputError, match="good has changed since it was looked at: put it back"):
        folder.clip(0)


def test_greys_of_sixteen_bits_train_as_load_image_reads_them(tmp_path):
    grey = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    (tmp_path / "deep").mkdir()
    for index in range(FRAMES):
        Image.fromarray(grey).save(tmp_path / "deep" / f"{index}.png")
    found = restored(open_folder(tmp_path, frames=FRAMES).clip(0).pixels)
    expected = load_image(tmp_path / "deep" / "0.png") * 255
    assert np.abs(found - expected).max() <= 0.501, "rounded to 8 bits"


@pytest.mark.parametrize("name", ["{}.png", "shot2_{}.PNG", "{:03d}.png"])
def test_frames_are_taken_in_the_order_of_their_numbers(tmp_path, name):
    (tmp_path / "clip").mkdir()
    for number in range(1, 13):
        frame = np.full((16, 16, 3), number, np.uint8)
        Image.fromarray(frame).save(tmp_path / "clip" / name.format(number), format="PNG")
    values = restored(open_folder(tmp_path, frames=12).clip(0).pixels)[:, 0, 0, 0]
    assert np.round(values).tolist() == list(range(1, 13))


def test_the_recipe_asks_for_a_size(clips):
    skipped = []
    source = open_source(Data(frames=FRAMES, width=32, height=32, clips=str(clips)), 0, skipped.append)
    assert isinstance(source, ClipFolder) and not skipped
    with pytest.raises(InputError, match="is 32x32, 64x32 needed"):
        open_source(Data(frames=FRAMES, width=64, height=32, clips=str(clips)), 0, skipped.append)


def test_the_world_is_asked_for_scenes_it_may_be_trained_on(monkeypatch):
    asked = []

    def stub(seed, *, frames, width, height, fps, motion_bucket, kind):
        assert kind is None
        asked.append((seed, fps, motion_bucket))
        scene = type("Scene", (), {})()
        scene.frames = np.full((frames, height, width, 3), 0.5, np.float32)
        return scene

    monkeypatch.setattr(data, "draw_scene", stub)
    world = WorldDataset(Data(frames=4, width=32, height=16, fps=(5, 20), motion_buckets=(10, 12)), seed=1)
    found = [world.clip(number) for number in range(40)]
    assert found[0].pixels.shape == (4, 3, 16, 32) and found[0].pixels.abs().max() == 0
    seeds, fps, buckets = zip(*asked, strict=True)
    assert len(set(seeds)) == 40 and set(fps) == {5, 20} and set(buckets) == {10, 11, 12}
    assert all((each.fps, each.motion_bucket) == said[1:] for each, said in zip(found, asked, strict=True))
    assert all(seed in TRAIN_SEEDS and seed not in HELD_OUT_SEEDS for seed in seeds)
    assert training_seed(1, 3) == training_seed(1, 3) != training_seed(2, 3)


def test_a_share_of_the_world_is_made_rockets_and_the_rest_is_as_it_was(monkeypatch):
    drawn = {}

    def stub(seed, *, kind, frames, **_):
        drawn[seed] = kind
        return type("Scene", (), {"frames": np.zeros((frames, 8, 8, 3), np.float32)})()

    monkeypatch.setattr(data, "draw_scene", stub)
    world = WorldDataset(Data(frames=1), seed=1)
    mixed = with_rockets(world, 0.3)
    for number in range(200):
        mixed.clip(number)
    assert set(drawn) == {training_seed(1, number) for number in range(200)}
    assert set(drawn.values()) == {None, "rocket"}
    assert 40 < sum(kind == "rocket" for kind in drawn.values()) < 80


def test_a_folder_of_clips_has_no_rockets_to_add(clips):
    folder = open_folder(clips, frames=FRAMES)
    assert with_rockets(folder, 0.5) is folder


def test_the_world_itself_draws_what_was_asked_for():
    frames = data.draw_scene(3, kind="rocket", frames=2, width=64, height=32, fps=7, motion_bucket=127).frames
    pixels = as_pixels(frames)
    assert pixels.shape == (2, 3, 32, 64) and pixels.min() >= -1 and pixels.max() <= 1
    assert not torch.equal(pixels[0], pixels[1])
