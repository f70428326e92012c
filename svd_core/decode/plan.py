"""How much memory the streamed decoder needs, so that it can be chosen before it runs."""

from __future__ import annotations

from torch import Tensor

from ..config import PIXELS_PER_LATENT, VAEConfig

CLIP_AND_SOURCE = 1.5
"""Clips of the finest level held where it begins: itself, and the level it grows from, a quarter of the pixels at twice
the channels."""

WORKING_FRAMES = 8
"""Frames of the finest level that the layers need while they run: the doubled picture has twice the channels and lives
twice, 16-bit values are normalised in float32; the rest is left for the pixels and the libraries' workspaces."""


def streamed_bytes(config: VAEConfig, latents: Tensor, num_frames: int, chunk: int) -> int:
    """Estimated peak bytes, beyond the weights and the latents (N, 4, h, w), of streaming one clip with `chunk`.

    Counted in frames of the finest level, where the peak is: the clip with its source or with the kept results,
    whichever is more, and a fixed part. The image decoder holds no clip.
    """
    held = max(CLIP_AND_SOURCE * num_frames, num_frames + min(chunk, num_frames)) if config.temporal else 0
    return int((held + WORKING_FRAMES) * _frame_bytes(config, latents))


def chunk_for_budget(config: VAEConfig, latents: Tensor, num_frames: int, budget: int) -> int:
    """The largest chunk whose estimate fits `budget` bytes; 1, the least there is, when none does."""
    fitting = (k for k in range(num_frames, 1, -1) if streamed_bytes(config, latents, num_frames, k) <= budget)
    return next(fitting, 1)


def _frame_bytes(config: VAEConfig, latents: Tensor) -> int:
    height, width = latents.shape[-2:]
    return config.channels * height * width * PIXELS_PER_LATENT**2 * latents.element_size()
