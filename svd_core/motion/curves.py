"""Curves: settings that change from frame to frame.

The network adds its embedded micro-conditioning to every frame separately, so motion bucket and augmentation can differ
per frame. It was trained on constants only, so curves are outside its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..conditioning import MAX_AUGMENTATION, MAX_MOTION_BUCKET, Conditioning
from ..errors import InputError
from ..sampling.guidance import curve_guidance
from ..settings import is_number
from ..sinusoid import sinusoid

PerFrame = float | Sequence[float] | Sequence[tuple[float, float]]
"""One number for all frames, one for each, or points (position, value) of a curve."""


def curve_values(given: PerFrame, num_frames: int) -> Tensor:
    """A curve (T,) float32 from one number, one number per frame, or points (position, value) with position 0 the first
    frame and 1 the last. Raises InputError for another count, NaN or infinity, and invalid points."""
    if is_number(given):
        return _in_float32([float(given)] * num_frames)
    values = _listed(given)
    if values and not is_number(values[0]):
        return curve_guidance(num_frames, _points(values))
    if len(values) == 1:
        return curve_values(float(values[0]), num_frames)
    if len(values) != num_frames:
        raise InputError(f"{len(values)} values for {num_frames} frames: give one value, or one for each frame")
    return _in_float32(values)


def _listed(given: object) -> list[Any]:
    try:
        return list(given)
    except TypeError as error:
        raise InputError(f"curve {given!r} is no list: give a number, one for each frame, or points") from error


def _points(values: Sequence[Any]) -> list[tuple[float, float]]:
    try:
        points = [(float(position), float(value)) for position, value in values]
    except (TypeError, ValueError) as error:
        raise InputError(f"curve {values!r} has no points: give pairs of a position in 0 to 1 and a value") from error
    _in_float32([value for _, value in points])
    return points


def _in_float32(values: Sequence[float]) -> Tensor:
    """Convert through float64, because torch raises an error of its own for values that float32 cannot hold. Raises
    InputError instead."""
    curve = torch.tensor([float(value) for value in values], dtype=torch.float64, device="cpu").float()
    if not torch.isfinite(curve).all():
        raise InputError(
            f"curve of {', '.join(f'{value:g}' for value in values[:3])}: needed numbers, give finite ones"
        )
    return curve


def with_curves(cond: Conditioning, motion_bucket: Tensor | None, augmentation: Tensor | None) -> Conditioning:
    """The conditioning with a motion bucket, an augmentation or both per frame, (T,); None keeps the current value.

    Raises InputError for values out of range and for two curves of different lengths.
    """
    lengths = {len(curve) for curve in (motion_bucket, augmentation) if curve is not None}
    if not lengths:
        return cond
    if len(lengths) > 1:
        raise InputError(f"curves of {' and '.join(map(str, sorted(lengths)))} frames: give both for the same clip")
    check_curves(motion_bucket, augmentation)
    vector = cond.vector if cond.vector.ndim == 3 else cond.vector[:, None].expand(-1, lengths.pop(), -1)
    fps, bucket, level = vector.chunk(3, dim=-1)
    parts = [fps, _embedded(motion_bucket, bucket), _embedded(augmentation, level)]
    return replace(cond, vector=torch.cat(parts, dim=-1))


def check_curves(motion_bucket: Tensor | None, augmentation: Tensor | None) -> None:
    """Raise InputError for values that the network was never told; None is not checked."""
    _check_range("motion bucket", motion_bucket, MAX_MOTION_BUCKET)
    _check_range("augmentation", augmentation, MAX_AUGMENTATION)


def _embedded(curve: Tensor | None, part: Tensor) -> Tensor:
    """The curve's sinusoids, shaped like `part` (B, T, V / 3); `part` itself without a curve."""
    if curve is None:
        return part
    return sinusoid(curve.to(part.device), part.shape[-1]).to(part).expand_as(part)


def _check_range(name: str, curve: Tensor | None, most: float) -> None:
    if curve is not None and not bool(((curve >= 0) & (curve <= most)).all()):
        low, high = curve.min().item(), curve.max().item()
        raise InputError(f"the {name} curve goes from {low:g} to {high:g}: values must lie within 0 to {most:g}")
