"""Drag: a painted thing travels along a way of its own, while the model moves it and all else (`views.py`).

Each frame is shown the still with that thing further along; what it leaves behind is filled from around it. Directed
motion of the kind that DragNUWA (arXiv 2308.08089) and motion brushes train for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..errors import InputError
from ..moves import ObjectMove
from ..sampling.guidance import FLOAT32
from .views import by_frame, filled, from_middle, nothing, on_their_way, sampled, turned

EDGE = 2
"""Pixels around a painted thing that still show some of it, and are filled with what is around them when it leaves."""

FAINT = 0.05
"""Paint that leaves nothing behind: traces of a resized or compressed mask."""


def drag_view(move: ObjectMove, pixels: Tensor, mask: Tensor, share: float) -> Tensor:
    """Pixels (1, C, H, W) in [-1, 1] with what is painted in mask (H, W), 0 to 1, after this share of its way.
    What it leaves behind is filled from what is not painted; where all is, it stays."""
    painted = mask.float()[None, None]
    left = filled(pixels.float(), (max_pool2d(painted, 2 * EDGE + 1, 1, EDGE) <= FAINT).float())
    points = _shown(move, mask.float(), share)
    height, width = mask.shape
    inside = (points[0].abs() < width / 2) & (points[1].abs() < height / 2)
    opacity = sampled(painted, points, "bilinear") * inside
    return torch.lerp(left, sampled(pixels.float(), points, "bicubic").clamp(-1, 1), opacity)


def _shown(move: ObjectMove, mask: Tensor, share: float) -> Tensor:
    """The point of the still that each pixel shows where it shows the thing: (2, H, W), from the middle."""
    height, width = mask.shape
    places, opaque = from_middle(height, width), mask.double()  # sums that do not hang on the number of threads
    middle = torch.stack([(each * opaque).sum() / opaque.sum() for each in places]).float()[:, None, None]
    way = torch.tensor([move.right * width, move.down * height], **FLOAT32)[:, None, None]
    return turned(places - middle - share * way, -move.turn * share) / move.scale**share + middle


def dragged(
    pixels: Tensor, mask: Tensor, move: ObjectMove, frames: int, *, watch: Callable[[], object] = nothing
) -> Tensor:
    """The still (1, 3, H, W), or T pictures, in [-1, 1], with what is painted in mask (H, W), 0 to 1, on its way:
    (T, 3, H, W). All are on the CPU. watch: called before each view.

    Raises InputError for a mask of another size or without paint, and what is no `ObjectMove`.
    """
    if not isinstance(move, ObjectMove):
        raise InputError(f"drag {move!r:.40} is no ObjectMove: give one")
    check_painted(mask, *pixels.shape[-2:])
    pictures = by_frame(pixels, frames, "pictures")
    shares = move.progress(frames) if move.moves else [0.0] * frames
    return on_their_way(pictures, shares, lambda _, picture, share: drag_view(move, picture, mask, share), watch)


def check_painted(mask: Tensor, height: int, width: int) -> None:
    """Raise InputError unless a mask is a tensor (H, W) of the picture's size with values in 0 to 1, not all 0."""
    if not isinstance(mask, Tensor):
        raise InputError(f"the drag's mask is of class {type(mask).__name__} and no tensor: give one of shape (H, W)")
    if tuple(mask.shape) != (height, width):
        given = "x".join(str(side) for side in reversed(mask.shape))
        raise InputError(f"the drag's mask is {given} and the clip {width}x{height}: paint it on the fitted picture")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise InputError("the drag's mask holds values outside 0 to 1: 1 is what moves")
    if not bool((mask > 0).any()):
        raise InputError("nothing is painted in the drag's mask: paint what moves in white")
