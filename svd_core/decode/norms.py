"""GroupNorms in two steps: statistics gathered part by part, then one multiplication and one addition per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..kernels import SPLIT_ROWS, Spans, affine_silu, merged_affine, owed_moments, split_moments
from .bands import Band
from .places import Place

CENTRED_VALUES = 2**20
"""Values whose deviations from the mean are squared at once on a CPU: 4 MiB, which fits its cache. The mean first and
then squares are as exact as Welford's one pass (`torch.var_mean`), which takes seven times as long there."""

NO_EPS = 1e-30
"""An eps that vanishes next to a variance of 1."""


def by_batch_norm(tokens: Tensor) -> bool:
    """Whether torch's batch-norm functions gather and apply the statistics. On a CPU they read 16 bits and accumulate
    in float32 in one pass, in a fifth of the time of float32 expressions, which make passes and copies of twice the
    size. Their variances have a relative error of up to 1e-4: a fortieth of bf16's last digit, and far too much for
    float32."""
    return tokens.is_cpu and tokens.itemsize < 4


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of each channel over every `split` of `count` rows, (S, C) each, in float32."""

    mean: Tensor
    variance: Tensor
    count: int
    split: int

    @classmethod
    def of(cls, tokens: Tensor) -> Moments:
        """The moments of tokens (..., C)."""
        if split_moments.wanted(tokens):
            return cls(*split_moments(tokens), tokens.numel() // tokens.shape[-1], SPLIT_ROWS)
        rows = tokens.reshape(-1, tokens.shape[-1])
        if by_batch_norm(rows):
            running = rows.new_zeros((2, rows.shape[1]), dtype=torch.float32)  # sets the results' dtype
            mean, variance = torch.batch_norm_update_stats(rows, *running, 1.0)
        elif not rows.is_cpu:
            variance, mean = torch.var_mean(rows.float(), dim=0, correction=0)
        else:
            rows = rows.float()
            mean = rows.mean(0)
            squares = [(part - mean).square_().sum(0) for part in rows.split(_rows_at_once(rows.shape[1]))]
            variance = torch.stack(squares).sum(0) / len(rows)
        return cls(mean[None], variance[None], len(rows), len(rows))

    @classmethod
    def owed(cls, tokens: Tensor, owed: Tensor, out: Tensor | None) -> Moments:
        """The moments of tokens (..., C) plus the bias owed (C,); the sum is stored in `out` if given."""
        _, mean, variance = owed_moments.into(out, tokens, owed)
        return cls(mean, variance, tokens.numel() // tokens.shape[-1], SPLIT_ROWS)


@dataclass(frozen=True, slots=True)
class Affine:
    """A GroupNorm with known statistics, as scale and shift (C,) in float32."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, norm: nn.Module, parts: Sequence[Moments]) -> Affine:
        """Merges the moments of parts, in order; all have equal counts except the last, which may be smaller."""
        spans = Spans(sum(part.count for part in parts), parts[0].count, parts[0].split)
        means, variances = (_joined(values) for values in ([p.mean for p in parts], [p.variance for p in parts]))
        return cls(*merged_affine(means, variances, norm.weight, norm.bias, norm.num_groups, norm.eps, spans))

    @classmethod
    def of_frame(cls, norm: nn.Module, frame: Tensor, place: Place, rows: Sequence[Band]) -> Affine:
        """With the statistics of a frame (1, C, H, W) in `place`, gathered band by band."""
        return cls.of(norm, [Moments.of(place.load(frame[:, :, band.rows]).movedim(1, -1)) for band in rows])

    def normed(self, tokens: Tensor) -> Tensor:
        """The normalised tokens (..., C), in their dtype."""
        if by_batch_norm(tokens):
            return self._batch_normed(tokens)
        return torch.addcmul(self.shift, tokens.float(), self.scale).to(tokens.dtype)

    def silu(self, tokens: Tensor) -> Tensor:
        """SiLU of the normalised tokens (..., C), in their dtype."""
        if by_batch_norm(tokens):
            return nn.functional.silu(self._batch_normed(tokens), inplace=True)
        return affine_silu(tokens, self.scale, self.shift)

    def _batch_normed(self, tokens: Tensor) -> Tensor:
        """The normalised tokens in new memory, by torch's batch norm."""
        rows = tokens.reshape(-1, tokens.shape[-1])
        still = torch.zeros_like(self.scale), torch.ones_like(self.scale)
        return nn.functional.batch_norm(rows, *still, self.scale, self.shift, eps=NO_EPS).view(tokens.shape)


def moments_bytes(values: int, itemsize: int) -> int:
    """Bytes that `Moments.of` holds in addition to its input."""
    return (4 * values if itemsize < 4 else 0) + 4 * min(values, CENTRED_VALUES)


def _rows_at_once(channels: int) -> int:
    return max(1, CENTRED_VALUES // channels)


def affine_bytes(values: int, itemsize: int) -> int:
    """Peak bytes that `Affine` holds in addition to its input, including its result."""
    return (8 if itemsize < 4 else 4) * values


def normed_bytes(values: int, itemsize: int, copied: int) -> int:
    """Peak bytes of gathering statistics and of applying them, with the `copied` bytes of a loaded part."""
    return copied + max(affine_bytes(values, itemsize), moments_bytes(values, itemsize))


def _joined(splits: list[Tensor]) -> Tensor:
    return splits[0] if len(splits) == 1 else torch.cat(splits)
