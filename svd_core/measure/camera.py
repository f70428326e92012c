"""Camera motion: the affine motion that most of a picture's flow agrees on.

Flow (n, 2, h, w) is in pixels, x right and y down. At an edge, flow is known only across it, and in an empty sky not at
all; so each pixel is weighted only in the directions in which its flow is visible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sampling.guidance import FLOAT32
from .flow import STIFFNESS, structure

GRID = 64
"""Samples along the shorter side used by the fit; more only cost time."""

UNSEEN = 0.1
"""Weight of a pixel, relative to a corner, in a direction in which its flow is not visible and therefore 0. An empty
sky thus suggests a still camera, unless visible flow says otherwise."""

ROUNDS = 10
INLIER = 0.3
"""Scale of the robust fit in its last round: pixels by which a flow may differ from the camera's and still count."""


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """Affine flow of n steps about the picture's centre: offset (n, 2) in pixels, and slope (n, 2, 2) in pixels per
    pixel, where slope[:, i, j] is the change of flow component i along axis j (x, then y)."""

    offset: Tensor
    slope: Tensor

    def flow(self, height: int, width: int) -> Tensor:
        """The camera's flow of each pixel, (n, 2, height, width)."""
        places = _places(height, width)  # (2, h, w)
        return self.offset[..., None, None] + torch.einsum("nij,jhw->nihw", self.slope, places)

    @property
    def zoom(self) -> Tensor:
        """Growth of the picture in percent per frame, (n,); positive when the camera comes closer."""
        return 50 * (self.slope[:, 0, 0] + self.slope[:, 1, 1])

    @property
    def roll(self) -> Tensor:
        """Clockwise rotation of the picture in degrees per frame, (n,)."""
        return (self.slope[:, 1, 0] - self.slope[:, 0, 1]) / 2 * (180 / math.pi)


@dataclass(frozen=True, slots=True, eq=False)
class Visibility:
    """How visible flow is at each pixel in each direction: the symmetric matrix S = G (G + k)^-1 (each entry (n, h, w))
    of the structure tensor G and the flow's stiffness k. Its eigenvalues are 1 across a strong edge, 0 along it."""

    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, luma: Tensor) -> Visibility:
        """The visibility in pictures of luma (n, 1, h, w)."""
        xx, xy, yy = (part[:, 0] for part in structure(luma))
        stiff_xx, stiff_yy = xx + STIFFNESS, yy + STIFFNESS
        inverse = STIFFNESS / (stiff_xx * stiff_yy - xy * xy)
        return cls(1 - inverse * stiff_yy, inverse * xy, 1 - inverse * stiff_xx)

    def length(self, flow: Tensor) -> Tensor:
        """Length (n, h, w) of the visible part of a flow (n, 2, h, w)."""
        x, y = flow[:, 0], flow[:, 1]
        return torch.hypot(self.xx * x + self.xy * y, self.xy * x + self.yy * y)

    def every(self, step: int) -> Visibility:
        """The visibility subsampled to every `step`-th row and column."""
        return Visibility(*(part[:, ::step, ::step] for part in (self.xx, self.xy, self.yy)))


def fit_camera(flow: Tensor, seen: Visibility) -> Camera:
    """Fit the affine motion of most of the picture to flow (n, 2, h, w), by least squares reweighted each round to
    exclude what moves differently (Geman-McClure estimator, its scale falling to INLIER pixels; Black and Anandan
    1996). A moving object that fills most of the visible area is taken for the camera.
    """
    height, width = flow.shape[-2:]
    step = max(1, min(height, width) // GRID)
    places, flow, seen = _places(height, width)[:, ::step, ::step], flow[..., ::step, ::step].double(), seen.every(step)
    visibility = _visibility(seen)
    unit = min(height, width) / 2
    basis = torch.stack([torch.ones_like(places[0]), places[0] / unit, places[1] / unit]).double()  # (3, h, w)
    found = _solve(basis, flow, visibility, torch.ones_like(flow[:, 0]))
    scale = _misfit(basis, flow, visibility, found).square().mean(dim=(1, 2)).sqrt()[:, None, None]
    for _ in range(ROUNDS):
        scale = (scale * 0.6).clamp(min=INLIER)
        weights = 1 / (1 + (_misfit(basis, flow, visibility, found) / scale).square()).square()
        found = _solve(basis, flow, visibility, weights)
    found = found.float()
    return Camera(found[:, :, 0], found[:, :, 1:] / unit)


def _places(height: int, width: int) -> Tensor:
    """Coordinates (2, h, w), x and y, of each pixel relative to the picture's centre."""
    y, x = torch.meshgrid(torch.arange(height, **FLOAT32) + 0.5, torch.arange(width, **FLOAT32) + 0.5, indexing="ij")
    return torch.stack([x - width / 2, y - height / 2])


def _visibility(seen: Visibility) -> Tensor:
    """Weight matrices (n, 2, 2, h, w): the visibility, raised to at least UNSEEN in every direction."""
    rows = [torch.stack([seen.xx, seen.xy], dim=1), torch.stack([seen.xy, seen.yy], dim=1)]
    identity = torch.eye(2, **FLOAT32)[None, :, :, None, None]
    return ((1 - UNSEEN) * torch.stack(rows, dim=1) + UNSEEN * identity).double()


def _misfit(basis: Tensor, flow: Tensor, visibility: Tensor, found: Tensor) -> Tensor:
    """Weighted distance (n, h, w) of each pixel's flow from the fit."""
    left = flow - torch.einsum("nik,khw->nihw", found, basis)
    return torch.einsum("nihw,nijhw,njhw->nhw", left, visibility, left).clamp(min=0).sqrt()


def _solve(basis: Tensor, flow: Tensor, visibility: Tensor, weights: Tensor) -> Tensor:
    """Weighted least-squares coefficients (n, 2, 3) of basis (3, h, w), for x and for y."""
    weighted = visibility * weights[:, None, None]
    matrix = torch.einsum("khw,nijhw,lhw->nikjl", basis, weighted, basis).flatten(3).flatten(1, 2)  # (n, 6, 6)
    wanted = torch.einsum("khw,nijhw,njhw->nik", basis, weighted, flow).flatten(1)
    return torch.linalg.solve(matrix, wanted).unflatten(1, (2, 3))
