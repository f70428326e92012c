"""Camera: the picture panned, zoomed and turned along the clip, while the model moves what is in it.

The network copies appearance from the still's latent at the same place in each frame. Released models are shown one
still in every frame; here each frame is shown its own view of that still, as the camera would see it there, so motion
that the model adds is relative to the camera's. No training and no model call; works on any model conditioned like SVD.
Class: approximate, as views are no pictures that the model was trained to hold still against.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from ..config import PIXELS_PER_LATENT
from ..errors import InputError
from ..sampling.guidance import FLOAT32
from ..settings import is_whole

MAX_PAN, MAX_ZOOM, MAX_ROLL = 1.0, 4.0, 180.0

PARALLAX = 0.6
"""How much further than the middle the nearest point moves, and how much less the farthest."""

LEVELS = 17
"""Levels of nearness at which a ray looks for what it meets; between two it goes on in a straight line."""


@dataclass(frozen=True, slots=True)
class CameraMove:
    """Where the camera is at the end of the clip; it starts at the still and moves evenly, or gently at both ends.

    pan_x, pan_y: -1 to 1, how far it travels right and down, as a share of the picture's width and height. zoom: 0.25
    to 4, how much larger the picture's middle is at the end. roll: -180 to 180, degrees that the camera turns
    clockwise, so that the picture turns the other way. Raises InputError for what is out of range.
    """

    pan_x: float = 0.0
    pan_y: float = 0.0
    zoom: float = 1.0
    roll: float = 0.0
    ease: bool = False

    def __post_init__(self) -> None:
        for name in ("pan_x", "pan_y"):
            self._check(name, -MAX_PAN, MAX_PAN, "0.2 is a fifth of the picture")
        self._check("zoom", 1 / MAX_ZOOM, MAX_ZOOM, "1.2 comes closer, 0.8 goes back")
        self._check("roll", -MAX_ROLL, MAX_ROLL, "degrees, 5 is a slight turn")
        if not isinstance(self.ease, bool):
            raise InputError(f"ease {self.ease!r} is not true or false: true starts and ends gently")

    def _check(self, name: str, least: float, most: float, usual: str) -> None:
        """Keep the value as a Python float, which a recipe can store."""
        given = getattr(self, name)
        value = given.item() if getattr(given, "ndim", None) == 0 else given
        if not isinstance(value, Real) or isinstance(value, bool) or not least <= value <= most:
            raise InputError(f"camera {name} {given!r:.40} is no number from {least:g} to {most:g}: {usual}")
        object.__setattr__(self, name, float(value))

    @property
    def moves(self) -> bool:
        return (self.pan_x, self.pan_y, self.zoom, self.roll) != (0, 0, 1, 0)

    def progress(self, frames: int) -> list[float]:
        """The share of the way that is behind the camera at each frame: 0 at the first, 1 at the last."""
        times = [frame / max(1, frames - 1) for frame in range(frames)]
        return [time * time * (3 - 2 * time) for time in times] if self.ease else times

    def view(self, pixels: Tensor, share: float, depth: Tensor | None = None) -> Tensor:
        """What the camera sees of pixels (1, C, H, W) in [-1, 1] after this share of its way. Beyond the picture's
        edges it is mirrored. depth (H, W), 1 near and 0 far: near points pass faster, and what comes out from behind
        them is filled smoothly from what is around it, far before near."""
        height, width = pixels.shape[-2:]
        way = _Way.of(self, share, height, width)
        if depth is None:
            return _sampled(pixels.float(), way.shown(1.0), "bicubic").clamp(-1, 1)
        nearness, hidden = _met(way, 1 + PARALLAX * (2 * depth.float() - 1))
        view = _sampled(pixels.float(), way.shown(nearness), "bicubic").clamp(-1, 1)
        return _filled(view, torch.where(hidden, 0.0, (2 - nearness) ** 4)[None, None])


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """Where the camera is on its way: turned (2, H, W), each pixel's place from the picture's middle turned with the
    camera; pan (2, 1, 1) in pixels; zoom, the magnification. Points of nearness 1 move as far as it says."""

    turned: Tensor
    pan: Tensor
    zoom: float

    @classmethod
    def of(cls, move: CameraMove, share: float, height: int, width: int) -> _Way:
        y, x = torch.meshgrid(torch.arange(height, **FLOAT32), torch.arange(width, **FLOAT32), indexing="ij")
        x, y, angle = x + (0.5 - width / 2), y + (0.5 - height / 2), math.radians(move.roll * share)
        turned = [math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y]
        pan = torch.tensor([move.pan_x * width, move.pan_y * height], **FLOAT32)[:, None, None]
        return cls(torch.stack(turned), share * pan, move.zoom**share)

    def shown(self, nearness: Tensor | float) -> Tensor:
        """The point of the still that each pixel shows if what it meets there is this near: (2, H, W), from the
        middle."""
        return self.turned * self.zoom**-nearness + self.pan * nearness


def _met(way: _Way, nearness: Tensor) -> tuple[Tensor, Tensor]:
    """How near the first point is that each pixel's ray meets, and whether none is there because the ray went behind
    one: (H, W) each. Rays go through levels from near to far (relief mapping, Policarpo et al. 2005)."""
    levels = torch.linspace(1 + PARALLAX, 1 - PARALLAX, LEVELS).tolist()
    met, open_ray = torch.zeros_like(nearness), torch.ones_like(nearness, dtype=torch.bool)
    hidden, before = torch.zeros_like(open_ray), torch.zeros_like(nearness)
    step = levels[0] - levels[1]
    for level in levels:
        behind = _sampled(nearness[None, None], way.shown(level), "bilinear")[0, 0] - level
        now = open_ray & ((behind >= 0) | (level == levels[-1]))
        met[now] = (level + step * behind / (behind - before).clamp(min=1e-6)).clamp(max=level + step)[now]
        hidden |= now & (behind > 2 * step)
        open_ray &= ~now
        before = behind.clamp(max=0)
    return met, hidden


def _sampled(picture: Tensor, points: Tensor, mode: str) -> Tensor:
    """A picture (1, C, H, W) at points (2, h, w) in pixels from its middle, mirrored beyond its edges."""
    height, width = picture.shape[-2:]
    grid = torch.stack([2 * points[0] / width, 2 * points[1] / height], dim=-1)[None]
    return grid_sample(picture, grid, mode=mode, padding_mode="reflection", align_corners=False)


def _filled(picture: Tensor, weight: Tensor) -> Tensor:
    """A picture (1, C, h, w) whose pixels of weight 0 (1, 1, h, w) are filled from the others, by their weights: from
    ever smaller pictures, as far as holes reach."""
    if min(picture.shape[-2:]) < 2 or bool((weight > 0).all()):
        return picture
    share = avg_pool2d(weight, 2, ceil_mode=True)
    smaller = avg_pool2d(picture * weight, 2, ceil_mode=True) / share.clamp(min=torch.finfo(torch.float32).tiny)
    around = interpolate(_filled(smaller, share), picture.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(weight > 0, picture, around)


def view_latents(
    first: Tensor,
    pixels: Tensor,
    move: CameraMove,
    frames: int,
    encode: Callable[[Tensor], Tensor],
    depth: Tensor | None = None,
) -> Tensor:
    """The latents that a clip's frames are shown: (1, T, 4, h, w), unscaled.

    first (1, 4, h, w) is the conditioning's, of the still pixels (1, 3, H, W) in [-1, 1] with its augmentation; what
    the augmentation added to the latent is added to every view's, and frame 0 has `first` itself. encode: pixels ->
    unscaled latents, called T times for a moving camera. depth as in `CameraMove.view`.

    Raises InputError for a still or depth of another size, what is no `CameraMove`, and a number of frames below 1.
    """
    _check_shot(first, pixels, move, frames)
    check_depth(depth, *pixels.shape[-2:])
    added = first - encode(pixels).to(first) if move.moves and frames > 1 else None
    views = [
        first if share == 0 or added is None else encode(move.view(pixels, share, depth)).to(first) + added
        for share in move.progress(frames)
    ]
    return torch.stack(views, dim=1)


def _check_shot(first: Tensor, pixels: Tensor, move: CameraMove, frames: int) -> None:
    if not isinstance(move, CameraMove):
        raise InputError(f"camera {move!r:.40} is no CameraMove: give one")
    if isinstance(frames, bool) or not is_whole(frames) or frames < 1:
        raise InputError(f"a camera over {frames!r:.40} frames: give a whole number of 1 or more")
    height, width = pixels.shape[-2:]
    cells = tuple(PIXELS_PER_LATENT * side for side in first.shape[-2:])
    if cells != (height, width):
        raise InputError(
            f"the still is {width}x{height} and its conditioning for {cells[1]}x{cells[0]} pixels: give the still that "
            "was conditioned on"
        )


def check_depth(depth: Tensor | None, height: int, width: int) -> None:
    """Raise InputError unless a depth map is a tensor (H, W) of the picture's size with values in 0 to 1."""
    if depth is None:
        return
    if not isinstance(depth, Tensor):
        raise InputError(f"the depth map is of class {type(depth).__name__} and no tensor: give one of shape (H, W)")
    if tuple(depth.shape) != (height, width):
        given = "x".join(str(side) for side in reversed(depth.shape))
        raise InputError(f"the depth map is {given} and the clip {width}x{height}: make it from the fitted picture")
    if not bool(((depth >= 0) & (depth <= 1)).all()):
        raise InputError("the depth map holds values outside 0 to 1: 1 is near, 0 is far")
