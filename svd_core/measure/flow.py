"""Dense optical flow in torch: the displacement of each pixel from one frame to the next.

Frames are (T, H, W, 3) in [0, 1]; flow is in pixels per frame, x right and y down. Tensors are (n, channels, h, w).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, grid_sample, interpolate, pad

from ..errors import InputError
from ..sampling.guidance import FLOAT32

LUMA = (0.299, 0.587, 0.114)
LEAST_CLIP_SIDE = 16
"""Smallest frame side in pixels on which motion can be measured."""
LEAST_SIDE = 12
"""Fewest pixels along the shorter side of a pyramid level."""
ITERATIONS = 5
LONGEST_STEP = 1.0
"""Largest correction of the flow in one iteration, in pixels of the level."""
WINDOW = 1.6
"""Standard deviation in pixels of the neighbourhood that is assumed to move as one."""
STIFFNESS = 2e-4
"""Added to the structure tensor's diagonal (squared luma per pixel), so that flow is 0 where there is no texture."""


def optical_flow(frames: np.ndarray) -> np.ndarray:
    """Dense flow from each frame to the next -> (T - 1, H, W, 2) float32, pixels per frame.

    Lucas-Kanade, iterated with warping over a pyramid (Bouguet 2001), on luma. Without texture the flow shrinks to 0,
    so a mean over the picture reflects visible motion, not the empty sky behind it.
    Raises InputError for anything but (T, H, W, 3) with at least 2 frames.
    """
    require_clip(frames)
    levels = _pyramid(luma_of(frames))  # each (T, 1, h, w), finest first
    flow = _coarse_to_fine([level[:-1] for level in levels], [level[1:] for level in levels])
    return flow.permute(0, 2, 3, 1).numpy()


def flow_between(first: Tensor, second: Tensor) -> Tensor:
    """Flow (n, 2, H, W) from each picture of luma (n, 1, H, W) to its counterpart; see `optical_flow`."""
    return _coarse_to_fine(_pyramid(first), _pyramid(second))


def flow_magnitude(frames: np.ndarray) -> np.ndarray:
    """Mean length of the flow over the picture -> (T - 1,) float32, pixels per frame."""
    return np.linalg.norm(optical_flow(frames), axis=-1).mean(axis=(1, 2))


def require_clip(frames: np.ndarray) -> None:
    """Raise InputError for anything but (T, H, W, 3) with at least 2 frames."""
    if frames.ndim == 4 and len(frames) == 1:
        raise InputError("one picture has no motion: connect the frames of a clip, at least 2 frames")
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 2:
        raise InputError(f"frames have shape {frames.shape}: need (T, H, W, 3) with at least 2 frames")


def as_tensor(frames: np.ndarray) -> Tensor:
    """An array as a tensor, without a copy if it is float32 already."""
    return torch.as_tensor(np.ascontiguousarray(frames, np.float32), device="cpu")


def luma_of(frames: np.ndarray) -> Tensor:
    """Luma of frames: (T, H, W, 3) in [0, 1] -> (T, 1, H, W) float32 in [0, 1]."""
    return (as_tensor(frames) @ torch.tensor(LUMA, **FLOAT32))[:, None]


def shrunk(frames: np.ndarray, side: int) -> tuple[np.ndarray, int]:
    """Frames (T, H, W, 3) averaged over squares to at most `side` pixels a side, and the squares' side in pixels.
    Returned unchanged, with 1, if the shorter side would become too short to see motion."""
    factor = -(-max(frames.shape[1:3]) // side)
    if factor == 1 or min(frames.shape[1:3]) < factor * LEAST_CLIP_SIDE:
        return frames, 1
    planes = (as_tensor(frame).movedim(-1, 0) for frame in frames)
    return np.stack([avg_pool2d(plane, factor).movedim(0, -1).numpy() for plane in planes]), factor


def structure(picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The structure tensor's xx, xy and yy, (n, 1, h, w) each: squared luma per pixel, averaged over a neighbourhood.

    Its small eigenvalue is high where both components of the flow are visible, its large one where at least one is.
    """
    gx, gy = _slopes(picture)
    xx, xy, yy = blurred(torch.cat([gx * gx, gx * gy, gy * gy], dim=1), WINDOW).split(1, dim=1)
    return xx, xy, yy


def warped(picture: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Sample the picture (n, c, h, w) at the positions that the flow (n, 2, h, w) points to. Also returns a mask
    (n, 1, h, w): 1 where that is inside the picture, else 0."""
    height, width = picture.shape[-2:]
    x = torch.arange(width, **FLOAT32) + 0.5 + flow[:, 0]
    y = torch.arange(height, **FLOAT32)[:, None] + 0.5 + flow[:, 1]
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], dim=-1)  # (n, h, w, 2)
    seen = (grid.abs() <= 1).all(dim=-1)[:, None].to(picture.dtype)
    return grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False), seen


def blurred(picture: Tensor, deviation: float) -> Tensor:
    """A Gaussian blur of (n, c, h, w), with replicated edges."""
    reach = math.ceil(2.5 * deviation)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, **FLOAT32) / deviation) ** 2)
    kernel = kernel / kernel.sum()
    n, c, h, w = picture.shape
    planes = pad(picture.reshape(n * c, 1, h, w), (reach,) * 4, mode="replicate")
    return conv2d(conv2d(planes, kernel[None, None, None]), kernel[None, None, :, None]).reshape(n, c, h, w)


def _coarse_to_fine(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """The flow (n, 2, h, w) between two pyramids, each finest level first."""
    flow = first[0].new_zeros(len(first[0]), 2, *first[-1].shape[-2:])
    for here, there in zip(reversed(first), reversed(second), strict=True):
        flow = _resized(flow, here.shape[-2], here.shape[-1])
        flow = _refined(flow, here, there)
    return flow


def _pyramid(luma: Tensor) -> list[Tensor]:
    levels = [blurred(luma, 0.7)]
    while min(levels[-1].shape[-2:]) >= 2 * LEAST_SIDE:
        levels.append(avg_pool2d(blurred(levels[-1], 0.8), 2))
    return levels


def _resized(flow: Tensor, height: int, width: int) -> Tensor:
    """Flow of a coarser level, resized to this level and scaled to its pixels."""
    scale = flow.new_tensor([width / flow.shape[-1], height / flow.shape[-2]])[:, None, None]
    return interpolate(flow, (height, width), mode="bilinear", align_corners=False) * scale


def _refined(flow: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Flow (n, 2, h, w) after the level's iterations; first and second are (n, 1, h, w)."""
    for _ in range(ITERATIONS):
        there, seen = warped(second, flow)
        flow = flow + _correction(first, there, seen).clamp(-LONGEST_STEP, LONGEST_STEP)
    return flow


def _correction(first: Tensor, second: Tensor, seen: Tensor) -> Tensor:
    """The remaining least-squares displacement (n, 2, h, w) of each neighbourhood between two pictures, using only the
    pixels whose `seen` (n, 1, h, w) is 1."""
    gx, gy = (slope * seen for slope in _slopes((first + second) / 2))
    change = second - first
    products = torch.cat([gx * gx, gx * gy, gy * gy, gx * change, gy * change], dim=1)
    xx, xy, yy, xt, yt = blurred(products, WINDOW).split(1, dim=1)
    xx, yy = xx + STIFFNESS, yy + STIFFNESS
    determinant = xx * yy - xy * xy
    return torch.cat([xy * yt - yy * xt, xy * xt - xx * yt], dim=1) / determinant


def _slopes(picture: Tensor) -> tuple[Tensor, Tensor]:
    wide = pad(picture, (1, 1, 1, 1), mode="replicate")
    return (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2, (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
