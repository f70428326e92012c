"""Whatever happens while something is saved, what was there stays whole and nothing else is overwritten."""

import contextlib
import io
import itertools
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from children import NOBODY, at_once, in_a_child, kill_this_process
from PIL import Image
from recipes import a_recipe

from svd_core.cli import latents, main
from svd_core.cli.progress import Bars
from svd_core.clip import Progress
from svd_core.errors import OutputError
from svd_core.media import read_recipe, replacing, video, write_clip
from svd_core.media.whole import ABANDONED_SECONDS, SCRATCH
from training import checkpoint
from training.checkpoint import load_tensors, save_tensors
from training.world.__main__ import main as draw_world

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs processes that can be forked and killed")

OLD = b"the earlier file"


def a_clip(shade=0.5, frames=4):
    noise = np.random.default_rng(0).uniform(0, 0.1, (frames, 64, 64, 3))
    return (shade * 0.9 + noise).astype(np.float32)


def save_clip(path):
    write_clip(a_clip(), path, 7, a_recipe())


def save_latents(path):
    latents.save_latents(torch.rand(4, 4, 64, 64), path, a_recipe())


def save_state(path):
    save_tensors(path, {"a": torch.rand(4, 4, 64, 64)}, {})


def save_sheet(path):
    with contextlib.redirect_stdout(io.StringIO()):
        draw_world([str(path), "--count", "1", "--kind", "ball"])


WRITERS = {
    "clip.mp4": save_clip,
    "clip.webm": save_clip,
    "clip.webp": save_clip,
    "clip.gif": save_clip,
    "clip": save_clip,
    "latents.safetensors": save_latents,
    "run.state.safetensors": save_state,
    "sheet.png": save_sheet,
}
"""Everything that writes files, by a name that it writes to."""

writers = pytest.mark.parametrize("name", WRITERS)


def lay_the_earlier(folder, name):
    """What is in the way of a new file; of frames, an empty folder."""
    if "." in name:
        (folder / name).write_bytes(OLD)
    else:
        (folder / name).mkdir()


def contents(folder):
    """Path -> bytes of everything but scratch folders."""
    found = (path for path in folder.rglob("*") if not any(part.startswith(SCRATCH) for part in path.parts))
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in found}


def scratch_folders(folder):
    return list(folder.glob(f"{SCRATCH}*"))


# kill -9


@writers
@pytest.mark.parametrize("moment", ["half written", "before the move"])
def test_a_kill_9_leaves_the_earlier_file_whole(tmp_path, monkeypatch, name, moment):
    lay_the_earlier(tmp_path, name)
    before = contents(tmp_path)
    if moment == "before the move":
        monkeypatch.setattr(os, "replace", kill_this_process)
    else:
        kill_half_way(monkeypatch)
    assert in_a_child(lambda: WRITERS[name](tmp_path / name)) == "killed"
    monkeypatch.undo()
    assert contents(tmp_path) == before
    WRITERS[name](tmp_path / name)
    assert (tmp_path / name).is_dir() or (tmp_path / name).read_bytes() != OLD, "what the kill left is in nobody's way"


def kill_half_way(monkeypatch):
    """With part of the file on the disk."""
    frames = itertools.count(1)
    original = video.to_yuv420

    def killed_at_the_third(frame):
        return kill_this_process() if next(frames) == 3 else original(frame)

    def killed_in_the_middle(path):
        Path(path).write_bytes(b"half")
        kill_this_process()

    monkeypatch.setattr(video, "to_yuv420", killed_at_the_third)
    monkeypatch.setattr(Image.Image, "save", lambda picture, path, *_, **__: killed_in_the_middle(path))
    monkeypatch.setattr(latents, "save_file", lambda tensors, path, metadata: killed_in_the_middle(path))
    monkeypatch.setattr(checkpoint.os, "fsync", kill_this_process)


def test_what_a_kill_left_is_removed_by_a_write_an_hour_later(tmp_path, monkeypatch):
    kill_half_way(monkeypatch)
    assert in_a_child(lambda: save_clip(tmp_path / "clip.gif")) == "killed"
    monkeypatch.undo()
    (left,) = scratch_folders(tmp_path)
    save_clip(tmp_path / "other.gif")
    assert scratch_folders(tmp_path) == [left], "it might be in use on another machine"
    age(left, ABANDONED_SECONDS + 60)
    save_clip(tmp_path / "other.gif")
    assert scratch_folders(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.gif"]


def age(folder, seconds):
    then = time.time() - seconds
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))


def test_what_is_in_use_is_not_taken_for_left_behind(tmp_path):
    with replacing(tmp_path / "slow.gif") as scratch:
        scratch.write_bytes(b"slow")
        age(scratch.parent, 10 * ABANDONED_SECONDS)
        assert in_a_child(lambda: save_clip(tmp_path / "quick.gif")) == "None"
    assert (tmp_path / "slow.gif").read_bytes() == b"slow"
    assert (tmp_path / "quick.gif").exists()


def test_cleaning_up_follows_no_link_and_touches_no_other_name(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "output"
    outside.mkdir(), folder.mkdir()
    (outside / "kept.txt").write_text("keep me")
    (folder / f"{SCRATCH}link").symlink_to(outside)
    (folder / f"{SCRATCH}dir").mkdir()
    (folder / f"{SCRATCH}dir" / "link").symlink_to(outside)
    (folder / f"{SCRATCH}file").write_text("a file")
    (folder / "svd_core-notes").mkdir()
    then = time.time() - 10 * ABANDONED_SECONDS
    for path in (outside / "kept.txt", outside, folder / "svd_core-notes", folder / f"{SCRATCH}dir"):
        os.utime(path, (then, then))
    os.utime(folder / f"{SCRATCH}dir" / "link", (then, then), follow_symlinks=False)
    os.utime(folder / f"{SCRATCH}dir", (then, then))
    save_clip(folder / "clip.gif")
    assert (outside / "kept.txt").read_text() == "keep me"
    left = {path.name for path in folder.iterdir()}
    assert left == {"clip.gif", f"{SCRATCH}link", f"{SCRATCH}file", "svd_core-notes"}


# A full disk


@writers
def test_a_disk_that_fills_up_leaves_the_earlier_file(tmp_path, name):
    """The system's own limit on the size of a file, which fails each write beyond it as a full disk does."""
    lay_the_earlier(tmp_path, name)
    before = contents(tmp_path)

    def save():
        limit_files(700)
        WRITERS[name](tmp_path / name)

    said = in_a_child(save)
    if name == "sheet.png":
        assert said == "None", "the command has said its line and returned 2"
    else:
        assert said.startswith("OutputError: "), said
        assert "cannot be written" in said and "\n" not in said
    assert contents(tmp_path) == before
    assert scratch_folders(tmp_path) == []


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# Folders that may not be written


@pytest.fixture
def public():
    """A folder of root's, or of whoever runs the tests, that another user can look into."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def without_rights(work):
    """Root may write anywhere, so it becomes nobody first; others have their own folder closed to them."""

    def unprivileged():
        if os.geteuid() == 0:
            os.setegid(NOBODY), os.seteuid(NOBODY)
        return work()

    return in_a_child(unprivileged)


@writers
def test_a_read_only_folder_is_refused_in_one_line(public, tmp_path, name):
    WRITERS[name](tmp_path / name)  # which loads what is loaded late, while this user may read it
    lay_the_earlier(public, name)
    before = contents(public)
    public.chmod(0o555)
    said = without_rights(lambda: WRITERS[name](public / name))
    if name != "sheet.png":
        assert said.startswith("OutputError: ") and "permission denied" in said.lower(), said
    assert contents(public) == before


def test_a_read_only_folder_is_refused_before_anything_is_rendered(public):
    Image.new("RGB", (64, 64)).save(public / "still.png")
    public.chmod(0o555)
    argv = ["animate", f"{public}/still.png", "--checkpoint", f"{public}/absent", "--output", f"{public}/clip.mp4"]

    def refused():
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            return main(argv), said.getvalue()

    said = without_rights(refused)
    assert said.startswith("(2, 'error: output ") and "permission denied, choose another folder" in said, said


def test_an_empty_folder_is_filled_where_its_parent_may_not_be_written(public, tmp_path):
    save_clip(tmp_path / "clip")
    (public / "clip").mkdir()
    (public / "clip").chmod(0o777)
    public.chmod(0o555)
    assert without_rights(lambda: save_clip(public / "clip")) == "None"
    assert [path.name for path in sorted((public / "clip").iterdir())] == [f"frame_000{n}.png" for n in range(4)]


# Clocks


def test_a_clock_that_is_set_back_overwrites_nothing(tmp_path, monkeypatch):
    save_clip(tmp_path / "first.gif")
    before = contents(tmp_path)
    now = time.time()
    readings = iter(now - 86400 * place for place in range(10**6))
    monkeypatch.setattr(time, "time", lambda: next(readings))
    save_clip(tmp_path / "second.gif")
    save_state(tmp_path / "run.state.safetensors")
    found = contents(tmp_path)
    assert before.items() <= found.items()
    assert set(found) - set(before) == {Path("second.gif"), Path("run.state.safetensors")}
    assert scratch_folders(tmp_path) == []


def test_a_clock_that_leaps_ahead_ends_no_other_writing(tmp_path, monkeypatch):
    with replacing(tmp_path / "slow.gif") as scratch:
        scratch.write_bytes(b"slow")
        ahead = time.time() + 10**8
        monkeypatch.setattr(time, "time", lambda: ahead)
        assert in_a_child(lambda: save_clip(tmp_path / "quick.gif")) == "None"
    assert (tmp_path / "slow.gif").read_bytes() == b"slow"


@pytest.mark.parametrize("leap", [-(10**6), 10**6])
def test_progress_survives_a_clock_that_jumps(monkeypatch, leap):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    clock = SimpleNamespace(now=time.time())
    monkeypatch.setattr(time, "time", lambda: clock.now)
    with Bars() as bars:
        for index in range(1, 4):
            clock.now += leap
            bars(Progress("sample", index, 3))
    assert "3/3" in terminal.getvalue()


# Two at once


def test_processes_that_share_a_folder_lose_and_overwrite_nothing(tmp_path):
    each, others = 4, 4

    def many(process):
        for number in range(each):
            write_clip(a_clip(process / others, 2), tmp_path / f"{process}-{number}.gif", 7, a_recipe())
            write_clip(a_clip(process / others, 2), tmp_path / "same.webp", 7, a_recipe())

    assert at_once(*(lambda process=process: many(process) for process in range(others))) == [""] * others
    names = {f"{process}-{number}.gif" for process in range(others) for number in range(each)} | {"same.webp"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for process in range(others):
        alone = write_clip(a_clip(process / others, 2), tmp_path / "alone.gif", 7, a_recipe()).read_bytes()
        assert all((tmp_path / f"{process}-{number}.gif").read_bytes() == alone for number in range(each))
    assert read_recipe(tmp_path / "same.webp") == a_recipe()


def test_two_runs_in_one_folder_never_mix_their_states(tmp_path):
    """Each file is the one or the other; a shared scratch name would have let them write into each other's."""
    path = tmp_path / "run.state.safetensors"

    def write(value):
        for _ in range(30):
            save_tensors(path, {"a": torch.full((20_000,), value)}, {})

    assert at_once(lambda: write(1.0), lambda: write(2.0)) == ["", ""]
    values = load_tensors(path)[0]["a"].unique().tolist()
    assert values in ([1.0], [2.0])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("there", [False, True])
def test_two_folders_of_frames_under_one_name_are_not_mixed(tmp_path, there):
    if there:
        (tmp_path / "frames").mkdir()

    def write(shade):
        with contextlib.suppress(OutputError):  # the place is taken
            write_clip(a_clip(shade, 3), tmp_path / "frames", 7)

    assert at_once(lambda: write(0.2), lambda: write(0.8)) == ["", ""]
    shades = {round(float(np.asarray(Image.open(path)).mean()) / 255, 1) for path in (tmp_path / "frames").iterdir()}
    assert len(list((tmp_path / "frames").iterdir())) == 3 and len(shades) == 1
