"""Sentences for the front end about how a clip will run in the memory that ComfyUI reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.model_management

from ...svd_core.planning import decode_in_words, gibibytes
from .model import StableVideoModel
from .motion.combined import windows_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor

    from ...svd_core.decode.plan import DecodePlan


def sampling_in_words(patcher: ModelPatcher, latent: Tensor) -> tuple[str, ...]:
    """One sentence about how latents (N, 4, h, w) will be sampled; empty for a model that is not ours."""
    if not isinstance(patcher.model, StableVideoModel):
        return ()
    windows = windows_of(patcher)
    frames = min(latent.shape[0], windows.length) if windows else latent.shape[0]
    weights, activations = patcher.model_size(), int(patcher.model.memory_required([frames, *latent.shape[1:]]))
    said = f"weights {gibibytes(weights)}, activations {gibibytes(activations)}"
    if patcher.load_device == patcher.offload_device:
        return (f"Sampling: {said}.",)
    # Other models are unloaded when room is needed, so the whole device counts.
    room = comfy.model_management.get_total_memory(patcher.load_device) - comfy.model_management.extra_reserved_memory()
    off = max(0, weights + activations - room)
    where = f"{gibibytes(off)} of the weights stay on the host, which is slower" if off else "all on the device"
    return (f"Sampling: {said}; {where}.",)


def decoding_in_words(plan: DecodePlan) -> str:
    """One sentence about how a clip will be decoded."""
    host = f", {gibibytes(plan.host_bytes)} of the host's memory" if plan.host_bytes else ""
    return f"Decoding: {gibibytes(plan.device_bytes)} on the device{host}; {decode_in_words(plan)}."
