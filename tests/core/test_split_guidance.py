"""Guidance in two processes gives the bits of one that runs the passes in turn."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import write_checkpoint
from torch import nn

from svd_core.cli import main
from svd_core.conditioning import Conditioning
from svd_core.errors import InputError
from svd_core.media import read_recipe
from svd_core.sampling import GuidanceInterval, GuidedDenoiser, edm_sigmas, linear_guidance, sample_euler
from svd_core.sampling.split import GuidanceSplit, split_guidance

ROOT = Path(__file__).resolve().parents[2]
FRAMES, CLIPS = 3, 2


class Meeting(GuidanceSplit):
    """A split whose two processes are threads."""

    def __init__(self, rank, barrier, table):
        object.__setattr__(self, "rank", rank)
        self.__dict__.update(barrier=barrier, table=table)

    def exchange(self, mine):
        self.table[self.rank] = mine
        self.barrier.wait(60)
        both = (self.table[0], self.table[1])
        self.barrier.wait(60)
        return both


class Network(nn.Module):
    """Its result depends on all it is given. Counts its calls."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 3, padding=1)
        self.calls = 0

    def forward(self, x, c_noise, context, vector, num_frames):
        self.calls += 1
        shift = context[:, 0].sum(1) + vector.sum(1) + c_noise
        return torch.tanh(self.conv(x) + shift[:, None, None, None])


def denoiser(network, **more):
    generator = torch.Generator().manual_seed(1)
    shapes = ((CLIPS, 1, 8), (CLIPS, 4, 4, 6), (CLIPS, 6))
    conditioning = Conditioning(*(torch.randn(shape, generator=generator) for shape in shapes))
    return GuidedDenoiser(network, conditioning, linear_guidance(FRAMES, 1.0, 2.5), joint=False, **more)


@torch.no_grad()
def sampled(denoise):
    noise = torch.randn(CLIPS * FRAMES, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    return sample_euler(denoise, 700 * noise, edm_sigmas(4))


@pytest.mark.parametrize("interval", [None, GuidanceInterval(0.1, 50.0)])
def test_two_halves_give_the_bits_of_the_whole_with_one_pass_each(interval):
    network = Network()
    whole = sampled(denoiser(network, interval=interval))
    passes, barrier, table, found = network.calls, threading.Barrier(2), {}, {}
    networks = [network, Network()]
    networks[1].load_state_dict(network.state_dict())
    network.calls = 0

    def half(rank):
        found[rank] = sampled(denoiser(networks[rank], interval=interval, split=Meeting(rank, barrier, table)))

    threads = [threading.Thread(target=half, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0], whole)
    assert torch.equal(found[1], whole)
    # A step outside the interval has one pass, which both halves run rather than wait for.
    unguided = 0 if interval is None else int((~interval.holds(edm_sigmas(4)[:-1])).sum())
    assert [each.calls for each in networks] == [4, 4]
    assert passes == 8 - unguided


def test_one_process_alone_cannot_split():
    with pytest.raises(InputError, match="start torchrun --nproc-per-node 2"), split_guidance(torch.device("cpu")):
        pass


def test_a_torch_that_joins_no_processes_says_so(monkeypatch):
    """AMD's builds for Windows, whose torch.distributed lacks the other functions, too."""
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.delattr(torch.distributed, "is_torchelastic_launched")
    with pytest.raises(InputError, match="cannot be split: this build"), split_guidance(torch.device("cpu")):
        pass


def test_a_torch_without_nccl_says_so(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(InputError, match=r"on cuda:0: .* has no NCCL"), split_guidance(torch.device("cuda:0")):
        pass


def run(processes, *command):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [*launcher, "-m", "svd_core", "animate", *command, "--split-guidance"]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_two_processes_write_one_clip_that_one_process_repeats_to_the_byte(tmp_path):
    Image.fromarray(np.arange(64 * 96 * 3, dtype=np.uint32).reshape(64, 96, 3).astype(np.uint8)).save(
        tmp_path / "still.png"
    )
    write_checkpoint(tmp_path / "tiny.safetensors")
    places = ["--checkpoint", f"{tmp_path}/tiny.safetensors", "--device", "cpu", "--output", f"{tmp_path}/clip.webp"]
    ran = run(2, f"{tmp_path}/still.png", *places)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("clip.webp: 128x64, 3 frames") == 1
    assert ran.stderr.count("note: frames of 128x64") == 1
    assert read_recipe(tmp_path / "clip.webp").split_guidance
    assert main(["animate", "--recipe", f"{tmp_path}/clip.webp", "--output", f"{tmp_path}/again.webp"]) == 0
    assert (tmp_path / "again.webp").read_bytes() == (tmp_path / "clip.webp").read_bytes()


def test_without_torchrun_the_command_line_says_how(tmp_path, capsys):
    assert main(["animate", f"{tmp_path}/still.png", "--output", f"{tmp_path}/clip.gif", "--split-guidance"]) == 2
    assert "error: guidance is split over two processes: start torchrun" in capsys.readouterr().err
