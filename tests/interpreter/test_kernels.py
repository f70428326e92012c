"""Every kernel computes what its reference says, for odd sizes and all dtypes, in Triton's interpreter on the CPU."""

import pytest
import torch
from kernel_cases import SMALL, each, name_of

from svd_core.kernels.choice import error_of


@pytest.mark.parametrize(("case", "dtype"), list(each(SMALL)), ids=name_of)
def test_a_kernel_is_as_close_to_float64_as_torch(case, dtype):
    args = case.arguments(dtype)
    assert not case.operation.refusal(*args)
    for name, kernel in case.operation.kernels().items():
        assert not error_of(case.operation, kernel, args), name


@pytest.mark.parametrize("name", ["geglu, odd", "frame_conv, odd"])
def test_the_size_of_a_tile_changes_no_bit(name):
    case = next(case for case in SMALL if case.name == name)
    args = case.arguments(torch.float16)
    results = [kernel(*args) for kernel in case.operation.kernels().values()]
    assert len(results) > 1
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("name", ["group_norm_silu of clips, split", "frame_conv, odd", "frame_attention, packed"])
def test_no_bit_depends_on_how_many_clips_there_are(name):
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
