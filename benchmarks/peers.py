"""The other implementations: ComfyUI's package, set up for a comparison, and the versions that are compared."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version

from torch import Tensor

from tools.fetch_comfyui import FetchError, newest_comfyui

Weights = Mapping[str, Tensor]


def import_comfyui(*, cpu: bool = True) -> None:
    """Make ComfyUI importable, set to the CPU (or a GPU) and to torch's attention, its fastest on either. Later calls
    change neither, because comfy.model_management reads both when it is first imported."""
    path = str(newest_comfyui())
    if path not in sys.path:
        sys.path.insert(0, path)  # first, because its modules say `import nodes` and mean its own
    import comfy.cli_args

    comfy.cli_args.args.cpu, comfy.cli_args.args.use_pytorch_cross_attention = cpu, True


def versions() -> str:
    """Versions of torch, diffusers and ComfyUI."""
    try:
        comfyui = newest_comfyui().name
    except FetchError as error:
        comfyui = f"none ({error})"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers"))
    return f"{packages}, ComfyUI {comfyui}"
