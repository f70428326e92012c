"""Camera: the picture panned, zoomed and turned along the clip, while the model moves what is in it (`views.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..moves import CameraMove
from ..sampling.guidance import FLOAT32
from .views import by_frame, filled, from_middle, nothing, on_their_way, sampled, turned

PARALLAX = 0.6
"""How much further than the middle the nearest point moves, and how much less the farthest."""

STEPS = (16, 32, 64)
"""Steps from the nearest to the farthest level in which a ray looks for what it meets: the least that go no more than
`STRIDE` pixels each, as things that are thinner than a step are missed in part."""

STRIDE = 4

HALVINGS = 3
"""How often it then halves the way between two levels, so that edges are found to an eighth of it."""

ROUNDING = 1e-5
"""More than levels of nearness differ by rounding."""


def camera_view(move: CameraMove, pixels: Tensor, share: float, depth: Tensor | None = None) -> Tensor:
    """What a camera sees of pixels (1, C, H, W) in [-1, 1] after this share of its way. Beyond the picture's
    edges it is mirrored. depth (H, W), 1 near and 0 far: near points pass faster, and what comes out from behind
    them is filled smoothly from what is around it, far before near."""
    height, width = pixels.shape[-2:]
    way = _Way.of(move, share, height, width)
    if depth is None:
        return sampled(pixels.float(), way.shown(1.0), "bicubic").clamp(-1, 1)
    nearness, hidden = _met(way, 1 + PARALLAX * (2 * depth.float() - 1))
    view = sampled(pixels.float(), way.shown(nearness), "bicubic").clamp(-1, 1)
    far = ((2 - nearness) / (1 + PARALLAX)) ** 4
    return filled(view, torch.where(hidden, 0.0, far)[None, None])


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """Where the camera is on its way: turned (2, H, W), each pixel's place from the picture's middle turned with the
    camera; pan (2, 1, 1) in pixels; zoom, the magnification. Points of nearness 1 move as far as it says."""

    turned: Tensor
    pan: Tensor
    zoom: float

    @classmethod
    def of(cls, move: CameraMove, share: float, height: int, width: int) -> _Way:
        pan = torch.tensor([move.pan_x * width, move.pan_y * height], **FLOAT32)[:, None, None]
        return cls(turned(from_middle(height, width), move.roll * share), share * pan, move.zoom**share)

    def shown(self, nearness: Tensor | float) -> Tensor:
        """The point of the still that each pixel shows if what it meets there is this near: (2, H, W), from the
        middle."""
        return self.turned * self.zoom**-nearness + self.pan * nearness

    def levels(self) -> list[float]:
        """The levels of nearness at which rays are looked at, from near to far."""
        near, far = 1 + PARALLAX, 1 - PARALLAX
        reach = float((self.shown(near) - self.shown(far)).abs().amax())
        steps = next((steps for steps in STEPS if reach <= STRIDE * steps), STEPS[-1])
        return torch.linspace(near, far, steps + 1, **FLOAT32).tolist()


def _met(way: _Way, nearness: Tensor) -> tuple[Tensor, Tensor]:
    """How near the first point is that each pixel's ray meets, and whether none is there because the ray goes beneath
    a near thing: (H, W) each. Rays go through levels from near to far; where one comes from in front of a point to
    behind it, the place is looked for in halves (relief mapping, Policarpo et al. 2005). Things are sheets: a ray
    passes beneath their edges, and may meet what is farther."""

    def behind(level: Tensor | float) -> Tensor:
        return sampled(nearness[None, None], way.shown(level), "bilinear")[0, 0] - level

    levels = way.levels()
    step = levels[0] - levels[1]
    met, last = torch.full_like(nearness, levels[-1]), torch.full_like(nearness, -step)
    open_ray = torch.ones_like(nearness, dtype=torch.bool)
    for level in levels:
        here = behind(level)
        now = open_ray & (last < 0) & (here >= -ROUNDING) & (here <= 3 * step)
        met = torch.where(now, level, met)
        open_ray &= ~now
        left = level + step + last  # over a thing at the level before, and beyond its edge at this one
        over = open_ray & (last > -step) & (last < 0) & (here < -step)
        if bool(over.any()):
            over &= behind(left).abs() < ROUNDING
            met = torch.where(over, left, met)
            open_ray &= ~over
        last = here
    return _refined(met, open_ray, step, behind)


def _refined(
    met: Tensor, hidden: Tensor, step: float, behind: Callable[[Tensor | float], Tensor]
) -> tuple[Tensor, Tensor]:
    """Levels that rays met within a step above, found more closely, and what is hidden: also where a ray is beneath
    something, or on the steep side of an edge, after all."""
    for _ in range(HALVINGS):
        step /= 2
        met = torch.where(behind(met + step) >= 0, met + step, met)
    inside, outside = behind(met), behind(met + step)
    on_line = met + step * (inside / (inside - outside).clamp(min=ROUNDING)).clamp(0, 1)
    met = torch.where(outside < -3 * step, met + inside.clamp(0, step), on_line)  # beside an edge, as within it
    return met, hidden | (behind(met).abs() > 2 * step) | (behind(met - step) > 3 * step)


def filmed(
    pixels: Tensor,
    move: CameraMove,
    frames: int,
    depth: Tensor | None = None,
    *,
    watch: Callable[[], object] = nothing,
) -> Tensor:
    """What the camera sees at each frame: (T, 3, H, W), from a still (1, 3, H, W) or from T pictures, which move
    themselves, in [-1, 1]. depth (H, W) as in `camera_view`; of T pictures (T, H, W). All are on the CPU. watch:
    called before each view.

    Raises InputError for a depth of another size or number, and what is no `CameraMove`.
    """
    if not isinstance(move, CameraMove):
        raise InputError(f"camera {move!r:.40} is no CameraMove: give one")
    check_depth(depth, len(pixels), *pixels.shape[-2:])
    pictures = by_frame(pixels, frames, "pictures")
    depths = [None] * frames if depth is None else by_frame(depth.reshape(-1, *depth.shape[-2:]), frames, "depth maps")
    shares = move.progress(frames) if move.moves else [0.0] * frames

    def view(frame: int, picture: Tensor, share: float) -> Tensor:
        return camera_view(move, picture, share, depths[frame])

    return on_their_way(pictures, shares, view, watch)


def check_depth(depth: Tensor | None, pictures: int, height: int, width: int) -> None:
    """Raise InputError unless a depth map is a tensor of the pictures' size and number, (H, W) for one, with values in
    0 to 1."""
    if depth is None:
        return
    if not isinstance(depth, Tensor):
        raise InputError(f"the depth map is of class {type(depth).__name__} and no tensor: give one of shape (H, W)")
    if tuple(depth.shape[-2:]) != (height, width) or depth.ndim not in (2, 3):
        one = depth.ndim == 3 and len(depth) == pictures
        given = "x".join(str(side) for side in reversed(depth.shape[one:]))
        raise InputError(f"the depth map is {given} and the clip {width}x{height}: make it from the fitted picture")
    count = depth.shape[0] if depth.ndim == 3 else 1
    if count != pictures:
        raise InputError(f"{count} depth maps for {pictures} pictures: give the depth of each picture")
    if not bool(((depth >= 0) & (depth <= 1)).all()):
        raise InputError("the depth map holds values outside 0 to 1: 1 is near, 0 is far")
