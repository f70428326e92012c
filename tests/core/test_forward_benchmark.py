"""The rules of `benchmarks.forward`: equality before time, rotated rounds, ratios of the same round."""

import copy

import pytest
import torch
from torch import nn

from benchmarks import forward
from benchmarks.work import GEMM, OTHER, Work
from svd_core.config import UNetConfig
from tools.random_weights import relative


def test_the_reference_is_the_same_weights_in_a_finer_dtype_which_leave_again():
    network = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 8))).requires_grad_(False)
    before = [parameter.data_ptr() for parameter in network.parameters()]
    x = torch.randn(3, 8)
    expected = copy.deepcopy(network).double()(x.double())
    with forward.precise(network, torch.float64):
        torch.testing.assert_close(network(x.double()), expected, rtol=0, atol=0)
    assert before == [parameter.data_ptr() for parameter in network.parameters()]
    assert network(x).dtype == torch.float32


def test_what_is_less_exact_than_the_others_is_not_timed():
    forward._check({"ours": 1.9e-6, "diffusers": 1e-6, "ComfyUI": 3e-6})
    with pytest.raises(ValueError, match=r"ours: error 2.1e-06, allowed 2.0 times the others' 1.0e-06"):
        forward._check({"ours": 2.1e-6, "diffusers": 1e-6, "ComfyUI": 3e-6})
    with pytest.raises(ValueError, match="error nan"):
        forward._check({"ours": float("nan"), "diffusers": 1e-6})


def test_each_round_begins_with_another_contestant():
    ran = []
    runs = {name: lambda name=name: ran.append(name) for name in "abc"}
    for number in range(3):
        forward._round(runs, number)
    assert "".join(ran) == "abcbcacab"


def test_ratios_are_of_the_same_round():
    times = [
        {"ours": (1.0, 2.0), "theirs": (2.0, 4.0)},
        {"ours": (10.0, 20.0), "theirs": (15.0, 30.0)},
        {"ours": (2.0, 4.0), "theirs": (2.0, 4.0)},
    ]
    row = forward._row(forward.CASES[0], "theirs", 0.0, 5.0, times)
    assert (row.cpu_ratio, row.cpu_ratio_range) == (1.5, (1.0, 2.0))
    assert (row.wall_ratio, row.wall_ratio_range) == (1.5, (1.0, 2.0))
    assert (row.cpu_seconds, row.least_cpu_seconds, row.rounds) == (2.0, 2.0, 3)


def test_work_by_class_is_told_with_its_floor():
    a = torch.randn(4, 8)
    with torch.no_grad(), Work() as work:
        (a @ a.t()).add_(1)
    assert work.classes[GEMM].flops == 2 * 4 * 8 * 4 and work.classes[OTHER].launches == 1
    tallies = {GEMM: {"launches": 1, "bytes": 8, "flops": 100, "seconds": 4.0}}
    result = {"peaks": (50.0, 8.0), "rows": [{"case": "a case", "dtype": "float32"}], "work": tallies}
    assert forward._roofline(result)[-1] == f"| {GEMM} | 1 | 0.0 | 0.00 | 4.0000 | 2.0000 | 50 % |"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_whole_samplings_of_all_three_are_the_same(comfy):
    """What the end-to-end case compares, at a size that takes a moment."""
    config = UNetConfig(model_channels=32, head_channels=32, context_dim=24, vector_dim=48)
    field = forward.sampling_field(config, (2, 8, 8), 2)(torch.float32)
    with torch.no_grad():
        reference = field.reference()
        errors = {name: relative(run(), reference) for name, run in field.runs.items()}
    assert list(errors) == ["ours", "diffusers", "ComfyUI"]
    assert max(errors.values()) < 1e-4
    assert errors["ours"] <= forward.ERROR_LIMIT * min(errors.values())
