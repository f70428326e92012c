"""GroupNorms in two steps: statistics gathered part by part, then one multiplication and one addition a channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CENTRED_VALUES = 2**20
"""Values whose distance from the mean is squared at once on a CPU: 4 MiB, which its cache holds. Mean first and then
squares is as exact as Welford's one pass (`torch.var_mean`), which takes seven times as long there."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of each channel over `count` values, in float32."""

    mean: Tensor
    variance: Tensor
    count: int

    @classmethod
    def of(cls, tokens: Tensor) -> Moments:
        """tokens (..., C)."""
        rows = tokens.reshape(-1, tokens.shape[-1]).float()
        if not rows.is_cpu:
            variance, mean = torch.var_mean(rows, dim=0, correction=0)
            return cls(mean, variance, len(rows))
        mean = rows.mean(0)
        squares = [(part - mean).square_().sum(0) for part in rows.split(_rows_at_once(rows.shape[1]))]
        return cls(mean, torch.stack(squares).sum(0) / len(rows), len(rows))


@dataclass(frozen=True, slots=True)
class Affine:
    """A GroupNorm whose statistics are known, in float32."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, norm: nn.Module, parts: Sequence[Moments]) -> Affine:
        """Merges the parts' moments, in order and without cancellation, into those of each group of channels."""
        means = _by_group([part.mean for part in parts], norm.num_groups)  # (parts, groups, channels of a group)
        variances = _by_group([part.variance for part in parts], norm.num_groups)
        counts = means.new_tensor([part.count for part in parts])
        share = (counts / counts.sum())[:, None, None] / means.shape[-1]
        mean = (share * means).sum((0, 2), keepdim=True)
        variance = (share * (variances + (means - mean) ** 2)).sum((0, 2), keepdim=True)
        weight, bias = (_by_group([value.to(means)], norm.num_groups) for value in (norm.weight, norm.bias))
        scale = weight * torch.rsqrt(variance + norm.eps)
        return cls(scale.flatten(), (bias - mean * scale).flatten())

    def normed(self, tokens: Tensor) -> Tensor:
        """The normalised tokens (..., C), in their dtype."""
        return torch.addcmul(self.shift, tokens.float(), self.scale).to(tokens.dtype)

    def silu(self, tokens: Tensor) -> Tensor:
        """SiLU of the normalised tokens (..., C), in their dtype."""
        normed = torch.addcmul(self.shift, tokens.float(), self.scale)
        return nn.functional.silu(normed, inplace=True).to(tokens.dtype)


def moments_bytes(values: int, itemsize: int) -> int:
    """What `Moments.of` holds beside its input."""
    return (4 * values if itemsize < 4 else 0) + 4 * min(values, CENTRED_VALUES)


def _rows_at_once(channels: int) -> int:
    return max(1, CENTRED_VALUES // channels)


def affine_bytes(values: int, itemsize: int) -> int:
    """The most that `Affine` holds beside its input, its result included."""
    return (8 if itemsize < 4 else 4) * values


def _by_group(channels: Sequence[Tensor], groups: int) -> Tensor:
    """Vectors (C,) -> (vectors, groups, C / groups)."""
    return torch.stack(list(channels)).unflatten(-1, (groups, -1))
