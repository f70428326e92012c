"""Our nodes under whatever other nodes, scripts and damaged workflows hand them: they run, or refuse in one line.

A case is decided by its seed. A failing one prints the command that repeats it; FUZZ_SEED and FUZZ_CASES choose others.
ComfyUI checks the widgets of a prompt by their ranges, but not values that come over a wire, not NaN, and not inputs
that a node validates itself: so all of these are tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import signal
import traceback
from pathlib import Path

import pytest
import torch
from live import NAMES, workflow

from tools.fuzz.mutate import NUMBERS, TEXTS, damaged_tree

ROOT = Path(__file__).resolve().parents[2]
FIRST, CASES = int(os.environ.get("FUZZ_SEED", "0")), int(os.environ.get("FUZZ_CASES", "300"))
"""Half of them nodes that run, half of them prompts that are validated."""

CASE_SECONDS = 5
SMALL = {"frames": 3, "steps": 2, "tries": 2, "window": 3, "overlap": 1, "width": 128, "height": 64, "feather": 9}
"""Most of what costs time. Above it, values are out of range."""

POINTS = ("", "0:1, 1:2", "0:1", "0.5:3,1:1,", "1:1,0:2", "a:b", "40, 127", "1, 2", "euler, heun", "700, 5, 0", "svd")
FRAMES, HEIGHT, WIDTH = 3, 64, 128


class TooSlow(BaseException):
    pass


@contextlib.contextmanager
def limited():
    """At most so many seconds of processor time."""

    def stop(number, frame):
        raise TooSlow(f"more than {CASE_SECONDS} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def again(test, seed):
    return f"FUZZ_SEED={seed} FUZZ_CASES=2 python -m pytest tests/nodes/test_fuzz_nodes.py -k {test}"


# Values


def whole_number(rng, widget):
    most = min(widget.max, SMALL.get(widget.id, widget.max))
    usual = [widget.default, widget.min, most, rng.randint(widget.min, most)]
    return rng.choice([*usual * 4, widget.min - 1, widget.max + 1, -(2**63), 2**63, 10**30])


def fraction(rng, widget):
    given = [widget.default, widget.min, widget.max]
    usual = [value for value in given if value is not None] or [1.0]
    return rng.choice([*usual * 5, float("nan"), float("inf"), -1.0, 1e308, [1.0, 2.0], [], [float("nan")] * 3])


def text(rng):
    return rng.choice([*POINTS * 3, *TEXTS])


def picture(rng):
    channels = rng.choice((3, 3, 3, 3, 4, 1, 2))
    size = rng.choice(
        [(1, HEIGHT, WIDTH)] * 6 + [(FRAMES, HEIGHT, WIDTH), (0, 64, 64), (1, 1, 1), (1, 63, 65), (1, 0, 64)]
    )
    return spoilt(rng, torch.rand(*size, channels, generator=torch.Generator().manual_seed(1)))


def spoilt(rng, tensor):
    """Once in a while with numbers, a type or a shape that nothing should have."""
    change = rng.choice([None] * 12 + ["nan", "large", "half", "first", "more", "integer", "transposed"])
    if change == "nan" and tensor.numel():
        tensor.view(-1)[0] = rng.choice((float("nan"), float("inf")))
    return {
        "large": tensor * 1e6 - 5e5,
        "half": tensor.half(),
        "first": tensor[:1].squeeze(0),
        "more": tensor[None],
        "integer": tensor.to(torch.int64),
        "transposed": tensor.transpose(-1, -2),
    }.get(change, tensor)


def mask(rng):
    size = rng.choice([(1, HEIGHT, WIDTH)] * 4 + [(FRAMES, HEIGHT, WIDTH), (2, 32, 32), (0, 64, 64), (HEIGHT, WIDTH)])
    return spoilt(rng, torch.rand(size, generator=torch.Generator().manual_seed(2)).round())


def latent(rng):
    size = rng.choice(
        [(FRAMES, 4, 8, 16)] * 6 + [(2, 4, 8, 16), (0, 4, 8, 16), (1, 16, 8, 16), (1, 4, 3, 8, 16), (3, 4, 7, 9)]
    )
    samples = spoilt(rng, torch.zeros(size))
    extras = rng.choice([{}] * 5 + [{"noise_mask": mask(rng)}, {"batch_index": [0]}, {"stable_video": {}}])
    return {"samples": samples, **extras}


def box(rng):
    numbers = rng.choice([(0, 0, 64, 64), (5, 5, 10, 10), (-1, 0, 9, 9), (0, 0, 0, 0), (2**40, 0, 1, 1)])
    whole = dict(zip(("x", "y", "width", "height"), numbers, strict=True))
    return damaged_tree(whole, rng) if rng.random() < 0.4 else whole


@pytest.fixture(scope="module")
def conditionings(call, loaded, pictures):
    given = {"clip_vision": loaded.clip_vision, "vae": loaded.vae, "image": pictures[:1], "frames": FRAMES}
    positive, negative, _ = call("StableVideoConditioning", **given)
    spoken = [[torch.zeros(1, 77, 768), {"pooled_output": torch.zeros(1, 768)}]]
    bare = [[positive[0][0], {}]]
    odd = [[positive[0][0], {**positive[0][1], "fps": float("nan"), "motion_bucket_id": -1, "augmentation_level": "x"}]]
    other = [[positive[0][0], {**positive[0][1], "concat_latent_image": torch.zeros(1, 4, 9, 9)}]]
    return [positive, negative] * 5 + [[], spoken, bare, odd, other, positive * 2]


@pytest.fixture(scope="module")
def make(loaded, conditionings):
    """Value of a widget or wire, by the type that the schema gives it."""
    kinds = {
        "INT": whole_number,
        "FLOAT": fraction,
        "STRING": lambda rng, widget: text(rng),
        "COLOR": lambda rng, widget: rng.choice(("#ffffff", "red", "#12", 5, None, *TEXTS)),
        "BOOLEAN": lambda rng, widget: rng.random() < 0.5,
        "COMBO": lambda rng, widget: rng.choice([*(widget.options or ["?"])] * 6 + [text(rng)]),
        "IMAGE": lambda rng, widget: picture(rng),
        "MASK": lambda rng, widget: mask(rng),
        "LATENT": lambda rng, widget: latent(rng),
        "BOUNDING_BOX": lambda rng, widget: box(rng),
        "CONDITIONING": lambda rng, widget: rng.choice(conditionings),
        "MODEL": lambda rng, widget: loaded.model,
        "VAE": lambda rng, widget: rng.choice([loaded.vae] * 9 + [None]),
        "CLIP_VISION": lambda rng, widget: rng.choice([loaded.clip_vision] * 9 + [None]),
    }
    return lambda rng, widget: kinds[widget.get_io_type()](rng, widget)


# Nodes that run


def test_nodes_run_or_refuse_in_one_line(classes, part, make):
    refusal = part("svd_core.errors").StableVideoError
    failed, ran, refused = [], 0, 0
    for seed in range(FIRST, FIRST + (CASES + 1) // 2):
        rng = random.Random(f"node {seed}")
        node = rng.choice(classes)
        schema = node.define_schema()
        inputs = {each.id: make(rng, each) for each in schema.inputs if not each.optional or rng.random() < 0.5}
        try:
            with limited(), torch.inference_mode():
                node.PREPARE_CLASS_CLONE(None).execute(**inputs)
            ran += 1
        except refusal as error:
            refused += 1
            if not str(error).isprintable():
                failed.append(f"{again('nodes', seed)}: {schema.node_id} says {str(error)!r}")
        except (Exception, TooSlow):
            failed.append(
                f"{again('nodes', seed)}: {schema.node_id}\n{shown(inputs)}\n{traceback.format_exc()[-1200:]}"
            )
    print(f"{ran} ran, {refused} were refused")
    assert not failed, f"{len(failed)} failed, the first being\n" + "\n\n".join(failed[:5])
    assert CASES < 100 or min(ran, refused) > CASES // 20


def shown(inputs):
    return {
        key: tuple(value.shape) if isinstance(value, torch.Tensor) else str(value)[:80] for key, value in inputs.items()
    }


# Prompts that are validated


def test_damaged_prompts_are_judged_without_an_error_of_ours(pack):
    failed, judged, accepted = [], 0, 0
    for seed in range(FIRST, FIRST + CASES // 2):
        rng = random.Random(f"prompt {seed}")
        prompt = damaged_prompt(rng)
        for number in ours(prompt):
            with limited():
                good, problem = validated(prompt, number)
            judged, accepted = judged + 1, accepted + good
            failed += [f"{again('prompts', seed)}: {problem}"] if of_ours(problem) else []
    print(f"{judged} nodes of {CASES // 2} prompts, {accepted} accepted")
    assert not failed, f"{len(failed)} failed, the first being\n" + "\n\n".join(failed[:5])
    assert CASES < 100 or 0 < accepted < judged


def damaged_prompt(rng):
    prompt = workflow(rng.choice(NAMES))
    for _ in range(rng.choice((1, 2, 4))):
        inputs = prompt[rng.choice(ours(prompt))]["inputs"]
        values = [*NUMBERS, *TEXTS, *POINTS, [], {}, [["2", 0]], {"__value__": [1]}]
        inputs[rng.choice(list(inputs))] = rng.choice(values)
    return damaged_tree(prompt, rng) if rng.random() < 0.3 else prompt


def ours(prompt):
    """Ids of our nodes, as far as the prompt is still one."""
    nodes = (
        {number: node for number, node in prompt.items() if isinstance(node, dict)} if isinstance(prompt, dict) else {}
    )
    return [number for number, node in nodes.items() if str(node.get("class_type")).startswith("StableVideo")]


def validated(prompt, number):
    """Whether ComfyUI would run a node of a prompt, and what it says where it, or the node, failed while judging."""
    import execution

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            judged = asyncio.run(execution.validate_inputs("fuzz", prompt, number, {}))
    except Exception:  # a prompt that is no prompt, which the server answers with an error of its own
        return False, traceback.format_exc()
    return judged[0], json.dumps(judged[1], default=str)


def of_ours(problem):
    """Whether a traceback passes through the pack."""
    return "raceback" in problem and (f"{ROOT}/nodes" in problem or f"{ROOT}/svd_core" in problem)
