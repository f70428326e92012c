"""Views: each frame of a clip is shown a picture of its own, such as the still under a moving camera.

The network copies appearance from the still's latent at the same place in each frame. Released models are shown one
still in every frame; shown a moved one in each, they move along, and what they move themselves comes on top. No
training and no model call; works on any model conditioned like SVD. Class: approximate, as the model was trained on one
still for all frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from ..config import PIXELS_PER_LATENT
from ..errors import InputError
from ..sampling.guidance import FLOAT32
from ..settings import is_whole


def view_latents(first: Tensor, views: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """The latents that a clip's frames are shown: (1, T, 4, h, w), unscaled.

    first (1, 4, h, w) is the conditioning's, of the still with its augmentation; views (T, 3, H, W) in [-1, 1] begin
    with the still. What the augmentation added to the still's latent is added to every view's, and frames that show the
    still have `first` itself. encode: pixels (1, 3, H, W) -> unscaled latent, called once for the still and for each
    other view. Raises InputError for views of another size.
    """
    height, width = views.shape[-2:]
    cells = tuple(PIXELS_PER_LATENT * side for side in first.shape[-2:])
    if cells != (height, width):
        raise InputError(
            f"the still is {width}x{height} and its conditioning for {cells[1]}x{cells[0]} pixels: give the still that "
            "was conditioned on"
        )
    still, *_ = views.split(1)
    moved = [not torch.equal(view, still) for view in views.split(1)]
    added = first - encode(still).to(first) if any(moved) else None
    latents = [
        encode(view).to(first) + added if moves else first for view, moves in zip(views.split(1), moved, strict=True)
    ]
    return torch.stack(latents, dim=1)


def by_frame(given: Tensor, frames: int, name: str) -> Tensor:
    """One for each of `frames`, from one or as many. Raises InputError for another number, or no number of frames."""
    if isinstance(frames, bool) or not is_whole(frames) or frames < 1:
        raise InputError(f"{name} for {frames!r:.40} frames: give a whole number of 1 or more")
    if len(given) not in (1, frames):
        raise InputError(f"{len(given)} {name} for {frames} frames: give one, or one for each frame")
    return given.expand(frames, *given.shape[1:])


def nothing() -> None:
    """Stands in where no one watches."""


def on_their_way(
    pictures: Tensor,
    shares: Sequence[float],
    view: Callable[[int, Tensor, float], Tensor],
    watch: Callable[[], object] = nothing,
) -> Tensor:
    """(T, 3, H, W): each picture at its share of the way, of which those at its start keep their bits. view: frame,
    picture (1, 3, H, W), share -> view of it. watch: called before each view, which may take seconds; may raise."""
    views = torch.empty(pictures.shape, dtype=torch.float32, device="cpu")  # filled one by one, so never there twice
    for frame, (picture, share) in enumerate(zip(pictures.split(1), shares, strict=True)):
        watch()
        views[frame] = (picture if share == 0 else view(frame, picture, share))[0]
    return views


def from_middle(height: int, width: int) -> Tensor:
    """Places of all pixels of a picture, right and down from its middle: (2, H, W)."""
    y, x = torch.meshgrid(torch.arange(height, **FLOAT32), torch.arange(width, **FLOAT32), indexing="ij")
    return torch.stack([x + (0.5 - width / 2), y + (0.5 - height / 2)])


def turned(points: Tensor, degrees: float) -> Tensor:
    """Points (2, ...), right and down, turned clockwise."""
    (x, y), angle = points, math.radians(degrees)
    return torch.stack([math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y])


def sampled(picture: Tensor, points: Tensor, mode: str) -> Tensor:
    """A picture (1, C, H, W) at points (2, h, w) in pixels from its middle, mirrored beyond its edges."""
    height, width = picture.shape[-2:]
    grid = torch.stack([2 * points[0] / width, 2 * points[1] / height], dim=-1)[None]
    return grid_sample(picture, grid, mode=mode, padding_mode="reflection", align_corners=False)


def filled(picture: Tensor, weight: Tensor) -> Tensor:
    """A picture (1, C, h, w) whose pixels of weight 0 (1, 1, h, w) are filled from the others, by their weights, 1 for
    those that can be relied on: from ever smaller pictures, as far as holes reach. One without weights stays as it is.
    """
    if bool((weight > 0).all()) or not bool((weight > 0).any()):
        return picture
    return torch.where(weight > 0, picture, _spread(*_halved(picture, weight), picture.shape[-2:]))


def _spread(picture: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """A smaller picture at a size. What weighs less than 1 there is taken from a yet smaller one as far as it does."""
    if max(picture.shape[-2:]) > 1 and bool((weight < 1).any()):
        around = _spread(*_halved(picture, weight), picture.shape[-2:])
        picture = torch.lerp(around, picture, weight.clamp(max=1))
    return interpolate(picture, size, mode="bilinear", align_corners=False)


def _halved(picture: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A picture of half the size, each pixel the mean of four by their weights, and the sum of these."""
    share = avg_pool2d(weight, 2, ceil_mode=True, divisor_override=1)
    total = avg_pool2d(picture * weight, 2, ceil_mode=True, divisor_override=1)
    return total / share.clamp(min=torch.finfo(torch.float32).tiny), share
