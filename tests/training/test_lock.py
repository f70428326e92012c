"""Locks where there is no fcntl, as on Windows, whose msvcrt a stand-in plays here."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

WINDOWS = """
import errno, os, sys, types

sys.modules["fcntl"] = None
locks = {}

def locking(descriptor, mode, count):
    assert (mode, count) == (2, 1)
    file = os.fstat(descriptor).st_ino
    if locks.get(file, descriptor) != descriptor and open_still(locks[file], file):
        raise OSError(errno.EACCES, "Permission denied")
    locks[file] = descriptor

def open_still(descriptor, file):
    try:
        return os.fstat(descriptor).st_ino == file
    except OSError:
        return False

sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)

from pathlib import Path
from svd_core.errors import InputError
from svd_core.media import replacing
from training.lock import held

del os.O_DIRECTORY, os.O_NOFOLLOW
folder = Path(sys.argv[1])
with held(folder, "video"):
    try:
        with held(folder, "video"):
            print("held twice")
    except InputError as error:
        print(error)
with held(folder, "video"), replacing(folder / "file") as scratch:
    scratch.write_text("whole")
(folder / "empty").mkdir()
with replacing(folder / "empty") as scratch:
    scratch.mkdir()
    (scratch / "frame").write_text("filled")
print((folder / "file").read_text(), (folder / "empty" / "frame").read_text())
"""


def test_without_fcntl_files_are_locked_by_msvcrt_and_folders_filled_unlocked(tmp_path):
    command = [sys.executable, "-c", WINDOWS, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    refused, written = ran.stdout.splitlines()
    assert refused.startswith(f"another run trains the stage video in {tmp_path}: wait for it")
    assert written == "whole filled"
