"""The plan: what it chooses runs within what it says, and says what it cannot."""

import dataclasses
import re

import pytest
import torch
from PIL import Image
from synthetic import TINY, write_checkpoint

import svd_core.decode.plan as decode_plans
import svd_core.model.vae as vae_module
from benchmarks.device_bytes import device_bytes
from svd_core import planning
from svd_core.cli import commands, main
from svd_core.config import UNetConfig
from svd_core.errors import InputError
from svd_core.model import transformer
from svd_core.model.backend import Backend
from svd_core.model.transformer import FeedForward
from svd_core.model.unet import VideoUNet
from svd_core.model.vae import VideoVAE
from svd_core.planning import META, Job, plan_or_leanest, plan_render, sample_bytes

GIB = 2**30
FRAMES, WIDTH, HEIGHT = 8, 256, 128


def tiny(memory: int):
    return plan_render(Job(TINY, FRAMES, WIDTH, HEIGHT, torch.float32), memory)


def test_a_full_size_clip_samples_in_four_gibibytes():
    """25 frames of 576x1024 in 16 bits with visiting weights."""
    size = (25, 72, 128)
    assert sample_bytes(UNetConfig(), size, torch.float16, joint=False, streamed=True) <= 2.2 * GIB


LONGEST = (1024, 1024, 1024)
"""The most frames and the largest size, in latent cells."""


def counted(monkeypatch, owner, name, most):
    """Calls of a function, which end the test where they are more than `most`: it would take minutes."""
    calls, called = [], getattr(owner, name)

    def once_more(*args, **options):
        calls.append(name)
        assert len(calls) <= most, f"{name} was called more than {most} times"
        return called(*args, **options)

    monkeypatch.setattr(owner, name, once_more)
    return calls


def feed_forwards(config):
    return sum(isinstance(layer, FeedForward) for layer in VideoUNet(config, backend=Backend(device=META)).modules())


def test_the_longest_clip_is_counted_by_one_group_of_each_feed_forward(monkeypatch):
    layers = feed_forwards(UNetConfig())
    calls = counted(monkeypatch, FeedForward, "_add", layers)
    sample_bytes.__wrapped__(UNetConfig(), LONGEST, torch.float16, joint=False, streamed=True)
    assert len(calls) == layers


@pytest.mark.parametrize("streamed", [False, True])
def test_one_group_of_a_feed_forward_holds_as_much_as_all(monkeypatch, streamed):
    """Groups of 409, 204 and 102 tokens, by the channels of the level, the last of them smaller."""
    monkeypatch.setattr(transformer, "HIDDEN_VALUES", 2**17)
    how = {"joint": False, "streamed": streamed}
    found = sample_bytes.__wrapped__(TINY.unet, (3, 8, 24), torch.float32, **how)
    monkeypatch.setattr(planning, "FeedForward", ())  # no layer is one
    calls = counted(monkeypatch, FeedForward, "_add", 1000)
    assert found == sample_bytes.__wrapped__(TINY.unet, (3, 8, 24), torch.float32, **how)
    layers = sum(
        isinstance(layer, FeedForward) for layer in VideoUNet(TINY.unet, backend=Backend(device=META)).modules()
    )
    assert len(calls) > layers


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_decode_keeps_the_most_that_fit(device):
    """As many as would be found by trying all, from the most on."""
    job = Job(TINY, 40, WIDTH, HEIGHT, torch.float32, torch.device(device))
    vae = VideoVAE(TINY.vae, backend=Backend(device=META))
    clip = (job.latents, job.frames, job.device)
    least, most = vae.least_plan(*clip).device_bytes, vae.decode_plan(*clip).device_bytes
    ways = [("device", keep) for keep in range(job.frames, 0, -1)]
    ways += [("host", 1), ("bands", 1)] if device == "meta" else []
    tried = [vae.decode_plan(*clip, chunk=keep, mode=mode) for mode, keep in ways]
    chosen = []
    for budget in range(least, most + 1, max(1, (most - least) // 60)):
        chosen.append(vae.decode_plan(*clip, budget=budget))
        assert chosen[-1] == next(plan for plan in tried if plan.device_bytes <= budget)
    assert len({(plan.mode, plan.keep) for plan in chosen}) > 5


def test_the_decode_of_the_longest_clip_is_planned_in_few_tries(monkeypatch):
    tries = counted(monkeypatch, decode_plans, "decode_plan", 20)
    monkeypatch.setattr(vae_module, "decode_plan", decode_plans.decode_plan)
    frames, height, width = LONGEST
    job = Job(TINY, frames, 8 * width, 8 * height)
    vae = VideoVAE(TINY.vae, backend=Backend(device=META, dtype=job.dtype))
    assert vae.decode_plan(job.latents, job.frames, job.device, budget=2**40).mode == "host"
    assert len(tries) > 10


def test_more_memory_never_slows_a_render():
    ample = tiny(2**40)
    assert (ample.stream_weights, ample.decode.mode, ample.decode.keep) == (False, "device", FRAMES)
    tight = tiny(max(ample.encode_bytes, ample.sample_bytes, tiny_least()))
    assert tight.decode.device_bytes <= ample.decode.device_bytes


def tiny_least() -> int:
    with pytest.raises(InputError, match=r"cannot hold 8 frames of 256x128: give at least [\d.]+ GiB") as error:
        tiny(1)
    return int(float(re.search(r"least ([\d.]+) GiB", str(error.value))[1]) * GIB)


@pytest.mark.parametrize(
    ("memory", "said"),
    [(1, "1 bytes"), (2**20, "1 MiB"), (int(0.03 * GIB), "0.03 GiB"), (int(0.039 * GIB), "0.03 GiB")],
)
def test_the_memory_that_is_not_enough_is_never_rounded_up(memory, said, monkeypatch):
    monkeypatch.setattr(planning, "_needed", lambda *_: int(0.0395 * GIB))
    with pytest.raises(InputError, match=f"^{said} cannot hold .*: give at least 0.04 GiB"):
        tiny(memory)


def test_the_least_that_is_named_works_and_fits():
    least = tiny_least()
    plan = tiny(least)
    assert max(plan.encode_bytes, plan.sample_bytes, plan.decode_bytes) <= least


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"window": 0}, "a window of 0 for a clip of 8 frames: give 1 to 8"),
        ({"window": 9}, "a window of 9 for a clip of 8 frames: give 1 to 8"),
        ({"frames": 3, "loop": True}, "a loop of 3 frames cannot leave the picture and come back"),
    ],
)
def test_what_is_no_clip_is_not_planned(how, reason):
    with pytest.raises(InputError, match=reason):
        Job(TINY, **{"frames": FRAMES, "width": WIDTH, "height": HEIGHT} | how)


def test_encoding_takes_what_it_may_and_no_more():
    """What bounds it is what sampling leaves: with next to nothing to spare, a large still goes in bands."""
    job = Job(TINY, 1, 2048, 1024, torch.float32)
    ample = plan_render(job, 2**40)
    vae = VideoVAE(TINY.vae, backend=Backend(device=META))
    assert ample.encode == vae.encode_plan((1, 3, 1024, 2048), META)
    with pytest.raises(InputError) as error:
        plan_render(job, 1)
    lean = plan_render(job, int(float(re.search(r"least ([\d.]+) GiB", str(error.value))[1]) * GIB))
    assert lean.encode_bytes < ample.encode_bytes and lean.encode.mode == "bands"
    assert "while encoding" in lean.report()


def test_an_estimate_never_refuses():
    job = Job(TINY, FRAMES, WIDTH, HEIGHT, torch.float32)
    lean = plan_or_leanest(job, 1)
    assert lean.stream_weights and not tiny(2**40).stream_weights
    assert plan_or_leanest(job, 2**40) == tiny(2**40)


def test_weights_do_not_visit_a_host_that_is_the_device():
    job = Job(TINY, FRAMES, WIDTH, HEIGHT, torch.float32, torch.device("cpu"))
    lean = plan_or_leanest(job, 1)
    assert (lean.stream_weights, lean.decode.mode) == (False, "device")


def test_a_plan_is_what_the_decoder_then_holds():
    plan = tiny(2**40)
    vae = VideoVAE(TINY.vae, backend=Backend(device=META, attention=lambda q, k, v: torch.empty_like(q)))
    with device_bytes(vae) as live:
        vae.decode(torch.empty(FRAMES, 4, HEIGHT // 8, WIDTH // 8, device=META), FRAMES, budget=2**40)
    assert plan.decode.device_bytes == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize("file", [True, False])
def test_the_command_prints_the_plan(tmp_path, capsys, file):
    config = dataclasses.replace(TINY, variant=dataclasses.replace(TINY.variant, frames=3))
    which = ["--checkpoint", str(write_checkpoint(tmp_path / "tiny.safetensors", config))] if file else []
    assert main(["plan", "--frames", "2", "--size", "128x64", "--memory", "24GiB", *which]) == 0
    said = capsys.readouterr().out
    assert said.startswith("clip:     2 frames of 128x64, float16\n")
    assert re.search(r"weights:  .*all on the device\)\n.*encoding: .*\nsampling: .*both branches.*\ndecoding: ", said)


@pytest.mark.parametrize(
    ("flags", "job", "said"),
    [
        ("--loop", {"loop": True, "both_ends": True}, " as a loop, which drops the last"),
        ("--loop --sequential", {"loop": True, "both_ends": True}, " as a loop, which drops the last"),
        ("--end {}/end.png", {"both_ends": True}, " to an end picture"),
        ("--window 5", {"window": 5}, " in windows of 5"),
        ("--window 0 --fused --overlap 2", {"window": TINY.variant.frames}, " in windows of 3"),
    ],
)
def test_the_command_plans_what_controls_ask_for(tmp_path, monkeypatch, capsys, flags, job, said):
    Image.new("RGB", (64, 64)).save(tmp_path / "end.png")
    planned = []
    monkeypatch.setattr(commands, "plan_render", lambda *given: planned.append(given) or plan_render(*given))
    which = ["--checkpoint", str(write_checkpoint(tmp_path / "tiny.safetensors")), "--memory", "24GiB"]
    clip = ["--frames", str(FRAMES), "--size", f"{WIDTH}x{HEIGHT}", "--dtype", "float32"]
    assert main(["plan", *which, *clip, *flags.format(tmp_path).split()]) == 0
    assert planned == [(Job(TINY, FRAMES, WIDTH, HEIGHT, torch.float32, **job), 24 * GIB)]
    first, report = capsys.readouterr().out.split("\n", 1)
    assert first == f"clip:     8 frames of 256x128{said}, float32"
    assert report == plan_render(*planned[0]).report() + "\n"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--memory lots", "'lots' is not a size in bytes"),
        ("--frames 2", "--memory"),
        ("--memory 1MiB --frames 2 --size 128x64", "give at least"),
        ("--memory 8GiB --frames 0", "frames"),
        ("--memory 8GiB --loop --frames 3", "a loop of 3 frames cannot leave the picture and come back"),
        ("--memory 8GiB --loop --window 0", "an end is not known to windows that look forward only"),
        ("--memory 8GiB --window 9 --frames 8", "windows of 9 frames are longer than the clip of 8"),
        ("--memory 8GiB --overlap 2", "fused and overlap are about windows"),
        ("--memory 8GiB --end missing.png", "missing.png cannot be read"),
    ],
)
def test_bad_input_is_refused_in_one_line(capsys, flags, reason):
    assert main(["plan", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
