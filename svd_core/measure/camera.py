"""What the camera does: the one affine motion that most of a picture's flow agrees on.

Flow (n, 2, h, w) is in pixels, x right and y down. Where a picture has an edge and no corner, flow is known across the
edge and not along it, and in an empty sky not at all; so every pixel has its say only in the directions that it sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .flow import STIFFNESS, structure

GRID = 64
"""Samples along the shorter side that the fit looks at; more change nothing but the time."""

UNSEEN = 0.1
"""How much say a pixel has, compared with a corner, in a direction that it does not see, where its flow is 0. An empty
sky counts for a camera that stands still, unless what can be seen says otherwise."""

ROUNDS = 10
INLIER = 0.3
"""Pixels that a flow may differ from the camera's and still be taken for it, in the last round."""


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """Affine flow of n steps about the picture's middle: offset (n, 2) in pixels, slope (n, 2, 2) in pixels per pixel,
    row x then y, column x then y."""

    offset: Tensor
    slope: Tensor

    def flow(self, height: int, width: int) -> Tensor:
        """(n, 2, height, width): what the camera does to each pixel."""
        places = _places(height, width)  # (2, h, w)
        return self.offset[..., None, None] + torch.einsum("nij,jhw->nihw", self.slope, places)

    @property
    def zoom(self) -> Tensor:
        """(n,) percent a frame by which the picture grows: above 0 the camera comes closer."""
        return 50 * (self.slope[:, 0, 0] + self.slope[:, 1, 1])

    @property
    def roll(self) -> Tensor:
        """(n,) degrees a frame by which the picture turns clockwise."""
        return (self.slope[:, 1, 0] - self.slope[:, 0, 1]) / 2 * (180 / math.pi)


@dataclass(frozen=True, slots=True, eq=False)
class Visibility:
    """How far each pixel sees in each direction: the symmetric matrix S = G (G + k)^-1 (n, h, w each of its entries)
    of the structure tensor G and the flow's stiffness k. Its eigenvalues are 1 across a strong edge, 0 along it."""

    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, luma: Tensor) -> Visibility:
        """luma (n, 1, h, w)."""
        xx, xy, yy = (part[:, 0] for part in structure(luma))
        stiff_xx, stiff_yy = xx + STIFFNESS, yy + STIFFNESS
        inverse = STIFFNESS / (stiff_xx * stiff_yy - xy * xy)
        return cls(1 - inverse * stiff_yy, inverse * xy, 1 - inverse * stiff_xx)

    def length(self, flow: Tensor) -> Tensor:
        """Length (n, h, w) of the part of a flow (n, 2, h, w) that can be seen."""
        x, y = flow[:, 0], flow[:, 1]
        return torch.hypot(self.xx * x + self.xy * y, self.xy * x + self.yy * y)

    def every(self, step: int) -> Visibility:
        """The same at one pixel in so many, both ways."""
        return Visibility(*(part[:, ::step, ::step] for part in (self.xx, self.xy, self.yy)))


def fit_camera(flow: Tensor, seen: Visibility) -> Camera:
    """The affine motion of most of the picture, by least squares whose weights leave out, round by round, what moves
    otherwise (Geman-McClure's estimator, its scale falling to INLIER pixels; Black and Anandan 1996).

    flow (n, 2, h, w). Where a thing that moves fills most of what can be seen, it is taken for the camera.
    """
    height, width = flow.shape[-2:]
    step = max(1, min(height, width) // GRID)
    places, flow, seen = _places(height, width)[:, ::step, ::step], flow[..., ::step, ::step].double(), seen.every(step)
    say = _say(seen)
    unit = min(height, width) / 2
    basis = torch.stack([torch.ones_like(places[0]), places[0] / unit, places[1] / unit]).double()  # (3, h, w)
    found = _solve(basis, flow, say, torch.ones_like(flow[:, 0]))
    scale = _misfit(basis, flow, say, found).square().mean(dim=(1, 2)).sqrt()[:, None, None]
    for _ in range(ROUNDS):
        scale = (scale * 0.6).clamp(min=INLIER)
        weights = 1 / (1 + (_misfit(basis, flow, say, found) / scale).square()).square()
        found = _solve(basis, flow, say, weights)
    found = found.float()
    return Camera(found[:, :, 0], found[:, :, 1:] / unit)


def _places(height: int, width: int) -> Tensor:
    """(2, h, w): x and y of each pixel, from the picture's middle."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x - width / 2, y - height / 2])


def _say(seen: Visibility) -> Tensor:
    """(n, 2, 2, h, w): the visibility, with some for what is not seen."""
    rows = [torch.stack([seen.xx, seen.xy], dim=1), torch.stack([seen.xy, seen.yy], dim=1)]
    identity = torch.eye(2)[None, :, :, None, None]
    return ((1 - UNSEEN) * torch.stack(rows, dim=1) + UNSEEN * identity).double()


def _misfit(basis: Tensor, flow: Tensor, say: Tensor, found: Tensor) -> Tensor:
    """(n, h, w): how far each pixel's flow is from the fit, in the directions that it sees."""
    left = flow - torch.einsum("nik,khw->nihw", found, basis)
    return torch.einsum("nihw,nijhw,njhw->nhw", left, say, left).clamp(min=0).sqrt()


def _solve(basis: Tensor, flow: Tensor, say: Tensor, weights: Tensor) -> Tensor:
    """(n, 2, 3): the weighted least-squares coefficients of basis (3, h, w), for x and for y."""
    weighted = say * weights[:, None, None]
    matrix = torch.einsum("khw,nijhw,lhw->nikjl", basis, weighted, basis).flatten(3).flatten(1, 2)  # (n, 6, 6)
    wanted = torch.einsum("khw,nijhw,njhw->nik", basis, weighted, flow).flatten(1)
    return torch.linalg.solve(matrix, wanted).unflatten(1, (2, 3))
