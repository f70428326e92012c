"""Stable Video Diffusion in plain PyTorch: a still in, a clip out.

Read in the order data flows: `checkpoint/`, `conditioning.py`, `model/`, `sampling/`, `decode/`, joined in
`pipeline.py`. The names below are imported when they are first used (PEP 562), so that importing the package loads
nothing heavy.
"""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import inspect_checkpoint
    from .conditioning import Conditioning, MicroConditioning
    from .config import VARIANTS, ModelConfig
    from .controls import Controls, render_controlled
    from .errors import CheckpointError, InputError, OutputError, StableVideoError
    from .pipeline import Clip, Progress, StableVideo, load_checkpoint
    from .sampling import align_your_steps_sigmas, edm_sigmas, linear_guidance
    from .settings import Settings

__all__ = [
    "VARIANTS",
    "CheckpointError",
    "Clip",
    "Conditioning",
    "Controls",
    "InputError",
    "MicroConditioning",
    "ModelConfig",
    "OutputError",
    "Progress",
    "Settings",
    "StableVideo",
    "StableVideoError",
    "align_your_steps_sigmas",
    "edm_sigmas",
    "inspect_checkpoint",
    "linear_guidance",
    "load_checkpoint",
    "render_controlled",
]

_HOMES = {
    "VARIANTS": "config",
    "CheckpointError": "errors",
    "Clip": "pipeline",
    "Conditioning": "conditioning",
    "Controls": "controls",
    "InputError": "errors",
    "MicroConditioning": "conditioning",
    "ModelConfig": "config",
    "OutputError": "errors",
    "Progress": "pipeline",
    "Settings": "settings",
    "StableVideo": "pipeline",
    "StableVideoError": "errors",
    "align_your_steps_sigmas": "sampling",
    "edm_sigmas": "sampling",
    "inspect_checkpoint": "checkpoint",
    "linear_guidance": "sampling",
    "load_checkpoint": "pipeline",
    "render_controlled": "controls",
}
"""Which module each public name comes from."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
