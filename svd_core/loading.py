"""From a checkpoint to a model that is ready to render."""

from __future__ import annotations

from pathlib import Path

import torch

from .checkpoint import load_modules
from .errors import InputError
from .model.attention_kinds import attention_named
from .model.backend import Backend, scaled_dot_product
from .model.storage import STORES
from .pipeline import StableVideo
from .settings import AttentionName, WeightsName

NETWORK_DTYPES = torch.float32, torch.bfloat16, torch.float16, torch.float64
"""Dtypes that the networks can compute in."""


def load_checkpoint(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    variant: str | None = None,
    stream_weights: bool = False,
    attention: AttentionName = "auto",
    weights: WeightsName = "whole",
) -> StableVideo:
    """Load an official single file or a diffusers folder.

    stream_weights: leave the UNet's weights in host memory and copy them to the device layer by layer; the same bits,
    slower, about 2.5 GiB less device memory (in 16 bits); on CUDA each render plans anew. attention: "sage" (quantised)
    or "flash3" (differs by rounding) runs the UNet's long sequences on a CUDA device with that package. weights: "int8"
    (quantised) stores the UNet's matrices in 8 bits, which halves the memory of 16 bits and is slower; "fp8"
    (quantised) multiplies 8-bit floats in its transformers, meant for CUDA devices of capability 8.9 or higher and
    slower elsewhere. variant: an entry of `VARIANTS`, for files that do not say whether they are the 14 or the 25 frame
    model.

    Raises CheckpointError for anything that is not a usable Stable Video Diffusion checkpoint, and InputError for an
    attention package that is not installed, unknown weights, "fp8" on a device without such floats, a missing device
    and an unsupported dtype.
    """
    _check(weights, device, dtype)
    device = known_device(device)
    unet_device = "cpu" if stream_weights or weights != "whole" else device
    backend = Backend(attention=attention_named(attention, scaled_dot_product))
    places = {"device": device, "dtype": dtype, "unet_device": unet_device}
    found = load_modules(path, **places, backend=backend, variant=variant)
    STORES[weights](found.unet)
    if not stream_weights:
        found.unet.to(device)
    note = found.detection.variant_note
    return StableVideo(found.config, found.unet, found.vae, found.clip_vision, device, dtype, note)


def _check(weights: str, device: torch.device | str, dtype: torch.dtype) -> None:
    if weights not in STORES:
        raise InputError(f"weights {weights!r} are not known: choose one of {', '.join(STORES)}")
    if weights == "fp8" and str(device).startswith("mps"):
        raise InputError(f"weights fp8 on {device}, which has no floats of 8 bits: choose int8 or whole")
    if dtype == torch.float64 and str(device).startswith("mps"):
        raise InputError(f"dtype {dtype} on {device}, which has no such floats: choose float32, or the CPU")
    if dtype not in NETWORK_DTYPES:
        names = ", ".join(map(str, NETWORK_DTYPES))
        raise InputError(f"dtype {dtype!r} is not one that the networks compute in: give one of {names}")


def known_device(device: torch.device | str) -> torch.device:
    """Parse a device. Raises InputError if torch does not know it or this machine does not have it."""
    try:
        known = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device {str(device)!r} is not known: give cpu, cuda, cuda:1 or mps") from error
    if not _is_there(known):
        raise InputError(f"device {str(device)!r} is not on this machine: give cpu, or cuda or mps where there is one")
    return known


def _is_there(device: torch.device) -> bool:
    """Whether this machine has the device and can store values on it; found by trying, since not every device type can
    be enumerated."""
    try:
        torch.empty(0, device=device)
    except Exception:  # missing backends raise various errors
        return False
    return device.type != "meta"
