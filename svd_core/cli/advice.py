"""Advice on an order before the long work: what approximates, what is unused, what the model was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..conditioning import warnings_for
from ..config import ModelConfig
from ..demo import DEMO_MODEL, DEMO_NOTE
from ..device_memory import has_own_memory, spare_bytes
from ..pipeline import StableVideo
from ..planning import gibibytes, least_beside_weights
from ..sampling import sigmas_from_list
from ..shot import Shot
from .order import Order

_SAGE = "attention sage sums in 8 bits: frames will differ a little from those of auto"
_INTERVAL = "guidance runs between noise levels {:g} and {:g} alone: frames will differ from those of all steps"
_REUSE = "reuse {:g} approximates: frames will differ from those of --reuse 0"
_UNUSED_STEPS = "steps {} is not used: the noise levels of --sigmas are the steps"
_WEIGHTS = {
    "int8": "weights int8 are rounded to 8 bits: frames will differ from those of whole",
    "fp8": "weights fp8 and what they multiply are rounded to 8 bits: frames will differ from those of whole; it is "
    "meant for NVIDIA GPUs from Ada on and slower elsewhere",
}


def advice(order: Order, svd: StableVideo, shot: Shot) -> Iterator[str]:
    """One sentence per piece of advice; none on the variant with a recipe, which settles all that it decides."""
    settings = order.settings
    if svd.variant_note and not order.recipe:
        yield svd.variant_note
    if settings.reuse > 0:
        yield _REUSE.format(settings.reuse)
    if settings.guidance_interval is not None:
        yield _INTERVAL.format(*settings.guidance_interval)
    if _has_unused_steps(order):
        yield _UNUSED_STEPS.format(settings.steps)
    if order.weights in _WEIGHTS:
        yield _WEIGHTS[order.weights]
    if order.attention == "sage":
        yield _SAGE
    if Path(order.checkpoint) == DEMO_MODEL:
        yield DEMO_NOTE
    yield from warnings_for(order.micro_conditioning, shot.settings.height, shot.settings.width, svd.config.variant)
    yield from _memory_advice(order, shot, svd.config)


def _has_unused_steps(order: Order) -> bool:
    """Whether both steps and sigmas were given and disagree. Recipes are exempt, because they store both."""
    settings = order.settings
    if order.recipe or settings.steps is None or settings.sigmas is None:
        return False
    return settings.steps != len(sigmas_from_list(settings.sigmas)) - 1


def _memory_advice(order: Order, shot: Shot, config: ModelConfig) -> Iterator[str]:
    """Whether a clip may not fit in the host's memory (on devices that use it), where the system may kill a process
    without a message. Free memory is only an estimate, so nothing is rejected."""
    job = order.job(shot, config)
    spare = None if has_own_memory(job.device) else spare_bytes(job.device)
    if spare is None or (needed := least_beside_weights(job, spare)) <= spare:
        return
    size = f"{job.frames} frames of {job.width}x{job.height} in {order.dtype}"
    yield (
        f"{size} need about {gibibytes(needed)} of memory beside the weights, and some {gibibytes(spare)} are free: "
        "a smaller --size, fewer --frames"
        f"{' or --dtype bfloat16' if order.dtype == 'float32' else ''} need less"
    )
