"""What every test may ask for: the real ComfyUI, imported on the CPU, and the same random numbers on every run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tools.fetch_comfyui import newest_comfyui


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """These networks are too small to share; and what modules' fixtures make must have the bits of what tests make."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def repeatable():
    """Seed torch's global generator, which only tests draw from, and undo what a test did to threads."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """Folder of `COMFYUI_PATH`, else of the newest tested ComfyUI, fetched when it is missing."""
    return newest_comfyui()


@pytest.fixture(scope="session")
def comfy(comfyui_path: Path) -> ModuleType:
    """ComfyUI's `comfy` package, importable for the rest of the session and set to run on the CPU.

    Import what a test needs inside the test: `import comfy.sd`. ComfyUI goes first on the path because its modules say
    `import nodes` and mean its own, while our folder of that name lies in the repository root.
    """
    ours = sys.modules.get("nodes")
    if ours is not None and not Path(ours.__file__ or "").is_relative_to(comfyui_path):
        raise RuntimeError(f"`nodes` is already {ours.__file__}: no test may import our own folder by that name")
    sys.path.insert(0, str(comfyui_path))
    import comfy
    import comfy.cli_args

    comfy.cli_args.args.cpu = True  # read when comfy.model_management is first imported
    return comfy
