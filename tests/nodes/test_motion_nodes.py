"""Control over motion in the real ComfyUI: what the core makes, on our model and the native one, with every sampler."""

import importlib
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from native_pair import native_trio
from torch import Tensor
from weights import relative

from svd_core.motion.windows import Windows
from svd_core.sampling.schedule import edm_sigmas

FRAMES, SEED = 5, 11
HEIGHT, WIDTH = 64, 128


@pytest.fixture(scope="module")
def native(pack, checkpoint):
    from comfy.model_base import Timestep

    trio = native_trio(pack, checkpoint)
    trio.model.model.embedder = Timestep(16)
    return trio


@pytest.fixture(scope="module")
def condition(call, loaded):
    def run(image: Tensor, **inputs) -> tuple:
        given = {"clip_vision": loaded.clip_vision, "vae": loaded.vae, "image": image, "frames": FRAMES}
        return call("StableVideoConditioning", **(given | inputs))

    return run


@pytest.fixture(scope="module")
def conds(condition, pictures):
    return condition(pictures[:1])


@pytest.fixture
def sample(call, loaded, conds):
    def run(model=None, latent=None, positive=None, negative=None, **inputs) -> dict:
        given = {
            "model": model or loaded.model,
            "positive": positive or conds[0],
            "negative": negative or conds[1],
            "latent": latent or conds[2],
            "seed": SEED,
        }
        return call("StableVideoSampler", **(given | inputs))

    return run


def counted(model) -> tuple:
    """The model and a list that grows by the rows of each pass through its network."""
    rows = []

    def wrapper(apply, args):
        rows.append(args["input"].shape[0])
        return apply(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(wrapper)
    return patched, rows


def ksampled(model, conds, latent, sampler="euler", steps=2, seed=SEED) -> Tensor:
    """The same through ComfyUI's own KSampler and guider."""
    sampler_node = importlib.import_module("nodes").KSampler()
    with torch.inference_mode():
        given = {"model": model, "positive": conds[0], "negative": conds[1], "latent_image": latent}
        how = {"seed": seed, "steps": steps, "cfg": 2.0, "sampler_name": sampler, "scheduler": "karras"}
        return sampler_node.sample(**given, **how)[0]["samples"]


SAMPLERS = ("euler", "heun", "dpmpp_2m", "euler_ancestral", "lcm")


# Motion Brush


@pytest.fixture
def brushed(call, loaded, conds, pictures):
    def run(mask=None, model=None, latent=None, **inputs):
        mask = right_half() if mask is None else mask
        given = {"model": model or loaded.model, "vae": loaded.vae, "latent": latent or conds[2]}
        return call("StableVideoMotionBrush", **given, image=pictures[:1], mask=mask, **inputs)

    return run


def right_half(count=1) -> Tensor:
    mask = torch.zeros(count, HEIGHT, WIDTH)
    mask[..., WIDTH // 2 :] = 1
    return mask


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_still_pixels_keep_their_bits_with_every_sampler(brushed, sample, call, loaded, pictures, sampler):
    model, latent = brushed()
    done = sample(model, latent, sampler_name=sampler)
    images = call("StableVideoDecode", latent=done, vae=loaded.vae)
    assert images.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert torch.equal(images[:, :, : WIDTH // 2], pictures[:1, :, : WIDTH // 2].expand(FRAMES, -1, -1, -1))
    assert not torch.allclose(images[0, :, WIDTH // 2 :], images[-1, :, WIDTH // 2 :], atol=1e-3)
    still = loaded.vae.encode(pictures[:1])[..., : WIDTH // 16].expand(FRAMES, -1, -1, -1)
    torch.testing.assert_close(done["samples"][..., : WIDTH // 16], still, rtol=1e-4, atol=1e-4)


def test_the_brush_works_with_native_samplers_on_the_native_model(brushed, conds, native, loaded, pictures, call):
    model, latent = brushed(model=native.model)
    samples = ksampled(model, conds, latent)
    images = call("StableVideoDecode", latent={**latent, "samples": samples}, vae=native.vae)
    assert torch.equal(images[:, :, : WIDTH // 2], pictures[:1, :, : WIDTH // 2].expand(FRAMES, -1, -1, -1))


def test_masks_for_each_frame_and_the_other_way_round(brushed, sample, call, loaded, pictures):
    masks = right_half(FRAMES)
    masks[0] = 0
    model, latent = brushed(masks, feather=0)
    images = call("StableVideoDecode", latent=sample(model, latent), vae=loaded.vae)
    assert torch.equal(images[0], pictures[0])
    assert not torch.equal(images[1, :, WIDTH // 2 :], pictures[0, :, WIDTH // 2 :])
    model, latent = brushed(right_half(), invert=True)
    images = call("StableVideoDecode", latent=sample(model, latent), vae=loaded.vae)
    assert torch.equal(images[2, :, WIDTH // 2 :], pictures[0, :, WIDTH // 2 :])


def test_a_white_mask_changes_no_bit_and_costs_no_call(brushed, sample, loaded):
    model, rows = counted(loaded.model)
    patched, latent = brushed(torch.ones(1, HEIGHT, WIDTH), model=model)
    assert torch.equal(sample(patched, latent)["samples"], sample()["samples"])
    assert rows == [FRAMES] * 2 * 2


def test_masks_that_do_not_fit_are_refused_in_the_node(brushed, input_error):
    with pytest.raises(input_error, match="the mask is 64x64 and the clip 128x64: paint it on the fitted picture"):
        brushed(torch.ones(1, 64, 64))
    with pytest.raises(input_error, match="2 masks for 5 frames: give one mask, or one for each frame"):
        brushed(right_half(2))


# In-between and Loop


@pytest.fixture
def between(call, loaded, conds, condition, pictures):
    def run(model=None, image=None, **inputs):
        end = condition(pictures[1:] if image is None else image)[0]
        return call("StableVideoInBetween", model=model or loaded.model, end=end, latent=conds[2], **inputs)

    return run


def test_in_between_and_loop_are_the_cores(between, call, loaded, sample, conds, condition, pictures, reference):
    from svd_core.conditioning import Conditioning
    from svd_core.motion import Between
    from svd_core.sampling import edm_sigmas, linear_guidance

    vector = reference.condition(torch.zeros(1, 3, HEIGHT, WIDTH)).vector
    told = [cond[0][0] for cond in (conds, condition(pictures[1:]))]
    start, end = (Conditioning(context, numbers["concat_latent_image"], vector) for context, numbers in told)
    noise = torch.randn(FRAMES, 4, 8, 16, generator=torch.Generator().manual_seed(SEED))
    looped = call("StableVideoLoop", model=loaded.model, latent=conds[2])
    for last, loop, made in ((end, False, between()), (start, True, looped)):
        given = (noise, start, edm_sigmas(2), linear_guidance(FRAMES, 1.0, 2.0))
        wanted = reference.sample(*given, wrap=partial(Between, end=last, loop=loop)) / 0.18215
        assert relative(sample(*made)["samples"], wanted) < 1e-4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_both_ends_are_looked_at_with_every_sampler(between, sample, sampler):
    one = sample(*between(), sampler_name=sampler)["samples"]
    alone = sample(sampler_name=sampler)["samples"]
    assert one.isfinite().all()
    assert relative(one[-1], alone[-1]) > 1e-3


@pytest.mark.parametrize(("method", "calls"), [("fusion", 2), ("in turns", 2)])
def test_two_model_calls_for_one(between, sample, loaded, method, calls):
    model, rows = counted(loaded.model)
    sample(*between(model, method=method), steps=3)
    assert rows == [FRAMES] * 2 * calls * 3  # two branches of guidance


def test_in_turns_takes_the_largest_seed(between, sample):
    assert sample(*between(method="in turns"), seed=2**64 - 1)["samples"].isfinite().all()


def test_in_turns_holds_both_ends(between, sample, conds, condition, pictures):
    samples = sample(*between(method="in turns"), steps=3)["samples"]
    first, last = (cond[0][0][1]["concat_latent_image"] for cond in (conds, condition(pictures[1:])))
    torch.testing.assert_close(samples[:1], first, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(samples[-1:], last, rtol=1e-3, atol=1e-3)


def test_the_native_model_and_sampler_make_the_same(between, sample, conds, native, loaded):
    ours = ksampled(between()[0], conds, conds[2])
    assert relative(ksampled(between(native.model)[0], conds, conds[2]), ours) < 1e-3


def test_ends_that_do_not_fit_are_refused_in_the_node(between, call, loaded, conds, condition, pictures, input_error):
    with pytest.raises(input_error, match="the end picture is 128x128 and the clip 128x64: fit both pictures"):
        between(image=torch.rand(1, 128, 128, 3))
    with pytest.raises(input_error, match="end holds several pictures"):
        between(image=pictures)
    with pytest.raises(input_error, match="end holds no picture"):
        call("StableVideoInBetween", model=loaded.model, end=[[torch.zeros(1, 1, 32), {}]], latent=conds[2])


def test_two_clips_on_a_model_for_one_end_picture_are_named(between, brushed, conds, sample, input_error):
    model, latent = between()
    two = {**latent, "samples": torch.zeros(2 * FRAMES, 4, 8, 16)}
    with pytest.raises(input_error, match="2 clips and the model is set up for one In-Between, to one end picture"):
        sample(model, two)
    with pytest.raises(input_error, match="2 clips and the model is set up for one In-Between, to one end picture"):
        ksampled(model, conds, two)
    with pytest.raises(input_error, match="2 clips and the model is set up for one Motion Brush, with a mask for each"):
        sample(brushed(right_half(FRAMES))[0], two)


def test_a_loop_drops_its_repeated_frame_and_decodes_around(call, loaded, conds, sample):
    model, latent = call("StableVideoLoop", model=loaded.model, latent=conds[2])
    done = sample(model, latent)
    torch.testing.assert_close(done["samples"][0], done["samples"][-1], rtol=1e-4, atol=1e-4)
    images = call("StableVideoDecode", latent=done, vae=loaded.vae)
    assert images.shape[0] == FRAMES - 1
    turned = {**done, "samples": torch.cat([done["samples"][1:], done["samples"][1:2]])}
    assert relative(call("StableVideoDecode", latent=turned, vae=loaded.vae), images.roll(-1, 0)) < 1e-4


def test_a_latent_that_was_to_loop_does_not_after_in_between_and_long_take(call, loaded, conds, condition, pictures):
    """Else Stable Video Decode would leave out the last frame, which shows the end picture."""
    looping = call("StableVideoLoop", model=loaded.model, latent=conds[2])[1]
    looping["stable_video"]["other"] = 1
    end = condition(pictures[1:])[0]
    between = call("StableVideoInBetween", model=loaded.model, end=end, latent=looping)[1]
    given = {"positive": conds[0], "negative": conds[1], "latent": looping, "frames": 8, "window": 4}
    taken = call("StableVideoLongTake", model=loaded.model, **given)[3]
    assert between["stable_video"] == {"other": 1}
    assert set(taken["stable_video"]) == {"hold", "other"}
    assert looping["stable_video"]["loop"]


def test_the_decode_node_shows_the_seam_score(part, pictures):
    finish = part("nodes.finish")
    frames = pictures[:1].expand(4, -1, -1, -1) * torch.tensor([1.0, 0.9, 0.8, 0.9])[:, None, None, None]
    latent = finish.with_request({}, finish.LOOP, True)
    assert finish.finished(frames, latent)[1] == ["Seam score 1.00 (1 is a step like any other)."]
    assert finish.finished(frames, {})[1] == []


def test_a_long_take_is_decoded_with_its_colours_held(part):
    finish = part("nodes.finish")
    frames = torch.rand(3, 4, 5, 3) * torch.tensor([1.0, 0.5, 0.2])[:, None, None, None]
    held, said = finish.finished(frames, finish.with_request({}, finish.HOLD, 1.0))
    assert said == []
    assert torch.equal(held, torch.from_numpy(finish.hold_colours(frames.numpy(), 1.0)))
    assert not torch.equal(held, frames)
    assert torch.equal(finish.finished(frames, finish.with_request({}, finish.HOLD, 0.0))[0], frames)


def test_a_loop_of_two_frames_and_of_several_clips_is_refused(call, loaded, condition, pictures, input_error):
    short = condition(pictures[:1], frames=2)[2]
    with pytest.raises(input_error, match="a loop of 2 frames cannot leave the picture and come back"):
        call("StableVideoLoop", model=loaded.model, latent=short)
    with pytest.raises(input_error, match="the latent holds 2 clips: control one at a time"):
        call("StableVideoLoop", model=loaded.model, latent=condition(pictures)[2])


# Long Take


@pytest.fixture
def longer(call, loaded, conds):
    def run(model=None, frames=8, window=4, **inputs):
        given = {"positive": conds[0], "negative": conds[1], "latent": conds[2], "frames": frames, "window": window}
        outputs = call("StableVideoLongTake", model=model or loaded.model, **(given | inputs))
        return dict(zip(("model", "positive", "negative", "latent"), outputs, strict=True))

    return run


FUSED = {"method": "fusion", "overlap": 2}
WAYS = [pytest.param({}, id="in turns"), pytest.param(FUSED, id="fusion")]


def test_windows_in_turn_cost_a_call_for_each_window_and_step(longer, sample, loaded):
    model, rows = counted(loaded.model)
    done = sample(**longer(model), steps=3)["samples"]
    assert done.shape == (8, 4, 8, 16)
    assert rows == [4] * 2 * 3 * 3  # branches, windows from frames 0, 3 and 4, steps


def test_a_fused_take_shows_the_network_one_window_at_a_time(longer, sample, loaded):
    model, rows = counted(loaded.model)
    done = sample(**longer(model, **FUSED), steps=3)["samples"]
    assert done.shape == (8, 4, 8, 16)
    windows = Windows(4, 2)
    evaluated = [len(windows.starts(8, windows.shift(float(sigma)))) for sigma in edm_sigmas(3)[:-1]]
    assert set(evaluated) == {3, 4}
    assert rows == [4] * 2 * sum(evaluated)  # branches


@pytest.mark.parametrize("way", WAYS)
def test_one_window_is_the_clip_itself(longer, sample, condition, pictures, way):
    conds = condition(pictures[:1], frames=4)
    plain = sample(positive=conds[0], negative=conds[1], latent=conds[2])["samples"]
    assert relative(sample(**longer(frames=4, colour_hold=0.0, **way))["samples"], plain) < 1e-5


def test_windows_in_turn_are_the_cores(longer, sample, conds, reference):
    from svd_core.conditioning import Conditioning
    from svd_core.motion import LongTake, sample_in_turns
    from svd_core.sampling import linear_guidance

    context, numbers = conds[0][0]
    first = numbers["concat_latent_image"]
    told = Conditioning(context, first, reference.condition(torch.zeros(1, 3, HEIGHT, WIDTH)).vector)
    wanted = reference.sample(
        torch.randn(8, 4, 8, 16, generator=torch.Generator().manual_seed(SEED)),
        told,
        edm_sigmas(2),
        linear_guidance(4, 1.0, 2.0),
        partial(sample_in_turns, windows=Windows(4, 1)),
        wrap=partial(LongTake, windows=Windows(4, 1), device="cpu"),
    )
    assert relative(sample(**longer(colour_hold=0.0))["samples"], wanted / 0.18215) < 1e-4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_windows_in_turn_are_made_by_the_chosen_sampler(longer, conds, sampler):
    taken = longer()
    made = ksampled(taken["model"], (taken["positive"], taken["negative"]), taken["latent"], sampler)
    first = ksampled(taken["model"], (taken["positive"], taken["negative"]), taken["latent"], "euler")
    assert made.shape == (8, 4, 8, 16)
    assert made.isfinite().all()
    assert sampler == "euler" or relative(made, first) > 1e-4


def test_every_window_in_turn_has_added_noise_of_its_own(longer, monkeypatch):
    import comfy.k_diffusion.sampling as native

    seeds, drawn = [], native.default_noise_sampler
    monkeypatch.setattr(native, "default_noise_sampler", lambda x, seed=None: seeds.append(seed) or drawn(x, seed=seed))
    taken = longer()
    ksampled(taken["model"], (taken["positive"], taken["negative"]), taken["latent"], "euler_ancestral")
    assert len(seeds) == len(set(seeds)) == 3


def test_windows_in_turn_take_seeds_near_the_largest(longer):
    taken = longer()
    told = taken["positive"], taken["negative"]
    for seed in (2**64 - 3, 2**64 - 2):
        assert ksampled(taken["model"], told, taken["latent"], "euler_ancestral", seed=seed).isfinite().all()


def test_samplers_that_want_one_answer_are_refused_where_there_are_several(longer, between, conds, input_error):
    taken = longer()
    told = taken["positive"], taken["negative"]
    assert ksampled(taken["model"], told, taken["latent"], "euler_cfg_pp").isfinite().all()
    fused = longer(**FUSED)["model"]
    model, latent = between()
    for given in ((fused, told, taken["latent"]), (model, conds, latent)):
        with pytest.raises(input_error, match=r"a CFG\+\+ sampler wants one answer of the model for each step"):
            ksampled(*given, "euler_cfg_pp")
    assert ksampled(fused, told, taken["latent"], "dpmpp_2m").isfinite().all()


def test_a_sampler_that_wants_one_answer_is_refused_before_the_model_is_loaded(
    longer, between, sample, monkeypatch, input_error
):
    import comfy.sampler_helpers

    assert sample(**longer(), sampler_name="euler_cfg_pp")["samples"].isfinite().all()
    assert sample(*between(method="in turns"), sampler_name="euler_cfg_pp")["samples"].isfinite().all()
    loads, prepare = [], comfy.sampler_helpers.prepare_sampling
    monkeypatch.setattr(comfy.sampler_helpers, "prepare_sampling", lambda *given: loads.append(1) or prepare(*given))
    for given in (longer(**FUSED), dict(zip(("model", "latent"), between(), strict=True))):
        with pytest.raises(input_error, match=r"a CFG\+\+ sampler wants one answer of the model for each step"):
            sample(**given, sampler_name="res_multistep_cfg_pp")
    assert loads == []


def test_a_fused_take_of_one_window_goes_with_samplers_that_want_one_answer(longer, sample, condition, pictures):
    conds = condition(pictures[:1], frames=4)
    taken = longer(frames=4, colour_hold=0.0, **FUSED)
    made = ksampled(taken["model"], (taken["positive"], taken["negative"]), taken["latent"], "euler_cfg_pp")
    assert made.isfinite().all()
    given = {"sampler_name": "euler_cfg_pp"}
    plain = sample(positive=conds[0], negative=conds[1], latent=conds[2], **given)["samples"]
    assert relative(sample(**taken, **given)["samples"], plain) < 1e-5


def test_masks_of_another_length_are_refused_before_a_take_begins(longer, brushed, conds, sample, input_error):
    masked, latent = brushed(right_half(FRAMES))
    with pytest.raises(input_error, match="5 masks for 8 frames: give one mask, or one for each frame"):
        longer(masked, latent=latent)
    with pytest.raises(input_error, match="a noise mask for 5 frames and a Long Take of 8"):
        longer(latent={**conds[2], "noise_mask": torch.ones(FRAMES, 1, HEIGHT, WIDTH)})
    with pytest.raises(input_error, match="a noise mask for 5 frames and a Long Take of 8"):
        longer(latent={**conds[2], "noise_mask": torch.ones(1, FRAMES, HEIGHT, WIDTH)})
    taken = longer(latent={**conds[2], "batch_index": list(range(FRAMES))})
    assert sample(**taken)["samples"].shape == (8, 4, 8, 16)


@pytest.mark.parametrize("sides", [(), (1,), (1, 1), (8,), (8, 1), (1, 8)])
def test_one_noise_mask_and_one_for_each_frame_may_have_any_sides_before_them(longer, conds, sample, sides):
    taken = longer(latent={**conds[2], "noise_mask": torch.ones(*sides, HEIGHT, WIDTH)})
    assert sample(**taken)["samples"].shape == (8, 4, 8, 16)


def test_a_mask_for_each_frame_of_a_long_take(longer, brushed, sample, call, loaded, pictures):
    masks = right_half(8)
    masks[5:] = 0
    model, latent = brushed(masks, latent=longer()["latent"], feather=0)
    taken = longer(model, latent=latent)
    images = call("StableVideoDecode", latent=sample(**taken), vae=loaded.vae)
    assert torch.equal(images[5:], pictures[:1].expand(3, -1, -1, -1))
    assert not torch.equal(images[4, :, WIDTH // 2 :], pictures[0, :, WIDTH // 2 :])


@pytest.mark.parametrize("way", WAYS)
def test_a_long_takes_latent_with_the_short_clips_conditioning_is_named(longer, conds, input_error, way):
    taken = longer(**way)
    with pytest.raises(input_error, match="holds 8 frames and the conditioning is for 5: take positive, negative and"):
        ksampled(taken["model"], conds, taken["latent"])


def test_the_sampler_counts_one_windows_activations(longer, part, loaded):
    plan = part("nodes.bridge.plan")
    one, whole = (
        plan.sampling_in_words(model, torch.zeros(frames, 4, 72, 128))
        for model, frames in ((longer()["model"], 40), (loaded.model, 40))
    )
    assert one == plan.sampling_in_words(loaded.model, torch.zeros(4, 4, 72, 128)) != whole


def test_a_noise_mask_holds_in_every_window_in_turn(longer, conds, loaded):
    taken = longer(colour_hold=0.0)
    mask = torch.zeros(8, 1, 64, 128)
    mask[..., 64:] = 1
    latent = {**taken["latent"], "samples": torch.randn(8, 4, 8, 16), "noise_mask": mask}
    made = ksampled(taken["model"], (taken["positive"], taken["negative"]), latent)
    torch.testing.assert_close(made[..., :8], latent["samples"][..., :8], rtol=1e-4, atol=1e-4)
    assert relative(made[..., 8:], latent["samples"][..., 8:]) > 0.1


def test_a_model_can_be_set_up_for_another_way_later(longer, sample, loaded):
    again = sample(**longer(longer()["model"], **FUSED))["samples"]
    assert torch.equal(again, sample(**longer(**FUSED))["samples"])
    assert torch.equal(sample(**longer(longer(**FUSED)["model"]))["samples"], sample(**longer())["samples"])


@pytest.mark.parametrize("way", WAYS)
def test_a_long_take_runs_on_native_nodes(longer, native, sample, way):
    ours, theirs = (longer(model, **way) for model in (None, native.model))
    made = [ksampled(each["model"], (each["positive"], each["negative"]), each["latent"]) for each in (ours, theirs)]
    assert made[0].shape == (8, 4, 8, 16)
    assert relative(made[1], made[0]) < 1e-3


@pytest.mark.parametrize(("way", "held"), [({}, 1), (FUSED, 2)])
def test_an_existing_clip_is_continued(longer, sample, loaded, pictures, way, held):
    clip = pictures[:1].expand(3, -1, -1, -1) * torch.tensor([1.0, 0.8, 0.6])[:, None, None, None]
    done = sample(**longer(continued=clip, vae=loaded.vae, **way))["samples"]
    torch.testing.assert_close(done[:held], loaded.vae.encode(clip[-held:]), rtol=1e-3, atol=1e-3)


def test_windows_that_do_not_fit_are_refused_in_the_node(longer, between, call, loaded, pictures, input_error):
    with pytest.raises(input_error, match="windows of 9 frames are longer than the clip of 8"):
        longer(window=9)
    with pytest.raises(input_error, match="the overlap must be at least 1 and shorter than the window"):
        longer(window=4, overlap=4, method="fusion")
    with pytest.raises(input_error, match="an overlap of 2 for windows in turns, which share one frame: leave it at 0"):
        longer(window=4, overlap=2)
    with pytest.raises(input_error, match="vae is not connected"):
        longer(continued=pictures)
    with pytest.raises(input_error, match="1 frames of 128x64 to continue: give at least 2"):
        longer(continued=pictures[:1], vae=loaded.vae, **FUSED)
    with pytest.raises(input_error, match="put only one of them on a model"):
        longer(between()[0])


def test_a_sampler_that_cannot_run_in_turns_is_named(longer, loaded, input_error):
    import comfy.sample
    import comfy.samplers

    class Other(comfy.samplers.Sampler):
        sample = None

    taken = longer()
    guider = comfy.samplers.CFGGuider(taken["model"])
    guider.set_conds(taken["positive"], taken["negative"])
    with pytest.raises(input_error, match="Other is not made for that: choose another sampler, or fusion"):
        guider.sample(torch.zeros(8, 4, 8, 16), torch.zeros(8, 4, 8, 16), Other(), edm_sigmas(2))


@pytest.fixture
def cached():
    """A model with one of ComfyUI's caches from step to step."""

    def run(model, node="EasyCacheNode", threshold=0.0):
        made = getattr(importlib.import_module("comfy_extras.nodes_easycache"), node)
        return made.execute(model, threshold, 0.15, 0.95, False).result[0]

    return run


@pytest.mark.parametrize("node", ["EasyCacheNode", "LazyCacheNode"])
@pytest.mark.parametrize("after", [False, True])
def test_each_window_in_turn_has_a_step_cache_of_its_own(longer, cached, sample, loaded, node, after):
    """At a threshold of 0 nothing is skipped. ComfyUI's caches do not expect a noise level that rises again."""
    taken = longer(loaded.model if after else cached(loaded.model, node))
    model = cached(taken["model"], node) if after else taken["model"]
    plain = sample(**longer(), steps=8)["samples"]
    assert torch.equal(sample(**{**taken, "model": model}, steps=8)["samples"], plain)


def test_each_direction_in_turn_has_a_step_cache_of_its_own(between, cached, sample, loaded):
    from comfy.patcher_extension import WrappersMP

    model, latent = between(cached(loaded.model), method="in turns")
    seen = []

    def watch(executor, *args):
        seen.append(args[-1]["transformer_options"]["easycache"])
        return executor(*args)

    model.add_wrapper(WrappersMP.CALC_COND_BATCH, watch)
    sample(model, latent, steps=3)
    forward, backward = ({id(each) for each in seen[way::2]} for way in (0, 1))
    assert len(seen) == 6 and len(forward) == len(backward) == 1 and forward != backward


@pytest.mark.parametrize(
    ("control", "sigmas", "message"),
    [
        ("brush", [0.0, 0.0], "every noise level is 0, needed at least one above: connect other sigmas"),
        (
            "loop",
            [1.0, 700.0],
            "the noise levels rise, and in turns only goes down: give falling sigmas, or choose fusion",
        ),
    ],
)
def test_noise_levels_that_a_control_cannot_follow_are_refused(
    brushed, call, loaded, conds, input_error, control, sigmas, message
):
    import comfy.samplers

    loop = {"model": loaded.model, "latent": conds[2], "method": "in turns"}
    model, latent = brushed() if control == "brush" else call("StableVideoLoop", **loop)
    guider = call("StableVideoGuider", model=model, positive=conds[0], negative=conds[1])
    euler, zeros = comfy.samplers.sampler_object("euler"), torch.zeros_like(latent["samples"])
    with torch.inference_mode(), pytest.raises(input_error, match=message):
        guider.sample(zeros + 1, zeros, euler, torch.tensor(sigmas))


# Un-stick and Curves


def test_unstick_starts_lower_from_the_picture(call, loaded, sample, conds):
    model, bucket, augmentation = call("StableVideoUnstick", model=loaded.model, strength=1.0)
    assert (bucket, augmentation) == (255, pytest.approx(0.2))
    seen = []

    def watch(apply, args):
        seen.append(args["timestep"])
        return apply(args["input"], args["timestep"], **args["c"])

    watched = model.clone()
    watched.set_model_unet_function_wrapper(watch)
    sample(watched, steps=3)
    assert seen[0].max().item() == pytest.approx(50.0, rel=1e-4)
    assert len(seen) == 3 * 2
    assert not torch.equal(sample(model)["samples"], sample()["samples"])
    unchanged = call("StableVideoUnstick", model=loaded.model, strength=0.0)
    assert torch.equal(sample(unchanged[0])["samples"], sample()["samples"])
    assert unchanged[1:] == (127, 0.02)


def test_unstick_refuses_a_run_in_parts(call, loaded, sample, conds, input_error):
    model, *_ = call("StableVideoUnstick", model=loaded.model, strength=1.0)
    with pytest.raises(input_error, match="starts a whole run lower, and this one is a part that ends at sigma"):
        sample(model, steps=4, end_step=2)
    begun = {**conds[2], "samples": torch.randn(FRAMES, 4, 8, 16)}
    with pytest.raises(input_error, match="this one goes on from a latent without adding noise"):
        sample(model, begun, steps=4, add_noise=False)
    late = sample(model, begun, steps=8, start_step=7, add_noise=False)["samples"]
    assert torch.equal(late, sample(None, begun, steps=8, start_step=7, add_noise=False)["samples"])


def test_unstick_says_which_latent_does_not_fit(call, loaded, conds, input_error):
    model, *_ = call("StableVideoUnstick", model=loaded.model, strength=1.0)
    with pytest.raises(input_error, match="the latent holds 3 frames, which is not a whole number of clips of 5"):
        ksampled(model, conds, {"samples": torch.zeros(3, 4, 8, 16)})


def test_curves_of_a_constant_are_the_constant(call, loaded, sample, conds):
    plain = sample(max_guidance=2.0)["samples"]
    same = call("StableVideoCurves", model=loaded.model, motion_bucket_points="0:127", augmentation_values=[0.02])
    assert relative(sample(same, max_guidance=2.0)["samples"], plain) < 1e-4
    other = call("StableVideoCurves", model=loaded.model, motion_bucket_points="0:10, 1:250")
    assert relative(sample(other)["samples"], plain) > 1e-3


def test_a_guidance_curve_replaces_the_samplers(call, loaded, sample):
    drawn = sample(guidance_points="0:1, 1:3")["samples"]
    for given in ({"guidance_points": "0:1, 1:3"}, {"guidance_values": [1.0, 1.5, 2.0, 2.5, 3.0]}):
        curved = call("StableVideoCurves", model=loaded.model, **given)
        assert torch.equal(sample(curved)["samples"], drawn)


def test_curves_that_do_not_fit_are_refused(call, loaded, sample, input_error):
    for name in ("guidance_values", "motion_bucket_values"):
        curved = call("StableVideoCurves", model=loaded.model, **{name: [1.0, 2.0]})
        with pytest.raises(input_error, match="2 values for 5 frames: give one value, or one for each frame"):
            sample(curved)
    curved = call("StableVideoCurves", model=loaded.model, motion_bucket_points="0:-5")
    with pytest.raises(input_error, match="the motion bucket curve goes from -5 to -5"):
        sample(curved)


# Together


def told_in_a_run(model, conds, latent, guider=None) -> list[dict]:
    """What the network is told in each pass of one step; a guider gets its own sampler."""
    seen = []

    def wrapper(apply, args):
        seen.append({name: args["c"][name].clone() for name in ("c_crossattn", "c_concat", "y")})
        return apply(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(wrapper)
    if guider is None:
        ksampled(patched, conds, latent, steps=1)
    else:
        import comfy.samplers

        noise = torch.zeros_like(latent["samples"])
        with torch.inference_mode():
            guider(patched).sample(noise, noise, comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.0]))
    rows = [seen[i]["y"].shape[0] // FRAMES for i in range(len(seen))]
    return [
        {name: each.unflatten(0, (count, -1))[part] for name, each in told.items()}
        for told, count in zip(seen, rows, strict=True)
        for part in range(count)
    ]


def test_every_entry_of_positive_keeps_its_own_picture_and_numbers(call, loaded, condition, pictures):
    """Such as those of Conditioning (Combine), and of timestep ranges."""
    one, other = condition(pictures[:1]), condition(pictures[1:], fps=20, motion_bucket=40)
    model = call("StableVideoCurves", model=loaded.model, motion_bucket_points="0:10, 1:200")
    told = told_in_a_run(model, (one[0] + other[0], one[1]), one[2])
    firsts = [each["c_concat"] for each in told]
    for given in (one, other):
        wanted = given[0][0][1]["concat_latent_image"].expand(FRAMES, -1, -1, -1)
        assert sum(torch.equal(each, wanted) for each in firsts) == 1
    assert len({tuple(each["y"][0, :2].tolist()) for each in told}) == 2  # frames per second


def test_the_middle_conditioning_of_dual_cfg_is_told_too(call, loaded, conds):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    model = call("StableVideoCurves", model=loaded.model, motion_bucket_points="0:10, 1:200")

    def guider(patched):
        made = Guider_DualCFG(patched)
        made.set_conds(conds[0], conds[0], conds[1])
        made.set_cfg(2.0, 3.0)
        return made

    told = told_in_a_run(model, conds, conds[2], guider)
    assert len(told) == 3
    assert all(torch.equal(each["y"], told[0]["y"]) for each in told)
    assert not torch.equal(told[0]["y"][0], told[0]["y"][-1])


def test_a_loop_of_two_pictures_is_refused(call, loaded, conds, condition, pictures, input_error):
    model, latent = call("StableVideoLoop", model=loaded.model, latent=conds[2])
    both = conds[0] + condition(pictures[1:])[0]
    with pytest.raises(input_error, match="positive holds 2 entries of different pictures, and Loop and in turns"):
        ksampled(model, (both, conds[1]), latent)
    assert ksampled(model, (conds[0] + conds[0], conds[1]), latent).isfinite().all()


def test_methods_go_together_in_any_order(brushed, call, loaded, conds, sample, pictures):
    one, first = brushed()
    one, first = call("StableVideoLoop", model=one, latent=first)
    two, second = call("StableVideoLoop", model=loaded.model, latent=conds[2])
    two, second = brushed(model=two, latent=second)
    both = [sample(model, latent) for model, latent in ((one, first), (two, second))]
    assert torch.equal(both[0]["samples"], both[1]["samples"])
    images = call("StableVideoDecode", latent=both[0], vae=loaded.vae)
    assert torch.equal(images[:, :, : WIDTH // 2], pictures[:1, :, : WIDTH // 2].expand(FRAMES - 1, -1, -1, -1))


def test_a_brush_in_a_loop_in_turns(brushed, call, conds, sample, pictures, loaded):
    model, latent = brushed()
    model, latent = call("StableVideoLoop", model=model, latent=latent, method="in turns")
    samples = sample(model, latent, steps=3)["samples"]
    still = loaded.vae.encode(pictures[:1])[..., : WIDTH // 16].expand(FRAMES, -1, -1, -1)
    torch.testing.assert_close(samples[..., : WIDTH // 16], still, rtol=1e-3, atol=1e-3)


def test_models_are_left_as_they_were(brushed, between, longer, call, loaded, sample):
    plain = sample()["samples"]
    for make in (brushed, between, longer):
        made = make()
        sample(**made) if isinstance(made, dict) else sample(*made)
    assert torch.equal(sample()["samples"], plain)


@pytest.mark.parametrize("method", ["fusion", "in turns"])
def test_cancel_acts_within_a_step_and_leaves_the_run_clean(between, call, loaded, conds, part, method):
    import comfy.model_management as management
    import comfy.samplers

    model, rows = counted(loaded.model)
    model, latent = between(model, method=method)
    guider = call("StableVideoGuider", model=model, positive=conds[0], negative=conds[1])
    samples = latent["samples"]
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(1))

    def cancel(step, x0, x, total):
        if step == 1:
            management.interrupt_current_processing()
        management.throw_exception_if_processing_interrupted()

    sigmas = call("StableVideoSigmas", model=loaded.model, steps=8)
    euler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode(), pytest.raises(management.InterruptProcessingException):
        guider.sample(noise, samples, euler, sigmas, callback=cancel)
    assert len(rows) <= 2 * 2 * 2  # two steps of two calls with two branches
    with torch.inference_mode():
        again = guider.sample(noise, samples, euler, sigmas[-3:])
    assert again.isfinite().all()


def test_other_models_and_latents_are_named(call, loaded, conds, input_error):
    other = SimpleNamespace(model=type("SDXL", (), {})(), model_options={})
    with pytest.raises(input_error, match="this MODEL is SDXL, not Stable Video Diffusion"):
        call("StableVideoLoop", model=other, latent=conds[2])
    with pytest.raises(input_error, match=r"the latent is shape \(1, 16, 8, 16\)"):
        call("StableVideoLoop", model=loaded.model, latent={"samples": torch.zeros(1, 16, 8, 16)})
