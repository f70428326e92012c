"""Attacks through a running ComfyUI: names that lead out of its folders, two servers on one output folder, and hundreds
of prompts in a row."""

from __future__ import annotations

import os
import threading

import live
import psutil
import pytest
from live import PROBE, TINY, tiny, workflow

from svd_core.demo import DEMO_NAME
from tools.comfyui_server import PromptError, running
from tools.samples import read_frames

PROMPTS, WARM_UP, FLAT = 200, 20, 0.03
"""Prompts of the soak, those before memory is first looked at, and how much more may be held at the end."""

AT_ONCE = 8
"""Clips that each of two servers saves."""


def serving(base, comfyui_path, flags=()):
    return running(base, comfyui_path, flags, environment={"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def server(comfy, comfyui_path, tmp_path_factory):
    base = live.furnish(tmp_path_factory.mktemp("abused"))
    (base / "secret.safetensors").write_bytes((base / "models" / "checkpoints" / live.CHECKPOINT_NAME).read_bytes())
    with serving(base, comfyui_path) as comfyui:
        yield comfyui


def demo_prompt(seed, **values):
    """The shipped demo workflow, at three frames and two steps."""
    return tiny(workflow("demo_model"), checkpoint=DEMO_NAME, seed=seed, **values)


def outside_output(base):
    return {path for path in base.rglob("*") if path.is_file() and not {"output", "temp", "user"} & set(path.parts)}


@pytest.mark.parametrize(
    "name",
    [
        "../../secret.safetensors",
        "../checkpoints/../../secret.safetensors",
        "{base}/secret.safetensors",
        "a\0b",
        "..",
        "",
    ],
)
def test_a_checkpoint_outside_the_models_folders_is_not_loaded(server, name):
    with pytest.raises(PromptError, match=r"Value not in list|checkpoint"):
        server.run(with_checkpoint(name.format(base=server.base)))


def with_checkpoint(name):
    prompt = demo_prompt(1)
    loader = live.find(prompt, "StableVideoCheckpointLoader")
    prompt[loader]["inputs"]["checkpoint"] = name
    return prompt


def test_a_checkpoint_name_over_a_wire_is_looked_up_in_the_models_folders_alone(part, tmp_path):
    """ComfyUI checks the names of widgets; one that another node makes reaches us unchecked."""
    find, refusal = part("nodes.checkpoint").find_checkpoint, part("svd_core.errors").CheckpointError
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    up = "../" * 30
    names = [
        f"{tmp_path}/secret.safetensors",
        f"{up}{tmp_path}/secret.safetensors",
        f"{up}etc/passwd",
        "..",
        "",
        "a\0b",
    ]
    for name in names:
        with pytest.raises(refusal, match="is not in models/checkpoints: put it there") as refused:
            find(name)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("prefix", ["../../loot", "a/../../../loot", "{base}/loot", "../output2/loot"])
def test_a_clip_is_not_saved_outside_the_output_folder(server, prefix):
    before = outside_output(server.base)
    prompt = demo_prompt(2)
    saver = live.find(prompt, "SaveVideo")
    prompt[saver]["inputs"]["filename_prefix"] = prefix.format(base=server.base)
    with pytest.raises(PromptError, match="outside the output folder") as refused:
        server.run(prompt)
    assert refused.value.node == saver
    assert outside_output(server.base) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_and_broken_links_in_the_models_folders_hold_up_nobody(server):
    folder = server.base / "models" / "checkpoints"
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    try:
        for name in ("pipe.safetensors", "loop.safetensors"):
            with pytest.raises(PromptError) as refused:
                server.run(with_checkpoint(name), seconds=60)
            assert name in str(refused.value) and "\n" not in str(refused.value)
        server.run(demo_prompt(3))
    finally:
        for name in ("pipe.safetensors", "loop.safetensors"):
            (folder / name).unlink()


def test_two_servers_on_one_output_folder_keep_every_clip(server, comfyui_path, tmp_path):
    """Each saves under a prefix of its own. ComfyUI numbers files by looking which are there, so under one prefix two
    servers that look in the same moment write to the same name; its own Save nodes do that, and ours write no files."""
    output = f"--output-directory={server.base / 'output'}"
    failed = []

    def render(comfyui, name):
        try:
            for seed in range(AT_ONCE):
                comfyui.run(demo_prompt(seed, filename_prefix=f"shared/{name}"))
        except Exception as error:
            failed.append(error)

    with serving(live.furnish(tmp_path), comfyui_path, [output]) as other:
        threads = [threading.Thread(target=render, args=pair) for pair in ((server, "one"), (other, "two"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    clips = sorted((server.base / "output" / "shared").iterdir())
    assert len(clips) == 2 * AT_ONCE
    assert all(path.stat().st_size > 1000 for path in clips)
    pairs = zip(clips[:AT_ONCE], clips[AT_ONCE:], strict=True)
    assert all(len(read_frames(one)) == len(read_frames(two)) == TINY["frames"] for one, two in pairs)


@pytest.mark.soak
def test_memory_stays_flat_over_hundreds_of_prompts(comfyui_path, tmp_path):
    with serving(live.furnish(tmp_path, {"probe/__init__.py": PROBE}), comfyui_path) as comfyui:
        held = []
        for seed in range(WARM_UP + PROMPTS + 1):
            if seed >= WARM_UP and (seed - WARM_UP) % 20 == 0:
                held.append((psutil.Process(comfyui.process.pid).memory_info().rss, comfyui.get_json("/probe/tensors")))
                print(f"after {seed} prompts: {held[-1][0] / 2**20:.1f} MiB held, {held[-1][1]:,} bytes of tensors")
            comfyui.run(demo_prompt(seed))
    assert len(held) == PROMPTS // 20 + 1
    for before, after in zip(held[0], held[-1], strict=True):
        assert after <= before * (1 + FLAT)
