"""How much memory the streamed decoder needs, so that it can be chosen before it runs."""

from __future__ import annotations

from torch import Tensor

from ..config import PIXELS_PER_LATENT, VAEConfig

HELD_CLIPS = 2
"""Clips at the finest level that live at once: the activations, and their coarser source, which is half as large,
beside the pixels in two copies."""

WORKING_FRAMES = 12
"""Frames at the finest level that one layer needs while it runs: the doubled picture has twice the channels, its
normalised copy, two hidden results, float32 copies for the statistics, and the library's own workspace."""


def streamed_bytes(config: VAEConfig, latents: Tensor, num_frames: int, chunk: int) -> int:
    """Estimated peak bytes beyond the weights and the latents (N, 4, h, w) of one streamed clip.

    Proportional to one frame of the finest level: the clip held, the frames kept by `chunk`, and a fixed scratch.
    """
    if not config.temporal:
        return WORKING_FRAMES * _frame_bytes(config, latents)
    return (HELD_CLIPS * num_frames + min(chunk, num_frames) + WORKING_FRAMES) * _frame_bytes(config, latents)


def chunk_for_budget(config: VAEConfig, latents: Tensor, num_frames: int, budget: int) -> int:
    """The largest chunk whose estimate fits `budget` bytes; 1, the least there is, when none does."""
    fitting = (k for k in range(num_frames, 1, -1) if streamed_bytes(config, latents, num_frames, k) <= budget)
    return next(fitting, 1)


def _frame_bytes(config: VAEConfig, latents: Tensor) -> int:
    height, width = latents.shape[-2:]
    return config.channels * height * width * PIXELS_PER_LATENT**2 * latents.element_size()
