"""Losses between decoded and original frames or clips."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss


def reconstruction_loss(restored: Tensor, pixels: Tensor, squared: float, edges: float) -> Tensor:
    """Mean absolute error plus weighted squared and edge errors; both inputs (N, 3, H, W) in [-1, 1] -> scalar.

    Edges are differences of neighbouring pixels. Their term keeps a small decoder from blurring, without a second
    network.
    """
    loss = l1_loss(restored, pixels) + squared * mse_loss(restored, pixels)
    return loss + edges * (_along(restored, pixels, -1) + _along(restored, pixels, -2))


def difference_loss(restored: Tensor, pixels: Tensor) -> Tensor:
    """Mean absolute error of frame-to-frame differences, both inputs (B, T, 3, H, W) -> scalar; 0 for one frame."""
    if pixels.shape[1] == 1:
        return restored.new_zeros(())
    return _along(restored, pixels, 1)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the unit normal, mean over all latent values (scalar)."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()


def _along(restored: Tensor, pixels: Tensor, axis: int) -> Tensor:
    return l1_loss(restored.diff(dim=axis), pixels.diff(dim=axis))
