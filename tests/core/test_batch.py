"""A batch renders what `animate` renders, each picture once, whatever is killed on the way."""

import contextlib
import gc
import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
import warnings
from argparse import Namespace
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import a_recipe
from synthetic import write_checkpoint

from svd_core.cli import main
from svd_core.cli.batch import _OWN_FLAGS, Task, _Pool, _tasks
from svd_core.cli.batch_worker import Outcome, Worker
from svd_core.cli.flags import parser
from svd_core.cli.table import LiveTable
from svd_core.media import read_recipe, write_clip

ROOT = Path(__file__).resolve().parents[2]
CRASHES = """
import os, pathlib
def once(frames):
    mark = pathlib.Path(os.environ["BATCH_CRASHES"]) / "crashed"
    if not mark.exists():
        mark.touch()
        os._exit(1)
    return [False] * len(frames)
def always(frames):
    os._exit(1)
"""

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def checkers(tmp_path_factory):
    """A folder with a checker in it that ends its process."""
    folder = tmp_path_factory.mktemp("checkers")
    (folder / "crashes.py").write_text(CRASHES)
    return folder


@pytest.fixture(scope="module")
def cluster(checkers):
    """One Ray for all tests here."""
    ray = pytest.importorskip("ray")
    places = {"PYTHONPATH": f"{checkers}{os.pathsep}{ROOT}", "BATCH_CRASHES": str(checkers)}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": places})
    yield ray
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray leaves its processes for Python to notice
        ray.shutdown()
        gc.collect()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3):
        values = np.random.default_rng(index).integers(0, 256, (70, 90, 3), np.uint8)
        Image.fromarray(values).save(pictures / f"p{index}.png")
    return tmp_path


@pytest.fixture
def argv(folder, checkpoint):
    places = [f"{folder}/pictures", "--output", f"{folder}/out", "--checkpoint", str(checkpoint), "--device", "cpu"]
    return ["batch", *places, "--format", "gif", "--no-watermark"]


def clips(folder):
    """Name -> (bytes, when written)."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "out").iterdir()}


def test_a_batch_renders_what_animate_does_and_nothing_twice(cluster, folder, argv, checkpoint, capsys):
    (folder / "pictures" / "broken.png").write_bytes(b"no picture")
    assert main([*argv, "--workers", "2"]) == 2
    out, err = capsys.readouterr()
    assert "4 pictures, 0 have their clips already" in out
    assert out.count("3 frames") == 3
    assert f"error: 1 of 4 pictures gave no clip, the first being {folder}/pictures/broken.png: " in err
    first = clips(folder)
    assert sorted(first) == ["p0.gif", "p1.gif", "p2.gif"]

    alone = ["--checkpoint", str(checkpoint), "--device", "cpu", "--no-watermark", "--output", f"{folder}/alone.gif"]
    assert main(["animate", f"{folder}/pictures/p1.png", *alone]) == 0
    assert (folder / "alone.gif").read_bytes() == first["p1.gif"][0]

    Image.new("RGB", (64, 64), "teal").save(folder / "pictures" / "broken.png")
    capsys.readouterr()
    assert main(argv) == 0
    assert "4 pictures, 3 have their clips already" in capsys.readouterr().out
    second = clips(folder)
    assert sorted(second) == ["broken.gif", "p0.gif", "p1.gif", "p2.gif"]
    assert {name: second[name] for name in first} == first

    assert main([*argv, "--seed", "5"]) == 2
    assert "was made from another picture, checkpoint or settings" in capsys.readouterr().err
    assert clips(folder) == second


def test_a_worker_that_dies_is_replaced_and_its_picture_tried_again(cluster, folder, argv, capsys):
    assert main([*argv, "--content-filter", "crashes:once", "--fps", "40"]) == 0
    out, err = capsys.readouterr()
    assert err.count("is tried again: its worker stopped") == 1
    assert err.count("note: At 40 frames per second") == 1  # of three pictures
    assert "note: " not in out
    assert len(clips(folder)) == 3


def test_a_picture_that_kills_every_worker_is_given_up(cluster, folder, argv, capsys):
    for name in ("p1.png", "p2.png"):
        (folder / "pictures" / name).unlink()
    assert main([*argv, "--retries", "1", "--content-filter", "crashes:always"]) == 2
    err = capsys.readouterr().err
    assert err.count("is tried again") == 1
    assert "1 of 1 pictures gave no clip" in err
    assert clips(folder) == {}


def test_a_killed_batch_goes_on_where_it_stopped(cluster, folder, argv):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    killed = subprocess.Popen([sys.executable, "-m", "svd_core", *argv], cwd=ROOT, env=environment, stdout=quiet)
    deadline = time.monotonic() + 300
    while not list((folder / "out").glob("*.gif")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {name: clip for name, clip in clips(folder).items() if name.endswith(".gif")}
    assert before
    assert all(read_recipe(folder / "out" / name) for name in before)
    assert main(argv) == 0
    after = clips(folder)
    assert {name: after[name] for name in before} == before
    assert {"p0.gif", "p1.gif", "p2.gif"} <= after.keys()


def test_a_batch_that_is_ended_stops_cleanly(cluster, folder, argv):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "svd_core", *argv, "--steps", "30"]
    ended = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "3 pictures" in ended.stdout.readline()
    assert "p0.png" in ended.stdout.readline()
    ended.send_signal(signal.SIGTERM)
    _, err = ended.communicate(timeout=60)
    assert (ended.returncode, err.splitlines()[-1]) == (143, "interrupted: no file is left half-written")
    assert "Traceback" not in err
    left = list((folder / "out").iterdir())
    assert {path.name for path in left} <= {"p0.gif", "p1.gif"}
    assert all(read_recipe(path) for path in left)


def test_the_table_shows_each_worker_while_it_works(cluster, folder, argv, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main([*argv, "--workers", "2"]) == 0
    shown = sys.stderr.getvalue()
    assert re.search(r"^worker [01]  \w+ [^\n]* p[012]\.png$", shown, re.MULTILINE)
    assert re.search(r"^done 0, left 3, failed 0$", shown, re.MULTILINE)


# Without a cluster


def refusal(capsys, argv):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_ray_one_line_says_what_to_install(argv, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refusal(capsys, argv)
    assert line.startswith("error: batch needs the package ray (")
    assert line.endswith("): pip install ray, or run animate for each picture")


def test_what_cannot_be_done_is_said_before_ray_starts(folder, argv, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))  # whatever it would be asked, it could not answer
    assert "steps 0 is outside" in refusal(capsys, [*argv, "--steps", "0"])
    assert "sequential is a way to reach an end" in refusal(capsys, [*argv, "--sequential"])
    assert "'0' is not a whole number of 1 to" in refusal(capsys, [*argv, "--workers", "0"])
    assert "is neither a folder nor a .txt list" in refusal(capsys, ["batch", f"{folder}/none", *argv[2:]])
    Image.new("RGB", (64, 64)).save(folder / "pictures" / "P0.jpg")
    assert "would have the same clip" in refusal(capsys, argv)
    (folder / "empty").mkdir()
    assert "names no pictures" in refusal(capsys, ["batch", f"{folder}/empty", *argv[2:]])


def test_what_is_refused_leaves_no_output_folder(folder, argv, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    refusal(capsys, ["batch", f"{folder}/none", *argv[2:]])
    refusal(capsys, [*argv, "--steps", "0"])
    refusal(capsys, [*argv, "--playback-fps", "200"])
    assert not (folder / "out").exists()
    (folder / "out").write_bytes(b"a file")
    assert "is no folder and cannot be made one" in refusal(capsys, argv)


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_clips_beside_their_pictures_are_no_pictures(folder, capsys, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    pictures = folder / "pictures"
    Image.new("RGB", (64, 64)).save(pictures / f"still.{suffix}")
    frames = np.zeros((2, 64, 64, 3), np.float32)
    write_clip(frames, pictures / f"p0.{suffix}", 7, a_recipe())
    found = _tasks(Namespace(pictures=str(pictures), output=str(pictures), format=suffix))
    assert [task.picture.name for task in found] == ["p0.png", "p1.png", "p2.png", f"still.{suffix}"]
    (folder / "clips").mkdir()
    (pictures / f"p0.{suffix}").rename(folder / "clips" / f"p0.{suffix}")
    line = refusal(capsys, ["batch", f"{folder}/clips", "--output", f"{folder}/clips"])
    assert line.endswith("holds clips made by svd_core and no pictures: name those to take in a .txt list")


def test_a_list_may_come_from_any_editor(folder):
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbfa.png  \r\n\tb.png\r\n\r\na.png\r\n./b.png")
    found = _tasks(Namespace(pictures=str(folder / "list.txt"), output=str(folder / "out")))
    assert [task.picture for task in found] == [Path("a.png"), Path("b.png")]


def pool(**more):
    ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=RuntimeError), get=lambda outcome: outcome, **more)
    return _Pool(ray, lambda: None, [], deque(), 0)


def test_a_note_is_said_once_and_on_stderr(capsys):
    work = pool()
    for name in ("a", "b"):
        outcome = Outcome(f"{name}.gif: done\n", f"note: the same\nnote: of {name}\n")
        work.running[outcome] = (0, Task(Path(f"{name}.png"), Path(f"{name}.gif")))
        work._finish(outcome)
    out, err = capsys.readouterr()
    assert out == "a.gif: done\nb.gif: done\n"
    assert err == "note: the same\nnote: of a\nnote: of b\n"


def test_an_interrupted_batch_lets_its_workers_finish_what_they_write():
    asked, waits = [], []

    def wait(references, **how):
        waits.append(list(references))
        if len(waits) == 1:
            raise KeyboardInterrupt
        return references, []

    worker = SimpleNamespace(
        render=SimpleNamespace(remote=lambda *_: "work"), stop=SimpleNamespace(remote=lambda: asked.append("stop"))
    )
    work = pool(wait=wait)
    work.workers, work.waiting = [worker], deque([Task(Path("a.png"), Path("a.gif"))])
    with pytest.raises(KeyboardInterrupt):
        work.run()
    assert (asked, waits) == (["stop"], [["work"], ["work"]])


def test_a_worker_that_is_told_to_stop_renders_no_further(folder, checkpoint):
    flags = {"checkpoint": str(checkpoint), "device": "cpu", "no_watermark": True}
    worker = Worker(flags, torch.get_num_threads())
    worker.stop()
    outcome = worker.render(f"{folder}/pictures/p0.png", f"{folder}/p0.gif")
    assert outcome.error.startswith("_StoppedError")
    assert not (folder / "p0.gif").exists()


def test_a_file_in_a_clip_s_place_is_not_taken_for_it(folder, argv, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    (folder / "out").mkdir()
    Image.new("RGB", (64, 64)).save(folder / "out" / "p0.gif")
    (folder / "list.txt").write_text(f"{folder}/pictures/p0.png\n\n")
    assert "p0.gif is in the way" in refusal(capsys, ["batch", f"{folder}/list.txt", *argv[2:]])


@pytest.mark.parametrize(
    ("made", "others"),
    [
        ("--loop --frames 4", ("--frames 4", "--loop --frames 4 --sequential", "--loop --frames 4 --unstick 0.5")),
        ("--window 0 --frames 4", ("--window 2 --frames 4", "--window 0 --frames 4 --colour-hold 0.5")),
        ("--unstick 1 --motion-bucket-points 0:1,1:9", ("--unstick 1", "--unstick 1 --motion-bucket-points 0:1,1:8")),
    ],
)
def test_clips_with_the_same_controls_are_done_and_others_are_refused(
    folder, argv, checkpoint, capsys, monkeypatch, made, others
):
    """The clip is made as a worker makes it."""
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    for name in ("p1.png", "p2.png"):
        (folder / "pictures" / name).unlink()
    (folder / "out").mkdir()
    chosen = ["--size", "64x64", "--steps", "1", *made.split()]
    flags = vars(parser().parse_args([*argv, *chosen]))
    worker = Worker({name: flags[name] for name in flags.keys() - _OWN_FLAGS}, 1)
    outcome = worker.render(f"{folder}/pictures/p0.png", f"{folder}/out/p0.gif")
    assert outcome.error == ""
    alone = ["--checkpoint", str(checkpoint), "--device", "cpu", "--no-watermark", "--output", f"{folder}/alone.gif"]
    assert main(["animate", f"{folder}/pictures/p0.png", *alone, *chosen]) == 0
    assert (folder / "alone.gif").read_bytes() == (folder / "out" / "p0.gif").read_bytes()
    capsys.readouterr()
    assert main([*argv, *chosen]) == 0
    assert capsys.readouterr().out == "1 pictures, 1 have their clips already\n"
    for other in others:
        line = refusal(capsys, [*argv, "--size", "64x64", "--steps", "1", *other.split()])
        assert "p0.gif was made from another picture, checkpoint or settings" in line


@pytest.mark.parametrize("flag", ["--end", "--brush", "--continue", "--feather"])
def test_a_batch_takes_no_control_that_is_about_one_picture(argv, capsys, flag):
    assert f"unrecognized arguments: {flag} 3" in refusal(capsys, [*argv, flag, "3"])


def everything_from(terminal: int) -> str:
    """What was written to a terminal whose other end is closed; one read may return only part of it."""
    parts = []
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(terminal, 4096):
            parts.append(part)
    return b"".join(parts).decode()


def test_the_table_is_drawn_over_itself_on_a_terminal(monkeypatch):
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        table = LiveTable()
        assert table.live
        table.draw(["worker 0  sample 1/2", "x" * 500])
        table.clear()
        table.clear()
    shown = everything_from(ours)
    os.close(ours)
    assert shown.count("\033[2F\033[J") == 1
    assert max(map(len, shown.split("\r\n"))) < 500


def test_nothing_is_drawn_where_there_is_no_terminal(capsys):
    LiveTable().draw(["row"])
    assert capsys.readouterr().err == ""
