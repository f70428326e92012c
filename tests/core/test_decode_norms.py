"""Norms in parts, in 16 bits on a CPU, where a batch norm's own parts do the work, against float64."""

import pytest
import torch
from torch import nn

from svd_core.decode.norms import Affine, Moments, by_batch_norm


def rows_of(dtype, height, width=11, channels=64):
    """A band (1, h, W, C) whose channels differ in mean and spread."""
    generator = torch.Generator().manual_seed(height)
    drawn = torch.randn(1, height, width, channels, generator=generator)
    return (drawn * torch.linspace(0.1, 3, channels) + torch.linspace(-8, 8, channels)).to(dtype)


def exact_norm(norm, tokens):
    whole = torch.cat([part.flatten(0, 2) for part in tokens]).double()
    return nn.functional.group_norm(whole.t()[None], norm.num_groups, eps=norm.eps)[0].t()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_statistics_of_16_bits_are_exact_far_beyond_their_last_digit(dtype):
    tokens = rows_of(dtype, 300)
    assert by_batch_norm(tokens)
    moments, rows = Moments.of(tokens), tokens.reshape(-1, 64).double()
    assert moments.mean.dtype == moments.variance.dtype == torch.float32
    assert moments.count == moments.split == 3300
    assert (moments.mean[0] - rows.mean(0)).abs().max() < 1e-5
    assert (moments.variance[0] / rows.var(0, correction=0) - 1).abs().max() < 5e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_a_norm_in_parts_of_16_bits_is_the_norm(dtype):
    norm = nn.GroupNorm(32, 64)
    parts = [rows_of(dtype, height) for height in (20, 20, 7)]
    affine = Affine.of(norm, [Moments.of(part) for part in parts])
    right = exact_norm(norm, parts)
    for function, exact in ((affine.normed, right), (affine.silu, nn.functional.silu(right))):
        found = torch.cat([function(part).flatten(0, 2) for part in parts])
        assert found.dtype == dtype
        assert (found.double() - exact).norm() / exact.norm() < torch.finfo(dtype).eps


@torch.inference_mode()
def test_a_strip_that_is_no_run_of_memory_has_the_bits_of_its_copy():
    clip = rows_of(torch.bfloat16, 40)[0]  # (40, 11, 64) as frames, pixels, channels
    strip = clip[:, 3:8]
    one, other = (Moments.of(part) for part in (strip, strip.contiguous()))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.variance, other.variance)
    affine = Affine(torch.rand(64), torch.rand(64))
    assert torch.equal(affine.silu(strip), affine.silu(strip.contiguous()))
    assert affine.silu(strip).data_ptr() != strip.data_ptr()


@torch.inference_mode()
def test_float32_keeps_its_own_sums():
    assert not by_batch_norm(rows_of(torch.float32, 3))
