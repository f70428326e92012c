"""Renders in a limited memory: what the plan promises holds, no pixel changes, and running out loses nothing.

The CPU plays a device with memory of its own: what the code would put there is counted as it is allocated, and an
allocation beyond the limit fails as it would on a card.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from synthetic import TINY, write_checkpoint

import svd_core.cli.render
import svd_core.decode.run
import svd_core.model.vae
import svd_core.pipeline
import svd_core.planning
from benchmarks.device_bytes import device_bytes
from svd_core.cli import main
from svd_core.controls import Controls
from svd_core.errors import InputError
from svd_core.loading import load_checkpoint
from svd_core.motion import CameraMove
from svd_core.planning import META, Job, plan_render, sample_bytes
from svd_core.sampling import SAMPLERS, SteppingDown
from svd_core.settings import Settings

CPU = torch.device("cpu")
STEPS = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("low") / "tiny.safetensors")


@pytest.fixture
def card(monkeypatch):
    """The CPU with memory of its own."""
    for module in (svd_core.planning, svd_core.pipeline, svd_core.decode.run, svd_core.model.vae):
        if hasattr(module, "has_own_memory"):
            monkeypatch.setattr(module, "has_own_memory", lambda _: True)


@pytest.fixture
def svd(checkpoint):
    """Weights are copied out of the file: where it puts them in memory, not on the boundaries that copies get, moves
    the last bit of the CPU's matrix products."""
    svd = load_checkpoint(checkpoint)
    for weight in networks(svd).parameters():
        weight.data = weight.data.clone()
    return svd


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).random((height, width, 3), dtype=np.float32)


def render(svd, frames, width, height, **limits):
    return svd.animate(picture(width, height), frames, STEPS, width=width, height=height, **limits)


def networks(svd) -> torch.nn.Module:
    return torch.nn.ModuleList([svd.unet, svd.vae, svd.clip_vision])


def least(job: Job) -> int:
    return svd_core.planning._needed(job, True)


def ample(job: Job) -> int:
    """What the quickest way takes."""
    plan = plan_render(job, 2**50)
    return max(plan.encode_bytes, plan.sample_bytes, plan.decode_bytes)


GRID = list(itertools.product((1, 3, 8, 14), ((64, 64), (128, 64), (192, 128)), (0.0, 0.1, 0.3, 0.6, 1.0)))
"""Frames, (width, height), and where the limit lies between the least and the ample: 60 cases."""
QUICK = GRID[2::11]


def run_capped(svd, frames, width, height, share):
    """One case of the grid: (plan, limit, measured peak, frames, frames without a limit)."""
    job = Job(TINY, frames, width, height, torch.float32, CPU)
    low, high = least(job), ample(job)
    limit = math.ceil(low + share * (high - low))
    plan = plan_render(job, limit)
    free = render(svd, frames, width, height)  # first, since a CPU's probes run once in a process and count for none
    with device_bytes(networks(svd)) as live:
        live.limit = limit - plan.weight_bytes
        result = render(svd, frames, width, height, memory=limit)
    return plan, limit, live.peak + plan.weight_bytes, result, free


@pytest.mark.parametrize(
    ("frames", "size", "share"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in GRID],
)
def test_a_limit_holds_is_predicted_and_changes_no_pixel(svd, card, frames, size, share):
    plan, limit, measured, result, free = run_capped(svd, frames, *size, share)
    predicted = max(plan.encode_bytes, plan.sample_bytes, plan.decode_bytes)
    print(f"{frames} frames of {size}, limit {limit}: predicted {predicted}, measured {measured}, {plan.decode.mode}")
    assert measured <= limit
    assert predicted == pytest.approx(measured, rel=0.1)
    assert np.array_equal(result, free)


CONTROLLED = {
    "a loop": ({"loop": True}, {"both_ends": True, "loop": True}),
    "an end in turns": ({"end": picture(128, 64), "sequential": True}, {"both_ends": True}),
    "a brush": ({"brush": np.eye(64, 128, dtype=np.float32), "unstick": 0.5}, {}),
    "windows, fused": ({"window": 3, "fused": True, "overlap": 1}, {"window": 3}),
    "a camera": (
        {"camera": CameraMove(0.2, -0.1, 1.2, 5), "depth": np.eye(64, 128, dtype=np.float32), "unstick": 0.5},
        {},
    ),
    "windows in turns": ({"window": 3, "continued": picture(128, 64)[None]}, {"window": 3}),
}
"""Controls, and how they show in a plan."""
KEPT = {"nothing": {}, "features": {"reuse": True}, "features with an interval": {"reuse": True, "interval": True}}


def watched(live, peaks):
    """A callback that gathers the peak of each stage: of conditioning, sampling and, once it is done, decoding."""

    def report(progress):
        if progress.index == 0 or progress.stage == "decode":
            peaks.append(live.peak)
            live.peak = live.now

    return report


@pytest.mark.parametrize(
    "kept", ["nothing", pytest.param("features", marks=pytest.mark.slow), "features with an interval"]
)
@pytest.mark.parametrize("name", CONTROLLED)
@pytest.mark.parametrize("share", [0.0, pytest.param(0.4, marks=pytest.mark.slow)])
def test_a_limit_holds_with_controls_too(svd, card, name, kept, share):
    """Latents of windows are on the host, which is the card here, so these cases measure a little too much."""
    asked, how = CONTROLLED[name]
    job = Job(TINY, 8, 128, 64, torch.float32, CPU, **how, **KEPT[kept])
    low, high = least(job), ample(job)
    limit = math.ceil(low + share * (high - low))
    interval = (1.0, 800.0) if "interval" in KEPT[kept] else None
    settings = Settings(
        8, STEPS, width=128, height=64, reuse=1e-6 * ("reuse" in KEPT[kept]), guidance_interval=interval
    )
    free = svd.render(picture(128, 64), settings, Controls(**asked)).frames
    peaks = []
    with device_bytes(networks(svd)) as live:
        live.limit = limit - plan_render(job, limit).weight_bytes
        report = watched(live, peaks)
        result = svd.render(picture(128, 64), settings, Controls(**asked), memory=limit, callback=report).frames
    plan = plan_render(job, limit)
    _, conditioned, sampled, decoded = (plan.weight_bytes + peak for peak in peaks)
    print(f"{name} and {kept}, limit {limit}: {sampled / plan.sample_bytes:.3f} {decoded / plan.decode_bytes:.3f}")
    assert max(conditioned, sampled, decoded) <= limit
    assert plan.sample_bytes == pytest.approx(sampled, rel=0.1)
    assert plan.decode_bytes == pytest.approx(decoded, rel=0.1)
    assert np.array_equal(result, free)


def test_a_long_take_is_planned_by_what_the_network_sees():
    short, long = (Job(TINY, frames, 1024, 576, device=META, window=8) for frames in (8, 800))
    plans = [plan_render(job, 2**50) for job in (short, long)]
    latents = 4 * 4 * 72 * 128
    assert plans[1].sample_bytes - plans[0].sample_bytes == (800 - 14 * 8) * latents
    assert plan_render(long, least(long)).decode_bytes <= least(long)


def test_the_grid_takes_every_way(card):
    """Else sixty cases would say little."""
    ways = set()
    for frames, size, share in GRID:
        job = Job(TINY, frames, *size, torch.float32, CPU)
        low, high = least(job), ample(job)
        plan = plan_render(job, math.ceil(low + share * (high - low)))
        ways.add((plan.stream_weights, plan.decode.mode))
    assert {streamed for streamed, _ in ways} == {False, True}
    assert {mode for _, mode in ways} == {"device", "host", "bands"}


def test_the_counter_refuses_what_is_beyond_the_limit(svd, card):
    """The grid's cap can fail: a limit below what was planned stops the sampling with what a card's would become."""
    still = svd.condition(torch.zeros(1, 3, 64, 128))
    with device_bytes(networks(svd)) as live, pytest.raises(InputError, match="memory ran out while sampling"):
        live.limit = sample_bytes(TINY.unet, (3, 8, 16), torch.float32, joint=True, streamed=True) // 2
        svd.sample(torch.zeros(3, 4, 8, 16), still, torch.tensor([1.0, 0.0]), torch.full((3,), 2.0))


# Running out in the middle


class Failing:
    """A denoiser that runs out of memory at the evaluations `at`, counted with the repeated ones."""

    def __init__(self, at, error):
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, x, sigma):
        self.calls += 1
        if self.calls in self.at:
            raise self.error
        return x / (1 + torch.as_tensor(sigma).reshape(-1, *[1] * (x.ndim - 1)))


SIGMAS = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
OUT = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("at", [(1,), (3,), (2, 5), (2, 3)])
def test_sampling_goes_on_with_the_same_bits(name, at):
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))

    def noise(*_):
        return torch.ones_like(x)

    whole = SAMPLERS[name](Failing((), OUT), x, SIGMAS, noise_sampler=noise)
    steps, ways = [], iter([None, None])
    lasting = SteppingDown(Failing(at, OUT), ways)
    result = SAMPLERS[name](lasting, x, SIGMAS, noise_sampler=noise, callback=lambda state: steps.append(state["i"]))
    assert torch.equal(result, whole)
    assert steps == [0, 1, 2, 3], "no step was done twice"
    assert len(list(ways)) == 2 - len(at)


@pytest.mark.parametrize("words", ["MPS backend out of memory (MPS allocated: 9 GB)", "can't allocate memory: you ..."])
def test_other_devices_say_it_in_words(words):
    lasting = SteppingDown(Failing((1,), RuntimeError(words)), iter([None]))
    assert torch.equal(lasting(torch.ones(1, 1), 1.0), torch.full((1, 1), 0.5))


def test_running_out_again_and_again_is_one_line():
    lasting = SteppingDown(Failing((1, 2, 3), OUT), iter([None, None]))
    with pytest.raises(InputError, match=r"ran out while sampling.*close other programs"):
        lasting(torch.ones(1, 1), 1.0)


def test_other_errors_are_not_swallowed():
    with pytest.raises(RuntimeError, match="shapes"):
        SteppingDown(Failing((1,), RuntimeError("shapes do not fit")), iter([None]))(torch.ones(1, 1), 1.0)


def test_a_render_whose_memory_is_taken_streams_its_weights_and_is_the_same(svd, card, monkeypatch):
    expected = render(svd, 3, 128, 64)
    visits, failures = [], iter([False, True, True])
    forward, visiting = svd.unet.forward, svd_core.pipeline.visiting

    def out_of_memory_at_the_third(*args, **kwargs):
        if next(failures, False):
            raise OUT
        return forward(*args, **kwargs)

    monkeypatch.setattr(svd_core.pipeline, "visiting", lambda *args: visits.append(args) or visiting(*args))
    monkeypatch.setattr(
        type(svd.unet), "forward", lambda _, *args, **kwargs: out_of_memory_at_the_third(*args, **kwargs)
    )
    assert np.array_equal(svd.animate(picture(128, 64), 3, STEPS, width=128, height=64), expected)
    assert len(visits) == 1


# At the command line


def test_the_command_says_its_plan_and_renders_the_same_bytes(checkpoint, tmp_path, capsys):
    from PIL import Image

    still = tmp_path / "still.png"
    Image.fromarray((picture(128, 64) * 255).astype(np.uint8)).save(still)
    command = [
        "animate",
        str(still),
        "--checkpoint",
        str(checkpoint),
        "--steps",
        "2",
        "--frames",
        "3",
        "--size",
        "128x64",
    ]
    assert main([*command, "--output", str(tmp_path / "a.gif")]) == 0
    assert main([*command, "--output", str(tmp_path / "b.gif"), "--memory", "2GiB"]) == 0
    assert "sampling: " in capsys.readouterr().err
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_too_little_is_refused_before_anything_is_loaded(checkpoint, tmp_path, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(svd_core.cli.render, "load_checkpoint", pytest.fail)
    still = tmp_path / "still.png"
    Image.new("RGB", (128, 64)).save(still)
    command = ["animate", str(still), "--checkpoint", str(checkpoint), "--output", str(tmp_path / "a.gif")]
    assert main([*command, "--memory", "1MiB"]) == 2
    error = capsys.readouterr().err
    assert "give at least" in error and error.count("\n") == 1


def test_memory_is_no_part_of_a_recipe(svd):
    assert "memory" not in {field.name for field in dataclasses.fields(svd_core.settings.Settings)}
