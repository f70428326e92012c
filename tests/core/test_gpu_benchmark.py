"""The GPU benchmark's machinery, on the CPU at a tiny size: what would be wasted if it failed on a rented device."""

import pytest
import torch
from synthetic import TINY
from test_unet import SMALL

from benchmarks import gpu
from benchmarks.gpu import Case, decode_rows, interleaved, markdown, process_seconds, unet_flops, unet_rows
from benchmarks.gpu_peers import CONTESTANTS, OURS, Contestant, random_unet_weights
from svd_core.config import UNetConfig
from svd_core.model.backend import Backend
from svd_core.model.vae import VideoVAE
from tools.random_weights import random_like

CASE = Case(frames=2, clips=2, height=8, width=8)
BY_NAME = {each.name: each for each in CONTESTANTS}


@pytest.fixture(scope="module")
def weights():
    return random_unet_weights(SMALL, "cpu", torch.float32)


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


def test_the_decoder_is_measured_in_each_way():
    config = TINY.vae
    generator = torch.Generator().manual_seed(0)
    state = VideoVAE(config, backend=Backend(device="meta")).state_dict()
    weights = {name: random_like(name, like, generator) for name, like in state.items()}
    rows = decode_rows(
        2, (4, 4), config=config, weights=weights, device="cpu", dtype=torch.float32, seconds=process_seconds, rounds=1
    )
    assert [row.name for row in rows] == ["ours, all kept", "ours, one frame kept", "ours, bands"]


def test_without_a_cuda_device_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "no CUDA device here: run make bench-gpu on a machine with one; nothing was measured"
    ]
