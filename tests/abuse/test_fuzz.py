"""The fuzzer finds nothing, and would find it."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tools.fuzz import __main__ as fuzzer
from tools.fuzz.__main__ import again, fuzz, plan
from tools.fuzz.mutate import as_text, damaged_bytes, damaged_tree
from tools.fuzz.shares import WEIGHTS, shares

ROOT = Path(__file__).resolve().parents[2]
CASES = 1700
"""With the 300 of tests/nodes/test_fuzz_nodes.py, 2,000."""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the guard needs processor time limits and pipes")


def test_no_input_crashes_hangs_or_leads_astray():
    report = fuzz(plan(list(WEIGHTS), 0, CASES))
    print("\n".join(report.lines()))
    assert report.failures == [], "\n".join(report.lines())
    assert {each["target"]: each["taken"] + each["refused"] for each in report.done} == shares(CASES)
    for each in report.done:
        assert each["refused"] > 0, f"{each['target']}: nothing was damaged enough to be refused"
        if each["target"] not in ("recipe", "flags"):  # these name a checkpoint that is nowhere
            assert each["taken"] > 0, f"{each['target']}: nothing came through, so nothing behind the door was tried"


# What the guard sees


BAD = {
    "loads a pickle": "pickle.loads(pickle.dumps(Path('x')))",
    "starts a program": "subprocess.run(['true'])",
    "reaches the network": "socket.create_connection(('localhost', 9))",
    "writes outside": "(place.parent / 'loot').write_text('x')",
    "writes outside by a link": "(place / 'a').symlink_to(place.parent / 'loot'), (place / 'a').write_text('x')",
    "moves outside": "(place / 'a').write_text('x'), os.replace(place / 'a', place.parent / 'loot')",
    "makes a folder outside": "(place.parent / 'loot').mkdir()",
    "reads outside": "Path('/etc/hostname').read_bytes()",
    "hides what it did": "swallow(lambda: (place.parent / 'loot').write_text('x'))",
    "takes too long": "spin()",
    "takes too much memory": "bytearray(8 * 2**30)",
    "crashes": "{}['x']",
    "refuses in two lines": "refuse('a picture\\nthat is none')",
    "refuses without a word": "refuse('')",
}


def bad_worker(folder, body):
    """A worker with one target, whose only case does what it must not."""
    script = dedent(
        f"""
        import os, pickle, socket, subprocess, sys
        from pathlib import Path
        from svd_core.errors import StableVideoError
        from tools.fuzz import guard, targets, worker

        class Raw(StableVideoError):
            __str__ = ValueError.__str__  # as errors were before they had to be printable

        def refuse(text):
            raise Raw(text)

        def swallow(work):
            try:
                work()
            except BaseException:
                pass

        def spin():
            while True:
                pass

        def case(rng, place):
            {body}

        guard.CASE_SECONDS = 0.3
        targets.TARGETS["bad"] = targets.Target(lambda folder: case)
        worker.Worker(Path(sys.argv[1])).run([("bad", 7, 1)])
        """
    )
    return subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("deed", [*BAD, "does nothing bad"])
def test_the_guard_sees_a_case_that(tmp_path, deed):
    ran = bad_worker(tmp_path, BAD.get(deed, "(place / 'a').write_text('x'), Path(targets.__file__).read_bytes()"))
    assert ran.returncode == 0, ran.stderr
    failures = [line for line in map(json.loads, ran.stdout.splitlines()) if "what" in line]
    assert bool(failures) == (deed in BAD)
    assert all((each["target"], each["seed"]) == ("bad", 7) for each in failures)
    assert not (tmp_path / "loot").exists()


def test_a_case_that_kills_or_holds_its_process_is_named_and_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzer, "STUCK_SECONDS", 0.3)
    now = tmp_path / "now"
    for body, words in (
        ("os.kill(os.getpid(), 11)", "died with status -11"),
        ("time.sleep(600)", "was stuck for 0 s (and killed)"),
    ):
        script = f"import os, time; open({str(now)!r}, 'w').write('1'); time.sleep(0.1); {body}"
        with subprocess.Popen([sys.executable, "-S", "-c", script]) as process:
            assert fuzzer._await_end(process, now) == words
        now.unlink()
    jobs = [("a", 0, 10), ("b", 5, 3), ("c", 0, 1)]
    assert fuzzer._after(jobs, "b", 6) == [("b", 7, 1), ("c", 0, 1)]
    assert fuzzer._after(jobs, "b", 7) == [("c", 0, 1)]


# Seeds


def test_a_seed_is_one_case_for_good():
    tree = {"a": [1, 2.5, "x"], "b": {"c": None, "d": "text"}}
    for seed in range(200):
        one, other = (random.Random(f"recipe {seed}") for _ in range(2))
        assert as_text(damaged_tree(tree, one), one) == as_text(damaged_tree(tree, other), other)
        assert damaged_bytes(bytes(300), one) == damaged_bytes(bytes(300), other)
    assert tree == {"a": [1, 2.5, "x"], "b": {"c": None, "d": "text"}}, "what is whole stays whole"


def test_a_failing_case_comes_with_the_command_that_repeats_it():
    failure = {"target": "picture", "seed": 41, "what": "x", "trace": ""}
    words = again(failure).removeprefix("python -m tools.fuzz ").split()
    assert words == ["picture", "--seed", "41", "--cases", "1"]
    assert plan(["picture"], 41, 1) == [("picture", 41, 1)]


def test_every_target_has_its_share():
    from tools.fuzz.targets import TARGETS

    assert TARGETS.keys() == WEIGHTS.keys()
    assert sum(shares(100_000).values()) == 100_000
    assert min(shares(CASES).values()) >= 40
