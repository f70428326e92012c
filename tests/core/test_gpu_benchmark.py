"""The GPU benchmark's machinery, on the CPU at a tiny size: what would be wasted if it failed on a rented device."""

from dataclasses import replace

import pytest
import torch
from synthetic import TINY
from test_unet import SMALL

from benchmarks import gpu
from benchmarks.gpu import (
    DECODERS,
    UNSEEN,
    Case,
    decode_rows,
    interleaved,
    markdown,
    measured_peaks,
    process_seconds,
    unet_flops,
    unet_roofline,
    unet_rows,
)
from benchmarks.gpu_clip import STAGES, OnCard, clip_table, clip_time, random_model
from benchmarks.gpu_peers import CONTESTANTS, OURS, Contestant
from benchmarks.unet_peers import random_weights
from benchmarks.work import ATTENTION, CONVOLUTION, GEMM, NORM, OTHER, Peaks
from svd_core.config import UNetConfig

CASE = Case(frames=2, clips=2, height=8, width=8)
BY_NAME = {each.name: each for each in CONTESTANTS}


@pytest.fixture(scope="module")
def weights():
    return random_weights(SMALL, torch.float32)


def test_all_compute_the_same_before_they_are_timed(comfy, weights):
    names = ["ours", "diffusers, eager", "diffusers, channels last", "ComfyUI"]
    rows = unet_rows(
        CASE, SMALL, weights, [BY_NAME[name] for name in names], seconds=process_seconds, rounds=2, peak=1e12
    )
    assert [row.name for row in rows] == names
    assert all(row.error < 1e-5 and row.seconds > 0 and 0 < row.of_peak < 1 and not row.note for row in rows)
    assert rows[0].times_ours == 1
    assert "| ours |" in markdown(rows, {"device": "cpu"})


def test_one_that_fails_is_told_and_the_others_go_on(weights):
    def broken(config, weights):
        raise RuntimeError("CUDA error: out of luck\nmore")

    rows = unet_rows(CASE, SMALL, weights, [Contestant("broken", broken), OURS], seconds=process_seconds, rounds=1)
    assert [(row.name, row.note) for row in rows] == [
        ("broken", "not measured: CUDA error: out of luck"),
        ("ours", ""),
    ]


def test_rounds_begin_with_another_contestant_each_time():
    order = []
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    timed = interleaved(runs, lambda run: (run(), float(len(order)))[1], 2)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc" + "bca"
    assert {name: len(each) for name, each in timed.items()} == {"a": 2, "b": 2, "c": 2}


def test_flops_are_those_of_the_released_model():
    assert unet_flops(Case(14, 1, 72, 128), UNetConfig()) == pytest.approx(44.802e12, rel=1e-3)


def test_a_step_is_told_by_class_with_its_floor(weights):
    ticks = iter(range(10**6))
    seconds = lambda run: (run(), next(ticks), 1e-3)[2]  # noqa: E731
    lines = unet_roofline(CASE, SMALL, weights, 100.0, Peaks(1e9, 1e9), seconds=seconds)
    rows = {cells[1].strip(): cells[2:-1] for cells in (line.split("|") for line in lines[4:])}
    assert list(rows) == [GEMM, CONVOLUTION, ATTENTION, NORM, OTHER, UNSEEN]
    launches = sum(int(cells[0]) for cells in rows.values())
    assert 1000 < launches < next(ticks)
    assert all(float(cells[3]) == pytest.approx(1e-3 * int(cells[0])) for name, cells in rows.items() if name != UNSEEN)
    # No kernel of ours runs on a CPU, so all that a step asks for was seen, and the rest of its time is left over.
    assert float(rows[UNSEEN][1]) == 0 and float(rows[UNSEEN][3]) == pytest.approx(100, abs=10)


def test_peaks_are_those_of_a_product_and_a_copy():
    peaks = measured_peaks("cpu", torch.float32, edge=4, values=8, seconds=lambda run: (run(), 2.0)[1])
    assert peaks == Peaks(flops=2 * 4**3 / 2, bytes=2 * 32 / 2)


def test_decoders_agree_before_they_are_timed(comfy):
    rows = decode_rows(2, (4, 4), device="cpu", dtype=torch.float32, seconds=process_seconds, rounds=1)
    assert [row.name for row in rows] == [each.name for each in DECODERS]
    assert not any(row.note for row in rows)
    exact = [row.error for row in rows if "8 GiB" not in row.name]
    assert max(exact) < 1e-5 and rows[0].times_ours == 1


def test_a_clip_is_timed_by_stage():
    config = replace(TINY, variant=replace(TINY.variant, frames=2, height=64, width=64))
    svd = random_model("cpu", torch.float32, config)
    row = clip_time(svd, 2, clips=1)
    assert row.case == "2 frames of 64x64, 2 steps"
    assert list(row.stages) == list(STAGES)
    assert 0 < max(row.stages.values()) < row.seconds
    card = OnCard(6, 5.5, 5.25, 12, "visit", "host", True)
    assert "| 6 | 5.50 | 5.25 | 12.0 | visit | host | yes |" in clip_table([row], [card])


def test_without_a_cuda_device_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "no CUDA device here: run make bench-gpu on a machine with one; nothing was measured"
    ]
