"""What a clip shows, measured from its pixels: how alike pictures are, how much moves, and where a rocket flies.

These figures check a trained model on scenes whose truth is known, so none of them knows how the scenes are drawn.
Frames are (T, H, W, 3) in [0, 1]; flow is in pixels a frame, x right and y down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, grid_sample, interpolate, pad

from svd_core.errors import InputError

LUMA = (0.299, 0.587, 0.114)
LEAST_SIDE = 12
"""Pixels along the shorter side of the coarsest level of the pyramid."""
ITERATIONS = 5
LONGEST_STEP = 1.0
"""Pixels of its level that one iteration may correct the flow by."""
WINDOW = 1.6
"""Standard deviation in pixels of the neighbourhood that is taken to move as one."""
STIFFNESS = 2e-4
"""Added to the structure tensor's diagonal (squared luma per pixel): where nothing can be seen, nothing moves."""


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two arrays of one shape in [0, 1]; infinite when they are equal."""
    if image.shape != reference.shape:
        raise InputError(f"cannot compare {image.shape} with {reference.shape}: give two arrays of one shape")
    error = float(np.mean((np.asarray(image, np.float64) - np.asarray(reference, np.float64)) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation in [-1, 1], ties sharing their mean rank; NaN when either is constant."""
    if len(one) != len(other) or len(one) < 2:
        raise InputError(f"cannot correlate {len(one)} with {len(other)} values: give at least two pairs")
    x, y = _ranks(one), _ranks(other)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else math.nan


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, place, count = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return ((last - count + 1 + last) / 2)[place]


def optical_flow(frames: np.ndarray) -> np.ndarray:
    """Dense flow from each frame to the next -> (T - 1, H, W, 2) float32, pixels a frame.

    Lucas-Kanade, iterated with warping over a pyramid (Bouguet 2001), on luma. Where a neighbourhood has no texture
    the flow shrinks to 0, so a mean over the picture grows with what is seen to move, not with the empty sky behind.
    Raises InputError for anything but (T, H, W, 3) with at least 2 frames.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 2:
        raise InputError(f"frames have shape {frames.shape}: need (T, H, W, 3) with at least 2 frames")
    luma = torch.as_tensor(np.ascontiguousarray(frames, np.float32)) @ torch.tensor(LUMA)
    levels = _pyramid(luma[:, None])  # each (T, 1, h, w), finest first
    flow = torch.zeros(len(luma) - 1, 2, *levels[-1].shape[-2:])
    for level in reversed(levels):
        flow = _resized(flow, level.shape[-2], level.shape[-1])
        flow = _refined(flow, level[:-1], level[1:])
    return flow.permute(0, 2, 3, 1).numpy()


def flow_magnitude(frames: np.ndarray) -> np.ndarray:
    """Mean length of the flow over the picture -> (T - 1,) float32, pixels a frame."""
    return np.linalg.norm(optical_flow(frames), axis=-1).mean(axis=(1, 2))


def motion_direction(frames: np.ndarray) -> tuple[float, float] | None:
    """Unit vector (x right, y down) along which the one moving thing of a clip travels; None when nothing moves.

    For a rocket before a standing background. The flow is summed over pixels and frames, each weighted by the
    square of its length, so that what moves outvotes a background that only shimmers.
    """
    flow = optical_flow(frames).astype(np.float64)
    x, y = (flow * (flow**2).sum(axis=-1, keepdims=True)).sum(axis=(0, 1, 2))
    length = math.hypot(x, y)
    return (x / length, y / length) if length else None


def angle_between(one: Sequence[float], other: Sequence[float]) -> float:
    """Degrees from 0 to 180 between two directions (x, y)."""
    cross, dot = one[0] * other[1] - one[1] * other[0], one[0] * other[0] + one[1] * other[1]
    return math.degrees(abs(math.atan2(cross, dot)))


def _pyramid(luma: Tensor) -> list[Tensor]:
    levels = [_blurred(luma, 0.7)]
    while min(levels[-1].shape[-2:]) >= 2 * LEAST_SIDE:
        levels.append(avg_pool2d(_blurred(levels[-1], 0.8), 2))
    return levels


def _blurred(picture: Tensor, deviation: float) -> Tensor:
    """A Gaussian blur of (n, c, h, w), edges repeated."""
    reach = math.ceil(2.5 * deviation)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    kernel = kernel / kernel.sum()
    n, c, h, w = picture.shape
    planes = pad(picture.reshape(n * c, 1, h, w), (reach,) * 4, mode="replicate")
    return conv2d(conv2d(planes, kernel[None, None, None]), kernel[None, None, :, None]).reshape(n, c, h, w)


def _resized(flow: Tensor, height: int, width: int) -> Tensor:
    """Flow of a coarser level in this level's pixels."""
    scale = torch.tensor([width / flow.shape[-1], height / flow.shape[-2]])[:, None, None]
    return interpolate(flow, (height, width), mode="bilinear", align_corners=False) * scale


def _refined(flow: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Flow (n, 2, h, w) after the level's iterations; first and second (n, 1, h, w)."""
    for _ in range(ITERATIONS):
        warped, seen = _warped(second, flow)
        flow = flow + _correction(first, warped, seen).clamp(-LONGEST_STEP, LONGEST_STEP)
    return flow


def _correction(first: Tensor, second: Tensor, seen: Tensor) -> Tensor:
    """The least-squares displacement (n, 2, h, w) of each neighbourhood that is left between two pictures, from those
    of its pixels that are seen (n, 1, h, w), 1 or 0, in both."""
    gx, gy = (slope * seen for slope in _slopes((first + second) / 2))
    change = second - first
    products = torch.cat([gx * gx, gx * gy, gy * gy, gx * change, gy * change], dim=1)
    xx, xy, yy, xt, yt = _blurred(products, WINDOW).split(1, dim=1)
    xx, yy = xx + STIFFNESS, yy + STIFFNESS
    determinant = xx * yy - xy * xy
    return torch.cat([xy * yt - yy * xt, xy * xt - xx * yt], dim=1) / determinant


def _slopes(picture: Tensor) -> tuple[Tensor, Tensor]:
    wide = pad(picture, (1, 1, 1, 1), mode="replicate")
    return (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2, (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2


def _warped(picture: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """What the picture shows where the flow leads, and 1 where that is inside the picture and 0 elsewhere."""
    height, width = picture.shape[-2:]
    x = torch.arange(width) + 0.5 + flow[:, 0]
    y = torch.arange(height)[:, None] + 0.5 + flow[:, 1]
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], dim=-1)  # (n, h, w, 2)
    seen = (grid.abs() <= 1).all(dim=-1)[:, None].to(picture.dtype)
    return grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False), seen
