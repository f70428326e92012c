"""Seed Scout, Sweep and Motion Meter in the real ComfyUI, on a tiny model of random weights."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from svd_core.measure import measure, plot_measured, seeds_from

FRAMES = 3


@pytest.fixture(scope="module")
def conditioned(call, loaded, pictures):
    """Conditioning of the first picture, and of both."""

    def run(images):
        return call("StableVideoConditioning", clip_vision=loaded.clip_vision, vae=loaded.vae, image=images)

    return SimpleNamespace(one=run(pictures[:1]), two=run(pictures))


def counted(model):
    """The model and a list that grows by the rows of each pass through its network."""
    rows = []

    def wrapper(apply, args):
        rows.append(args["input"].shape[0])
        return apply(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(wrapper)
    return patched, rows


@pytest.fixture
def study(call, loaded, conditioned, pictures):
    """Run a node on the first picture's conditioning, or on what is given."""

    def run(node, conds=None, **inputs):
        positive, negative, latent = conds or conditioned.one
        shared = {"model": loaded.model, "positive": positive, "negative": negative, "latent": latent}
        return call(node, **({**shared, "vae": loaded.vae, "steps": 2} | inputs))

    return run


@pytest.fixture
def scouted(study, pictures):
    return lambda **inputs: study("StableVideoSeedScout", **({"image": pictures[:1], "tries": 3} | inputs))


@pytest.fixture
def swept(study):
    values = {"x_values": "40, 200", "y_values": "1, 2"}
    return lambda **inputs: study("StableVideoSweep", **(values | inputs))


@pytest.fixture
def full(call, loaded, conditioned):
    """A clip of the sampler and the decoder: frames (T, H, W, 3)."""

    def run(conds=None, **inputs):
        positive, negative, latent = conds or conditioned.one
        shared = {"model": loaded.model, "positive": positive, "negative": negative, "latent": latent}
        sampled = call("StableVideoSampler", **({**shared, "steps": 2} | inputs))
        return call("StableVideoDecode", latent=sampled, vae=loaded.vae).numpy()

    return run


# Seed Scout


def test_the_scout_ranks_the_clips_that_the_sampler_makes(scouted, full):
    widgets = {"schedule": "align_your_steps", "sampler_name": "dpmpp_2m", "guidance_points": "0:1, 1:3"}
    sheet, ranking, told, chosen = scouted(seed=5, **widgets)
    trials = json.loads(told)["trials"]
    assert {each["seed"] for each in trials} == {5, 6, 7}
    for each in trials:
        expected = measure(full(seed=each["seed"], **widgets))
        assert each["motion"] == pytest.approx(expected.motion.mean(), rel=1e-4)
        assert each["subject"] == pytest.approx(expected.subject.mean(), rel=1e-4)
    scores = [each["score"] for each in trials]
    assert scores == sorted(scores, reverse=True)
    assert chosen == json.loads(told)["chosen"] == trials[0]["seed"]
    assert [line.split()[-1] for line in ranking.splitlines()[2:-1]] == [str(each["seed"]) for each in trials]
    assert sheet.shape[0] == FRAMES
    assert 0 <= sheet.min() <= sheet.max() <= 1
    assert not any(side % 2 for side in sheet.shape[1:3])


def test_the_scout_costs_its_steps_for_each_try_and_nothing_else(scouted, loaded):
    model, rows = counted(loaded.model)
    scouted(model=model, tries=4, steps=3)
    assert len(rows) == 4 * 3 * 2, "two guidance branches a step"
    assert set(rows) == {FRAMES}
    rows.clear()
    scouted(model=model, tries=2, steps=3, min_guidance=1.0, max_guidance=1.0)
    assert len(rows) == 2 * 3, "guidance of 1 needs one branch"


def test_steps_left_open_are_the_checkpoints(scouted, loaded):
    model, rows = counted(loaded.model)
    scouted(model=model, tries=1, steps=0)
    assert len(rows) == 2 * 2


def test_another_wish_is_another_order_of_the_same_clips(scouted):
    def order(rank_by):
        return [each["seed"] for each in json.loads(scouted(tries=4, rank_by=rank_by)[2])["trials"]]

    most, calm = order("most motion"), order("calm")
    assert sorted(most) == sorted(calm)
    assert most != calm


def test_seeds_come_round(scouted):
    told = json.loads(scouted(seed=2**64 - 1, tries=2)[2])
    assert {each["seed"] for each in told["trials"]} == set(seeds_from(2**64 - 1, 2)) == {2**64 - 1, 0}


@pytest.mark.parametrize("node", ["StableVideoSeedScout", "StableVideoSweep"])
def test_cancel_acts_within_a_step_of_any_clip(study, loaded, pictures, node):
    import comfy.model_management as management

    passes = []

    def wrapper(apply, args):
        passes.append(1)
        if len(passes) == 2 * 4 + 3:  # the second clip's second step
            management.interrupt_current_processing()
        return apply(args["input"], args["timestep"], **args["c"])

    model = loaded.model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    inputs = {"image": pictures[:1], "tries": 3} if node == "StableVideoSeedScout" else {"x_values": "40, 80, 120"}
    with pytest.raises(management.InterruptProcessingException):
        study(node, model=model, steps=4, **inputs)
    assert len(passes) <= 2 * 4 + 4, "no step follows the one in which it was cancelled"
    assert study(node, **inputs)[0].isfinite().all(), "and the next run is whole"


# Sweep


def test_each_cell_is_the_clip_that_these_settings_make(swept, full, call, loaded, pictures):
    video, image, report, told = swept()
    cells = json.loads(told)["cells"]
    assert [each["settings"] for each in cells] == [
        {"seed": seed, "motion_bucket": bucket} for seed in (1, 2) for bucket in (40, 200)
    ]
    for each in cells:
        told_bucket = {"motion_bucket": each["settings"]["motion_bucket"]}
        parts = {"clip_vision": loaded.clip_vision, "vae": loaded.vae, "image": pictures[:1]}
        conds = call("StableVideoConditioning", **parts, **told_bucket)
        expected = measure(full(conds, seed=each["settings"]["seed"]))
        assert each["numbers"]["motion"] == pytest.approx(expected.motion.mean(), rel=1e-3, abs=1e-4)
    assert len({each["numbers"]["motion"] for each in cells}) == 4
    assert video.shape[0] == FRAMES
    assert torch.equal(image, video[-1:])
    assert len(report.splitlines()) == 5


def test_augmentation_puts_noise_on_the_picture_as_the_conditioning_does(swept, full, call, loaded, pictures):
    axis = {"x_setting": "augmentation", "x_values": "0, 0.4", "y_setting": "none", "image": pictures[:1]}
    cells = json.loads(swept(**axis, seed=3)[3])["cells"]
    for each in cells:
        parts = {"clip_vision": loaded.clip_vision, "vae": loaded.vae, "image": pictures[:1], "seed": 3}
        conds = call("StableVideoConditioning", **parts, **each["settings"])
        assert each["numbers"]["motion"] == pytest.approx(measure(full(conds, seed=3)).motion.mean(), rel=1e-3)
    assert cells[0]["numbers"] != cells[1]["numbers"]


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("fps", "6 30"),
        ("steps", "1 3"),
        ("min_guidance", "1 3"),
        ("max_guidance", "1 4"),
        ("guidance_curve", "linear constant"),
        ("schedule", "edm align_your_steps"),
        ("sampler", "euler heun"),
        ("seed", "4 5"),
    ],
)
def test_every_setting_changes_the_clip(swept, setting, values):
    report = json.loads(swept(x_setting=setting, x_values=values, y_setting="none")[3])
    one, other = (each["numbers"] for each in report["cells"])
    assert one != other


def test_a_sweep_measures_what_the_decoder_shows(call, swept, full, pictures, loaded):
    given = {"clip_vision": loaded.clip_vision, "vae": loaded.vae, "image": pictures[:1], "frames": 5}
    positive, negative, latent = call("StableVideoConditioning", **given)
    model, latent = call("StableVideoLoop", model=loaded.model, latent=latent)
    conds = positive, negative, latent
    [cell] = json.loads(swept(model=model, conds=conds, x_setting="seed", x_values="4", y_setting="none")[3])["cells"]
    frames = full(conds, model=model, seed=4)
    shown = {each.name: each.value for each in measure(frames).readings}
    assert cell["numbers"] == pytest.approx(shown, rel=1e-3, abs=1e-3)
    assert len(frames) == len(latent["samples"]) - 1


def test_the_sweep_costs_the_steps_of_its_cells_and_leaves_the_conditioning_alone(swept, conditioned, loaded):
    model, rows = counted(loaded.model)
    before = [dict(entry[1]) for entry in conditioned.one[0]]
    swept(model=model, x_setting="steps", x_values="1 3", y_setting="motion_bucket", y_values="10 20")
    assert len(rows) == 2 * (1 + 3) * 2
    [(_, after)] = conditioned.one[0]
    assert after.keys() == before[0].keys()
    assert after["motion_bucket_id"] == before[0]["motion_bucket_id"] == 127


def test_progress_counts_all_clips_together(swept, loaded, monkeypatch):
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    swept(y_setting="none", steps=3)
    values = [value for value, total in seen if total == 6]
    assert values == sorted(set(values))  # ComfyUI leaves some out where steps take less than 0.1 s
    assert values[0] >= 1 and values[-1] == 6


# Motion Meter


def test_the_meter_hands_on_what_the_core_measures(call):
    frames = torch.rand(4, 32, 48, 3, generator=torch.Generator().manual_seed(3))
    plot, report, told, *values = call("StableVideoMotionMeter", images=frames)
    measured = measure(frames.numpy())
    assert report == measured.report()
    assert told == measured.to_json()
    numbers = {each.name: each.value for each in measured.readings}
    names = ("motion", "camera", "subject", "flicker", "drift", "sharpness", "seam")
    assert values == [numbers[name] for name in names]
    assert np.array_equal(plot[0].numpy(), plot_measured(measured))


def test_the_meter_takes_frames_with_transparency_and_in_half_precision(call):
    frames = torch.rand(3, 32, 48, 4, generator=torch.Generator().manual_seed(3)).half()
    plain = call("StableVideoMotionMeter", images=frames[..., :3].float())[1]
    assert call("StableVideoMotionMeter", images=frames)[1] == plain


# What is refused


def test_what_does_not_fit_is_refused_before_the_model_runs(scouted, swept, conditioned, loaded, pictures, input_error):
    model, rows = counted(loaded.model)

    def refused(node, message, **inputs):
        with pytest.raises(input_error, match=message):
            node(model=model, **inputs)

    for node in (scouted, swept):
        refused(node, "the latent holds 2 clips, and one is studied at a time", conds=conditioned.two)
        refused(node, "16 channels, Stable Video needs 4", vae=SimpleNamespace(latent_channels=16, latent_dim=2))
    refused(scouted, "the picture is 64x64 and the clip 128x64: connect the picture", image=torch.zeros(1, 64, 64, 3))
    augmentation = {"x_setting": "augmentation", "x_values": "0, 0.1"}
    refused(swept, "augmentation is swept and there is no picture", **augmentation)
    refused(swept, "the picture is 64x64 and the clip 128x64", **augmentation, image=torch.zeros(1, 64, 64, 3))
    refused(swept, "seed is on both axes", x_setting="seed", x_values="1 2")
    assert rows == []


@pytest.fixture(scope="module")
def asked_again(call, loaded, pictures):
    """What studies a model that gives several answers a step: a loop, or a fused take of several windows."""
    given = {"clip_vision": loaded.clip_vision, "vae": loaded.vae, "image": pictures[:1], "frames": 5}
    positive, negative, latent = call("StableVideoConditioning", **given)

    def inputs(kind, model):
        if kind == "loop":
            looped, turned = call("StableVideoLoop", model=model, latent=latent)
            return {"model": looped, "conds": (positive, negative, turned)}
        short = {"positive": positive, "negative": negative, "latent": latent}
        fused = {"frames": 5, "window": 3, "method": "fusion"}
        taken, *conds = call("StableVideoLongTake", model=model, **short, **fused)
        return {"model": taken, "conds": tuple(conds)}

    return inputs


@pytest.mark.parametrize("kind", ["loop", "take"])
def test_a_sampler_that_wants_one_answer_is_refused_before_the_first_clip(
    scouted, swept, asked_again, loaded, monkeypatch, input_error, kind
):
    import comfy.sampler_helpers

    model, rows = counted(loaded.model)
    given = asked_again(kind, model)
    loads, prepare = [], comfy.sampler_helpers.prepare_sampling
    monkeypatch.setattr(comfy.sampler_helpers, "prepare_sampling", lambda *args: loads.append(1) or prepare(*args))
    samplers = {"x_setting": "sampler", "x_values": "euler, euler_cfg_pp"}
    for study in (lambda: swept(**given, **samplers), lambda: scouted(**given, sampler_name="euler_cfg_pp")):
        with pytest.raises(input_error, match=r"a CFG\+\+ sampler wants one answer of the model for each step"):
            study()
    assert (rows, loads) == ([], [])
    plain = {"x_setting": "sampler", "x_values": "euler, heun", "y_setting": "none", "sampler_name": "euler_cfg_pp"}
    assert len(json.loads(swept(**given, **plain)[3])["cells"]) == 2


def test_a_swept_guidance_of_0_is_the_checkpoints_own(swept, input_error):
    widgets = {"x_setting": "max_guidance", "y_setting": "none", "steps": 1}
    cells = json.loads(swept(**widgets, x_values="0, 3")[3])["cells"]
    assert [each["settings"]["max_guidance"] for each in cells] == [2.0, 3.0]
    with pytest.raises(input_error, match=r"max_guidance 2\.0 is listed twice"):
        swept(**widgets, x_values="0, 2")


def test_clips_of_one_frame_are_refused_before_the_first(scouted, swept, call, loaded, pictures, input_error):
    given = {"clip_vision": loaded.clip_vision, "vae": loaded.vae, "image": pictures[:1]}
    conds = call("StableVideoConditioning", **given, frames=1)
    model, rows = counted(loaded.model)
    for study in (scouted, swept):
        with pytest.raises(input_error, match="a clip of 1 frame has no motion to compare: ask Stable Video Cond"):
            study(conds=conds, model=model)
    assert rows == []


def test_the_meter_refuses_a_single_picture(call, input_error):
    with pytest.raises(input_error, match="one picture has no motion: connect the frames of a clip, at least 2 frames"):
        call("StableVideoMotionMeter", images=torch.zeros(1, 64, 64, 3))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x_values": "40, many"}, "'many' in the values of motion_bucket is not a whole number"),
        ({"x_values": ""}, "0 values of motion_bucket"),
        ({"x_setting": "sampler", "x_values": "euler warp"}, "sampler 'warp' is not known"),
        ({"y_setting": "fps", "y_values": "0"}, "fps 0 is outside"),
        ({"y_setting": "steps", "y_values": "0"}, "steps 0 is outside"),
    ],
)
def test_bad_values_are_refused_before_the_workflow_runs(pack, inputs, message):
    import nodes

    given = {"x_setting": "motion_bucket", "x_values": "40", "y_setting": "seed", "y_values": "1"} | inputs
    node = nodes.NODE_CLASS_MAPPINGS["StableVideoSweep"]
    assert message in node.validate_inputs(**given)
    assert node.validate_inputs(**(given | {"x_values": None})) is True
    assert node.validate_inputs() is True


def test_a_y_axis_that_is_not_wanted_may_hold_anything(pack):
    import nodes

    given = {"x_setting": "motion_bucket", "x_values": "40", "y_setting": "none", "y_values": "?"}
    assert nodes.NODE_CLASS_MAPPINGS["StableVideoSweep"].validate_inputs(**given) is True


def test_the_scout_says_what_it_costs_and_what_it_found(scouted, shown):
    scouted(on_page=True, tries=2, seed=1, rank_by="calm", steps=2)
    assert shown[0].startswith("1 of 2 clips, 4 steps in all; pixels a frame\nseed 1: motion ")
    assert shown[-1].startswith("2 seeds, least motion first")
