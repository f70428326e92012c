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
from torch.nn.functional import grid_sample

from ..config import PIXELS_PER_LATENT
from ..errors import InputError
from ..sampling.guidance import FLOAT32
from ..settings import is_whole

MAX_PAN, MAX_ZOOM, MAX_ROLL = 1.0, 4.0, 180.0

PARALLAX = 0.6
"""How much further than the middle the nearest point moves, and how much less the farthest."""

ROUNDS = 6
"""Fixed-point rounds that find which point of the still a pixel of a view shows when points move by their depth."""


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
        edges it is mirrored. depth (H, W), 1 near and 0 far: near points pass faster."""
        height, width = pixels.shape[-2:]
        points = _shown_points(self, share, height, width, depth)
        grid = torch.stack([2 * points[0] / width, 2 * points[1] / height], dim=-1)[None]
        seen = grid_sample(pixels.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        return seen.clamp(-1, 1)


def _shown_points(move: CameraMove, share: float, height: int, width: int, depth: Tensor | None) -> Tensor:
    """The point of the still that each pixel of a view shows: (2, H, W), pixels right and down from the middle."""
    turned = _turned(_places(height, width), math.radians(move.roll * share))
    pan = torch.tensor([move.pan_x * width, move.pan_y * height], **FLOAT32)[:, None, None] * share
    travel = pan + (move.zoom**-share - 1) * turned
    shown = turned + travel
    if depth is None:
        return shown
    nearness = (1 + PARALLAX * (2 * depth.float() - 1))[None, None]
    for _ in range(ROUNDS):
        grid = torch.stack([2 * shown[0] / width, 2 * shown[1] / height], dim=-1)[None]
        there = grid_sample(nearness, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        shown = turned + there[0] * travel
    return shown


def _places(height: int, width: int) -> Tensor:
    """(2, H, W): each pixel's centre, right and down from the picture's middle."""
    y, x = torch.meshgrid(torch.arange(height, **FLOAT32), torch.arange(width, **FLOAT32), indexing="ij")
    return torch.stack([x + (0.5 - width / 2), y + (0.5 - height / 2)])


def _turned(places: Tensor, angle: float) -> Tensor:
    """Places turned clockwise, as seen with y down."""
    x, y = places
    return torch.stack([math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y])


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
