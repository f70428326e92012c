"""The pack in a real ComfyUI: a server of its own, prompts over HTTP, events over the websocket, files fetched."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import live
import numpy as np
import psutil
import pytest
import torch
from live import FRAMES, HEIGHT, NAMES, PROBE, SMALL_CARD, SMALL_CARD_START, STEPS, WIDTH, tiny, with_files, workflow

from svd_core.demo import DEMO_NAME
from tools.comfyui_server import (
    PACK_FOLDER,
    STOP_SECONDS,
    Interrupted,
    PromptError,
    ServerError,
    prepare,
    running,
    stop,
)
from tools.fetch_comfyui import RELEASES
from tools.make_workflows import WORKFLOWS, render
from tools.samples import CHECKPOINT_NAME, demo_scene, read_frames
from tools.workflow_format import read_page, specs
from training.measure import angle_between, motion_direction

ROOT = Path(__file__).resolve().parents[2]

OUR_NODES = (
    "StableVideoCheckpointLoader",
    "StableVideoImageFit",
    "StableVideoConditioning",
    "StableVideoSampler",
    "StableVideoSigmas",
    "StableVideoGuider",
    "StableVideoDecode",
    "StableVideoImageUnfit",
    "StableVideoSeedScout",
    "StableVideoSweep",
    "StableVideoMotionMeter",
    "StableVideoWatermark",
    "StableVideoWatermarkDetect",
    "StableVideoContentFilter",
    "StableVideoMotionBrush",
    "StableVideoInBetween",
    "StableVideoLoop",
    "StableVideoLongTake",
    "StableVideoUnstick",
    "StableVideoCurves",
    "StableVideoShortcuts",
    "StableVideoCamera",
    "StableVideoDrag",
)
"""Node ids that saved workflows depend on."""

IMAGE_TO_VIDEO = "image_to_video_14_frames"

SLOWER = {"frames": 14, "width": 256, "height": 128}
"""A size whose steps take some tenths of a second, so that something can happen between them."""

MEMORY = 0.02
"""How much more may be held after a cancelled prompt and another one than before them."""

ROUNDS = 4


@pytest.fixture(scope="module")
def tree_before(comfyui_path):
    return tree(comfyui_path)


@pytest.fixture(scope="module")
def server(comfy, comfyui_path, tree_before, tmp_path_factory):
    """The server that most tests share."""
    base = live.furnish(tmp_path_factory.mktemp("comfyui"))
    live.write_still_checkpoint(base / "models" / "checkpoints" / live.STILL_NAME)
    with serving(base, comfyui_path) as comfyui:
        yield comfyui


@pytest.fixture(scope="module")
def fresh(comfyui_path, tmp_path_factory):
    """Another, freshly started, that also counts its tensors."""
    base = live.furnish(tmp_path_factory.mktemp("fresh"), {"probe/__init__.py": PROBE})
    with serving(base, comfyui_path) as comfyui:
        yield comfyui


@pytest.fixture(scope="module")
def info(server):
    return server.object_info()


@pytest.fixture(scope="module")
def clip(server):
    """What the shared server makes of the reproducible prompt: (latent, frames)."""
    return render_clip(server)


def tree(folder):
    """Every file below a folder but compiled Python."""
    return {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def the_prompt():
    return with_files(tiny(workflow(IMAGE_TO_VIDEO)))


def render_clip(comfyui):
    run = comfyui.run(the_prompt())
    return live.saved_latent(comfyui, run), live.saved_frames(comfyui, run)


def assert_same_bytes(actual, expected):
    assert torch.equal(actual[0], expected[0])
    assert np.array_equal(actual[1], expected[1])


@contextmanager
def serving(base, comfyui_path, flags=(), **options):
    """One thread: these networks are too small to share, and the tests of another ComfyUI may run beside these."""
    with running(base, comfyui_path, flags, environment={"OMP_NUM_THREADS": "1"}, **options) as comfyui:
        yield comfyui


# The pack


def test_the_pack_loads_without_a_complaint(server, info):
    log = server.log_text()
    assert "IMPORT FAILED" not in log
    assert "Cannot import" not in log
    assert PACK_FOLDER in log
    assert set(OUR_NODES) <= set(info)


def test_no_other_pack_is_loaded(info):
    packs = {node["python_module"] for node in info.values() if node["python_module"].startswith("custom_nodes.")}
    assert packs == {f"custom_nodes.{PACK_FOLDER}"}


def test_every_node_explains_itself(info):
    for name in (name for name in info if name.startswith("StableVideo")):
        node = info[name]
        assert node["description"], name
        assert node["search_aliases"], name
        assert node["category"].startswith("video"), name
        assert [key for key, spec in specs(node) if not spec[1].get("tooltip")] == [], name


def test_comfyui_writes_nothing_outside_its_base_directory(server, comfyui_path, tree_before):
    server.run(tiny(workflow(IMAGE_TO_VIDEO)))
    assert tree(comfyui_path) == tree_before


def test_importing_the_pack_reaches_no_network_and_starts_nothing(comfyui_path, tmp_path):
    script = dedent(
        """
        import asyncio, sys
        sys.path.insert(0, sys.argv.pop(1))
        pack = sys.argv.pop(1)
        import comfy.options
        comfy.options.enable_args_parsing()
        import utils.extra_config, server, nodes
        asyncio.run(nodes.init_builtin_extra_nodes())
        loop = asyncio.new_event_loop()  # opens a pair of sockets of its own
        watched = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.system")
        sys.addaudithook(lambda name, details: name in watched and print("AUDIT", name, details))
        print("LOADED", loop.run_until_complete(nodes.load_custom_node(pack)))
        """
    )
    base = prepare(tmp_path / "base")
    pack = base / "custom_nodes" / PACK_FOLDER
    command = [sys.executable, "-c", script, str(comfyui_path), str(pack), "--cpu", f"--base-directory={base}"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    lines = [line for line in ran.stdout.splitlines() if line.startswith(("AUDIT", "LOADED"))]
    assert lines == ["LOADED True"], ran.stderr


# Workflows

LONGER = {"loop": {"frames": FRAMES + 1}}
"""Decoding leaves out a frame of a loop."""


def test_the_committed_workflows_are_what_the_generator_makes(server, info):
    made = render(info)
    committed = {name: (ROOT / "workflows" / name).read_text(encoding="utf-8") for name in made}
    if server.system_stats()["system"]["comfyui_version"] == RELEASES[0].comfyui:
        assert committed == made
    for name in NAMES:  # written with the newest, whose native nodes may have more widgets
        inputs = {number: node["inputs"] for number, node in json.loads(made[f"api/{name}.json"]).items()}
        assert inputs == {number: known(node, info) for number, node in workflow(name).items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_page_sends_what_the_api_workflow_says(info, name):
    page = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    wanted = {
        number: {"class_type": node["class_type"], "inputs": known(node, info)}
        for number, node in workflow(name).items()
    }
    assert read_page(page, info) == wanted


def known(node, info):
    """Inputs that this ComfyUI's node has: newer ones of native nodes are ignored by older ComfyUIs."""
    names = {name for name, _ in specs(info[node["class_type"]])}
    return {name: value for name, value in node["inputs"].items() if name in names}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps_on_the_page(name):
    page = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    nodes = [(*node["pos"], *node["size"]) for node in page["nodes"]]
    groups = [tuple(group["bounding"]) for group in page["groups"]]
    for boxes in (nodes, groups):
        assert not any(overlap(one, other) for one, other in combinations(boxes, 2))


def overlap(one, other):
    """Whether two boxes (left, top, width, height) share a point."""
    across = one[0] < other[0] + other[2] and other[0] < one[0] + one[2]
    return across and one[1] < other[1] + other[3] and other[1] < one[1] + one[3]


def test_comfyui_lists_every_workflow_with_a_thumbnail(server):
    listed = server.get_json("/workflow_templates")[PACK_FOLDER]
    assert sorted(listed) == NAMES == sorted(make().name for make, _ in WORKFLOWS)
    for name in NAMES:
        served = live.picture(server.get(f"/api/workflow_templates/{PACK_FOLDER}/{name}.jpg"))
        assert served.width == served.height
        assert json.loads(server.get(f"/api/workflow_templates/{PACK_FOLDER}/{name}.json"))["version"] == 0.4


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_workflow_makes_a_video(server, tmp_path, name):
    prompt = tiny(workflow(name), **LONGER.get(name, {}))
    run = server.run(prompt, preview_method="latent2rgb")
    (file,) = run.files(live.find(prompt, "SaveVideo"))
    video = tmp_path / file["filename"]
    video.write_bytes(server.fetch(file))
    frames = read_frames(video)
    assert [frame.shape for frame in frames] == [(HEIGHT, WIDTH, 3)] * FRAMES
    assert len({frame.tobytes() for frame in frames}) == FRAMES
    assert STEPS in run.steps()


def test_the_demo_workflow_as_it_ships_flies_its_rocket(server, tmp_path):
    prompt = workflow("demo_model")
    (file,) = server.run(prompt).files(live.find(prompt, "SaveVideo"))
    video = tmp_path / file["filename"]
    video.write_bytes(server.fetch(file))
    clip = np.stack(read_frames(video)).astype(np.float32) / 255
    assert clip.shape == (14, 64, 128, 3)
    assert angle_between(motion_direction(clip), demo_scene().direction) <= 45


def test_the_loader_offers_the_demo_model_first(server):
    kind, options = server.object_info()["StableVideoCheckpointLoader"]["input"]["required"]["checkpoint"]
    offered = options["options"] if kind == "COMBO" else kind
    assert offered[0] == DEMO_NAME
    assert CHECKPOINT_NAME in offered[1:]


# Progress, previews, cancelling


def test_progress_and_moving_previews_arrive_while_it_runs(server):
    steps = 4
    prompt = tiny(workflow(IMAGE_TO_VIDEO), steps=steps, seed=1, **SLOWER)
    sampler = live.find(prompt, "StableVideoSampler")
    run = server.run(prompt, preview_method="latent2rgb")
    progress = [event.data for event in run.events if event.kind == "progress" and event.data["node"] == sampler]
    values = [each["value"] for each in progress]
    assert values[0] == 1
    assert values[-1] == steps
    assert values == sorted(set(values))  # ComfyUI leaves some out where steps take less than 0.1 s
    assert {each["max"] for each in progress} == {steps}
    previews = [live.picture(data) for data in run.previews()]
    assert 0 < len(previews) <= len(values)  # fewer where they would cost too much of the time
    assert {picture.n_frames for picture in previews} == {SLOWER["frames"]}


def test_previews_can_be_switched_off(server):
    assert server.run(tiny(workflow(IMAGE_TO_VIDEO), seed=2), preview_method="none").previews() == []


def test_a_cancelled_prompt_stops_within_a_step(server):
    steps = 60
    prompt = tiny(workflow(IMAGE_TO_VIDEO), steps=steps, seed=3, **SLOWER)
    run, after = cancel(server, prompt, at_step=3)
    assert after <= 1
    assert max(run.steps()) <= 3 + after + 1


def cancel(comfyui, prompt, at_step):
    """Interrupt a prompt once it has made so many steps -> (what it did, how many steps came after)."""
    prompt_id = comfyui.queue(prompt)
    comfyui.events.wait(
        lambda event: event.kind == "progress" and event.prompt == prompt_id and event.data["value"] >= at_step
    )
    comfyui.interrupt()
    asked = time.monotonic()
    with pytest.raises(Interrupted) as caught:
        comfyui.finish(prompt_id)
    run = caught.value.run
    return run, sum(event.kind == "progress" and event.seconds > asked for event in run.events)


# The same bytes


def test_the_same_seed_gives_the_same_bytes_twice(server, clip):
    server.free()
    run = server.run(the_prompt())
    assert cached(run) == []
    assert_same_bytes((live.saved_latent(server, run), live.saved_frames(server, run)), clip)


def cached(run):
    """Nodes that ComfyUI did not run because it still had their results."""
    (event,) = (event for event in run.events if event.kind == "execution_cached")
    return event.data["nodes"]


def test_another_seed_gives_other_bytes(server, clip):
    run = server.run(with_files(tiny(workflow(IMAGE_TO_VIDEO), seed=43)))
    assert not torch.equal(live.saved_latent(server, run), clip[0])


def test_a_restart_gives_the_same_bytes(fresh, clip):
    assert_same_bytes(render_clip(fresh), clip)


def test_without_a_cache_the_bytes_are_the_same(comfyui_path, tmp_path, clip):
    with serving(live.furnish(tmp_path), comfyui_path, ["--cache-none"]) as comfyui:
        assert_same_bytes(render_clip(comfyui), clip)
        assert cached(comfyui.finish(comfyui.queue(the_prompt()))) == []


@pytest.mark.parametrize("flag", ["--lowvram", "--novram"])
def test_with_weights_left_off_the_card_the_bytes_are_the_same(comfyui_path, tmp_path, clip, flag):
    card = {"small_card/prestartup_script.py": SMALL_CARD_START, "small_card/__init__.py": SMALL_CARD}
    with serving(live.furnish(tmp_path, card), comfyui_path, [flag], cpu=False) as comfyui:
        assert_same_bytes(render_clip(comfyui), clip)
        assert "loaded partially" in comfyui.log_text()


# Memory


def test_a_cancelled_prompt_leaves_no_memory_behind(fresh):
    """Tensors are counted to the byte; the process, whose allocator keeps pages as it likes, must stop growing."""

    def prompt(seed, **values):
        return tiny(workflow(IMAGE_TO_VIDEO), seed=seed, **SLOWER, **values)

    def a_round(seed):
        cancel(fresh, prompt(seed, steps=60), at_step=3)
        cancelled = memory(fresh)
        fresh.run(prompt(seed + 1))
        return cancelled, memory(fresh)

    fresh.run(prompt(1))
    fresh.run(prompt(2))
    held = [memory(fresh)]
    for seed in range(3, 3 + 2 * ROUNDS, 2):
        cancelled, after = a_round(seed)
        print("bytes held:", held[-1], "then", cancelled, "then", after)
        assert max(cancelled.tensors, after.tensors) <= held[0].tensors * (1 + MEMORY)
        held.append(after)
        if after.process <= held[-2].process * (1 + MEMORY):
            return
    pytest.fail(f"the process grew in each of {ROUNDS} rounds: {[state.process for state in held]}")


class Memory(NamedTuple):
    """Bytes that the process holds, and bytes of the tensors alive in it."""

    process: int
    tensors: int


def memory(comfyui):
    return Memory(psutil.Process(comfyui.process.pid).memory_info().rss, comfyui.get_json("/probe/tensors"))


# Bad input


def wrong_family():
    prompt = tiny(workflow(IMAGE_TO_VIDEO), checkpoint=live.STILL_NAME)
    return prompt, live.find(prompt, "StableVideoCheckpointLoader"), live.STILL_NAME


def latent_of_another_size():
    return given_latent("256x64", width=256, height=HEIGHT, batch_size=FRAMES)


def latent_of_part_of_a_clip():
    return given_latent(f"{FRAMES + 1} frames", width=WIDTH, height=HEIGHT, batch_size=FRAMES + 1)


def given_latent(named, **size):
    prompt = tiny(workflow(IMAGE_TO_VIDEO))
    sampler = live.find(prompt, "StableVideoSampler")
    prompt["latent"] = {"class_type": "EmptyLatentImage", "inputs": size}
    prompt[sampler]["inputs"]["latent"] = ["latent", 0]
    return prompt, sampler, named


def unfitted_picture():
    prompt = tiny(workflow(IMAGE_TO_VIDEO))
    conditioning = live.find(prompt, "StableVideoConditioning")
    prompt["dot"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 1, "height": 1, "batch_size": 1, "color": 0},
    }
    prompt[conditioning]["inputs"]["image"] = ["dot", 0]
    return prompt, conditioning, "1x1"


@pytest.mark.parametrize(
    "case",
    [wrong_family, latent_of_another_size, latent_of_part_of_a_clip, unfitted_picture],
    ids=lambda case: case.__name__,
)
def test_bad_input_is_a_line_in_the_node_and_the_server_goes_on(server, case):
    prompt, node, value = case()
    with pytest.raises(PromptError) as caught:
        server.run(prompt)
    assert caught.value.node == node
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)
    server.run(tiny(workflow(IMAGE_TO_VIDEO)))


def test_a_bad_value_is_refused_before_anything_runs(server):
    with pytest.raises(PromptError, match="guidance point 'high'"):
        server.queue(tiny(workflow(IMAGE_TO_VIDEO), guidance_points="high"))


# The tool itself


def test_a_server_that_does_not_come_up_says_why(comfyui_path, tmp_path):
    with (
        pytest.raises(ServerError, match="unrecognized arguments: --no-such-flag"),
        running(prepare(tmp_path), comfyui_path, ["--no-such-flag"]),
    ):
        pass


START = "import subprocess, sys; start = lambda text, **how: subprocess.Popen([sys.executable, '-c', text], **how)"
SLEEPER = "import time; time.sleep(600)"


def test_stopping_a_server_ends_what_it_started():
    command = [sys.executable, "-c", f"{START}; print(start({SLEEPER!r}).pid, flush=True); {SLEEPER}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        child = psutil.Process(int(process.stdout.readline()))
        stop(process)
    assert process.returncode is not None
    child.wait(STOP_SECONDS)
    assert not child.is_running()


def test_a_server_does_not_outlive_a_killed_test_run():
    script = dedent(
        f"""
        {START}
        from tools.comfyui_server import watch
        server = start({SLEEPER!r}, start_new_session=True)
        watcher = watch(server)
        print(server.pid, flush=True)
        {SLEEPER}
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
        server = psutil.Process(int(run.stdout.readline()))
        run.kill()
    server.wait(STOP_SECONDS)
    assert not server.is_running()
