"""Every kernel computes what its reference says, for odd sizes and all dtypes, in Triton's interpreter on the CPU."""

import pytest
import torch
from kernel_cases import EIGHT_BITS, SMALL, each, name_of

from svd_core.kernels import in_fp8
from svd_core.kernels.choice import error_of


@pytest.mark.parametrize(("case", "dtype"), list(each(SMALL)), ids=name_of)
def test_a_kernel_is_as_close_to_float64_as_torch(case, dtype):
    args = case.arguments(dtype)
    assert not case.operation.refusal(*args)
    for name, kernel in case.operation.kernels().items():
        assert not error_of(case.operation, kernel, args), name


@pytest.mark.parametrize("name", ["geglu, odd", "frame_conv, odd"])
def test_the_size_of_a_tile_changes_no_bit(sums_in_order, name):
    case = next(case for case in SMALL if case.name == name)
    args = case.arguments(torch.float16)
    results = [kernel(*args) for kernel in case.operation.kernels().values()]
    assert len(results) > 1
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("name", ["group_norm_silu of clips, split", "frame_conv, odd", "frame_attention, packed"])
def test_no_bit_depends_on_how_many_clips_there_are(sums_in_order, name):
    case = next(case for case in SMALL if case.name == name)
    args = case.arguments(torch.float32)
    tensors = 3 if "attention" in name else 1
    kernel = next(iter(case.operation.kernels().values()))
    twice = tuple(torch.cat([arg, arg]) for arg in args[:tensors])
    if "conv" in name or "norm" in name:
        twice = tuple(arg.movedim(1, -1).contiguous().movedim(-1, 1) for arg in twice)
    doubled = kernel(*twice, *args[tensors:])
    assert torch.equal(doubled[: len(args[0])], kernel(*args))
    assert torch.equal(doubled[len(args[0]) :], kernel(*args))


def products_in_triton():
    from svd_core.kernels.fp8_linear_triton import TILES

    return TILES


@pytest.mark.parametrize(("case", "dtype"), list(each(EIGHT_BITS)), ids=name_of)
def test_a_product_of_eight_bits_is_as_close_to_float64_as_torch(case, dtype):
    args = case.arguments(dtype)
    assert not case.operation.refusal(*args)
    for name, kernel in products_in_triton().items():
        assert not error_of(case.operation, kernel, args), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_rounded_to_the_bits_of_the_reference(dtype):
    from svd_core.kernels.fp8_linear_triton import rounded

    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(2, 40, 48, generator=generator) * 10 ** torch.linspace(-6, 4, 40)[:, None]
    rows[0, 0] = 0
    rows[1, :3, :3] = torch.tensor([448.0, 448.5, 447.0])
    rows = rows.to(dtype)
    for found, right in zip(rounded(rows), in_fp8(rows), strict=True):
        assert torch.equal(found.float(), right.flatten(0, 1).float())


def test_a_row_that_is_no_number_stays_none():
    from svd_core.kernels.fp8_linear_triton import rounded

    rows = torch.ones(3, 16)
    rows[0, 5], rows[1, 2] = float("nan"), float("inf")
    stored, _ = rounded(rows)
    assert stored[0, 5].isnan() and stored[1, 2].isnan() and torch.equal(stored[2].float(), torch.full((16,), 256.0))
