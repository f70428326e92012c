"""Stable Video Diffusion in plain PyTorch: a still in, a clip out.

The entries, in the order data flows. `spec 5.1` in a docstring is section 5.1 of docs/model.md.

    config.py        sizes of the networks, released variants
    settings.py      everything that decides the pixels of one clip
    checkpoint/      files and folders -> filled networks
    conditioning.py  still, fps, motion bucket, augmentation -> what the network is told
    sinusoid.py      the one embedding of numbers
    model/           the networks: UNet, autoencoder, CLIP image encoder
    kernels/         fused operations: a torch expression, a Triton kernel, the choice between them
    sampling/        schedules, preconditioning, guidance, samplers
    motion/          control over motion and length: wrappers of a denoiser
    decode/          exact decoding and encoding in little memory
    media/           pictures in, clips out: files, sizes, colours, watermark
    planning.py      memory and way of a render, before it runs
    controls.py      what can be controlled beside the settings, by the methods of motion/
    shot.py          one clip to make: picture, settings and controls, checked
    render.py        a shot's stages in order: conditioning, sampling, decode
    clip.py          what a render returns and reports
    pipeline.py      a loaded model and each of its stages: `StableVideo`
    loading.py       `load_checkpoint`
    live_bytes.py    counts the memory of a calculation on the meta device
    device_memory.py free memory of a device and of the host
    recipe.py        what made a clip, stored in its file
    verdicts.py      what the clock decided for it: which of several forms an operation runs in
    measure/         motion, flicker and drift of a clip, from its pixels
    cli/             `python -m svd_core`
    demo/            a small model, trained by training/
    errors.py        errors in one line, for people
    strict_json.py   JSON into frozen dataclasses

The public names below are imported when they are first used (PEP 562), so that importing the package loads nothing
heavy.
"""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers and editors; `X as X` marks a name as public
    from .checkpoint import inspect_checkpoint as inspect_checkpoint
    from .clip import Clip as Clip
    from .clip import Progress as Progress
    from .conditioning import Conditioning as Conditioning
    from .conditioning import MicroConditioning as MicroConditioning
    from .config import VARIANTS as VARIANTS
    from .config import ModelConfig as ModelConfig
    from .controls import Controls as Controls
    from .errors import CheckpointError as CheckpointError
    from .errors import InputError as InputError
    from .errors import OutputError as OutputError
    from .errors import StableVideoError as StableVideoError
    from .loading import load_checkpoint as load_checkpoint
    from .pipeline import StableVideo as StableVideo
    from .sampling import align_your_steps_sigmas as align_your_steps_sigmas
    from .sampling import edm_sigmas as edm_sigmas
    from .sampling import linear_guidance as linear_guidance
    from .settings import Settings as Settings

_HOMES = {
    "VARIANTS": "config",
    "CheckpointError": "errors",
    "Clip": "clip",
    "Conditioning": "conditioning",
    "Controls": "controls",
    "InputError": "errors",
    "MicroConditioning": "conditioning",
    "ModelConfig": "config",
    "OutputError": "errors",
    "Progress": "clip",
    "Settings": "settings",
    "StableVideo": "pipeline",
    "StableVideoError": "errors",
    "align_your_steps_sigmas": "sampling",
    "edm_sigmas": "sampling",
    "inspect_checkpoint": "checkpoint",
    "linear_guidance": "sampling",
    "load_checkpoint": "loading",
}
"""Public name -> its module; `__all__`, `__dir__` and `__getattr__` read this table."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
