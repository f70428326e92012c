"""A ControlNet of ComfyUI's own, of random weights, on clips that the network sees in parts or from the end."""

import importlib

import pytest
import torch
from torch import Tensor
from weights import randomise, relative

from svd_core.motion.windows import Windows
from svd_core.sampling.schedule import edm_sigmas

FRAMES, WINDOW, STEPS, SEED = 8, 4, 2, 11


@pytest.fixture(scope="module")
def network(comfy):
    """For the blocks of the tiny model."""
    from comfy.cldm.cldm import ControlNet

    made = ControlNet(
        image_size=32,
        in_channels=4,
        model_channels=32,
        hint_channels=3,
        num_res_blocks=[1, 1],
        channel_mult=(1, 2),
        num_head_channels=8,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        transformer_depth=[1, 0],
        transformer_depth_middle=1,
        context_dim=32,
        legacy=False,
        device="cpu",
    )
    return randomise(made, seed=5)


@pytest.fixture
def seen(network):
    """Of each pass through the ControlNet, which frames' hints it was given."""
    passes = []

    def note(_module, _args, given) -> None:
        passes.append(given["hint"][:, 0, 0, 0].mul(100).round().int().tolist())

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    yield passes
    hook.remove()


def numbered(count: int) -> Tensor:
    """Hints (n, H, W, 3) that say which frame they are of."""
    return (torch.arange(count) / 100)[:, None, None, None].expand(count, 64, 128, 3).contiguous()


@pytest.fixture
def controlled(network):
    """(positive, negative) with one more ControlNet."""

    def run(conds, hints: Tensor) -> tuple:
        from comfy.controlnet import ControlNet

        control = ControlNet(network, load_device=torch.device("cpu"))
        node = importlib.import_module("nodes").ControlNetApplyAdvanced()
        return node.apply_controlnet(conds[0], conds[1], control, hints, 1.0, 0.0, 1.0)

    return run


@pytest.fixture
def conditioned(call, loaded, pictures):
    def run(image=pictures[:1], frames=WINDOW) -> tuple:
        given = {"clip_vision": loaded.clip_vision, "vae": loaded.vae, "image": image, "frames": frames}
        return call("StableVideoConditioning", **given)

    return run


@pytest.fixture
def sample(call, loaded):
    def run(conds, latent, model=None) -> Tensor:
        given = {"positive": conds[0], "negative": conds[1], "latent": latent, "model": model or loaded.model}
        return call("StableVideoSampler", **given, seed=SEED, steps=STEPS)["samples"]

    return run


@pytest.fixture
def longer(call, loaded, conditioned):
    """(model, positive and negative, latent) of a Long Take."""

    def run(**inputs) -> tuple:
        names = dict(zip(("positive", "negative", "latent"), conditioned(), strict=True))
        given = {"model": loaded.model, "frames": FRAMES, "window": WINDOW}
        model, *conds, latent = call("StableVideoLongTake", **(given | names | inputs))
        return model, conds, latent

    return run


def windows_of_each_step(way: dict) -> list[list[int]]:
    """First frames of the windows in the order of their passes."""
    if way:
        windows = Windows(WINDOW, way["overlap"])
        return [
            start for sigma in edm_sigmas(STEPS)[:-1] for start in windows.starts(FRAMES, windows.shift(float(sigma)))
        ]
    return [start for start in Windows(WINDOW, 1).starts(FRAMES) for _ in range(STEPS)]


FUSED = {"method": "fusion", "overlap": 2}
WAYS = [pytest.param({}, id="in turns"), pytest.param(FUSED, id="fusion")]


def distinct(passes: list) -> list:
    """Passes without those of the other branch of guidance, which follow."""
    assert passes[::2] == passes[1::2]
    return passes[::2]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [FRAMES, 3, FRAMES + 2])
def test_a_window_is_given_the_hints_of_its_own_frames(longer, controlled, sample, seen, way, count):
    """Hints that are too few come round again, as in ComfyUI."""
    model, conds, latent = longer(**way)
    sample(controlled(conds, numbered(count)), latent, model)
    wanted = [[frame % count for frame in range(start, start + WINDOW)] for start in windows_of_each_step(way)]
    assert distinct(seen) == wanted


def test_one_hint_is_for_all_frames(longer, controlled, sample, seen):
    model, conds, latent = longer()
    one = sample(controlled(conds, numbered(2)[1:]), latent, model)
    assert {tuple(each) for each in seen} == {(1,)}
    assert relative(sample(controlled(conds, numbered(2)[1:].repeat(FRAMES, 1, 1, 1)), latent, model), one) < 1e-5
    assert relative(sample(conds, latent, model), one) > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_one_window_is_the_clip_itself(longer, conditioned, controlled, sample, way):
    *conds, latent = conditioned()
    plain = sample(controlled(conds, numbered(WINDOW)), latent)
    model, conds, latent = longer(frames=WINDOW, colour_hold=0.0, **way)
    assert relative(sample(controlled(conds, numbered(WINDOW)), latent, model), plain) < 1e-5


def test_controlnets_before_the_node_and_chained_ones_are_given_them_too(longer, conditioned, controlled, sample, seen):
    *conds, _ = conditioned()
    before = dict(zip(("positive", "negative"), controlled(conds, numbered(FRAMES)), strict=True))
    model, conds, latent = longer(**before)
    sample(controlled(conds, numbered(FRAMES)), latent, model)
    assert seen[::4] == seen[1::4] == [list(range(start, start + WINDOW)) for start in windows_of_each_step({})]


def test_hints_are_there_again_after_a_run_that_is_stopped(longer, controlled, sample, network):
    model, conds, latent = longer()
    conds = controlled(conds, numbered(FRAMES))
    control = conds[0][0][1]["control"]
    hints = control.cond_hint_original

    def stop(*_):
        assert len(control.cond_hint_original) == WINDOW
        raise KeyboardInterrupt

    hook = network.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        sample(conds, latent, model)
    hook.remove()
    assert control.cond_hint_original is hints and len(hints) == FRAMES


@pytest.mark.parametrize("method", ["fusion", "in turns"])
def test_the_pass_from_the_end_is_given_the_hints_from_the_last(
    call, conditioned, controlled, sample, loaded, pictures, seen, method
):
    *conds, latent = conditioned()
    end = conditioned(pictures[1:])[0]
    model, latent = call("StableVideoInBetween", model=loaded.model, end=end, latent=latent, method=method)
    sample(controlled(conds, numbered(WINDOW)), latent, model)
    turns = {"fusion": [[3, 2, 1, 0], [0, 1, 2, 3]], "in turns": [[0, 1, 2, 3], [3, 2, 1, 0]]}
    assert distinct(seen) == turns[method] * STEPS


def test_each_of_two_loops_is_given_its_hints_from_the_last(call, loaded, conditioned, controlled, sample, seen):
    *conds, latent = conditioned()
    model, looping = call("StableVideoLoop", model=loaded.model, latent=latent)
    *conds, latent = conditioned(torch.rand(2, 64, 128, 3))
    latent = {**looping, "samples": latent["samples"]}
    sample(controlled(conds, numbered(2 * WINDOW)), latent, model)
    assert distinct(seen) == [[3, 2, 1, 0, 7, 6, 5, 4], list(range(2 * WINDOW))] * STEPS
