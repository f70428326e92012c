"""Sampler, Sigmas and Guider: the core's clips in the real ComfyUI, on our model and on its own."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from native_pair import native_trio
from torch import Tensor
from weights import relative

from svd_core.conditioning import Conditioning
from svd_core.sampling import (
    align_your_steps_sigmas,
    constant_guidance,
    curve_guidance,
    edm_sigmas,
    linear_guidance,
    trapezoid_guidance,
    triangle_guidance,
)

FRAMES, SEED = 3, 11
SCALE = 0.18215


@pytest.fixture(scope="module")
def native(pack, checkpoint):
    """ComfyUI's own classes around the same weights, but that the tiny model reads a narrower vector."""
    from comfy.model_base import Timestep

    trio = native_trio(pack, checkpoint)
    trio.model.model.embedder = Timestep(16)
    return trio


@pytest.fixture(scope="module")
def conditioned(call, loaded, pictures):
    """Conditioning of the first picture, and of both."""

    def run(images: Tensor) -> tuple:
        return call("StableVideoConditioning", clip_vision=loaded.clip_vision, vae=loaded.vae, image=images)

    return SimpleNamespace(one=run(pictures[:1]), two=run(pictures))


@pytest.fixture
def sample(call, loaded, conditioned):
    """Run the sampler node: samples (N, 4, h, w), unscaled."""

    def run(conds=None, **inputs) -> Tensor:
        positive, negative, latent = conds or conditioned.one
        given = {"model": loaded.model, "positive": positive, "negative": negative, "latent": latent, "seed": SEED}
        return call("StableVideoSampler", **(given | inputs))["samples"]

    return run


@pytest.fixture
def native_call(pack):
    """Run one of ComfyUI's own nodes, by module and class."""

    def run(module: str, name: str, **inputs):
        node = getattr(importlib.import_module(module), name)
        with torch.inference_mode():
            if hasattr(node, "define_schema"):
                return node.execute(**inputs).args
            return getattr(node(), node.FUNCTION)(**inputs)

    return run


@pytest.fixture
def advanced(call, loaded, conditioned, native_call):
    """Run SamplerCustomAdvanced on our Guider and Sigmas."""

    def run(conds=None, model=None, sigmas=None, **guidance) -> Tensor:
        positive, negative, latent = conds or conditioned.one
        model = model or loaded.model
        guider = call("StableVideoGuider", model=model, positive=positive, negative=negative, **guidance)
        sampler = "comfy_extras.nodes_custom_sampler"
        [euler] = native_call(sampler, "KSamplerSelect", sampler_name="euler")
        [noise] = native_call(sampler, "RandomNoise", noise_seed=SEED)
        sigmas = call("StableVideoSigmas", model=model) if sigmas is None else sigmas
        parts = {"noise": noise, "guider": guider, "sampler": euler, "sigmas": sigmas, "latent_image": latent}
        return native_call(sampler, "SamplerCustomAdvanced", **parts)[0]["samples"]

    return run


def seeded(shape) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def counted(model) -> tuple:
    """The model and a list that grows by the rows of each pass through its network."""
    rows = []

    def wrapper(apply, args):
        rows.append(args["input"].shape[0])
        return apply(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(wrapper)
    return patched, rows


# Against the core


def core_sample(reference, conds, sigmas, guidance, sampler="euler") -> Tensor:
    """The same clip by svd_core alone, unscaled."""
    [[context, numbers]] = conds[0]
    rows = slice(None, None, FRAMES)
    vector = reference.condition(torch.zeros(1, 3, 64, 128)).vector
    first = numbers["concat_latent_image"][rows]
    cond = Conditioning(context[rows], first, vector.expand(len(first), -1))
    noise = seeded(conds[2]["samples"].shape)
    return reference.sample(noise, cond, sigmas, guidance, sampler) / SCALE


@pytest.mark.parametrize(
    ("inputs", "sigmas", "guidance"),
    [
        ({}, edm_sigmas(2), linear_guidance(FRAMES, 1.0, 2.0)),
        ({"steps": 4, "max_guidance": 3.0}, edm_sigmas(4), linear_guidance(FRAMES, 1.0, 3.0)),
        ({"guidance_curve": "constant"}, edm_sigmas(2), constant_guidance(FRAMES, 2.0)),
        ({"guidance_curve": "triangle"}, edm_sigmas(2), triangle_guidance(FRAMES, 1.0, 2.0)),
        ({"guidance_curve": "trapezoid"}, edm_sigmas(2), trapezoid_guidance(FRAMES, 1.0, 2.0)),
        ({"guidance_points": "0:1, 1:4"}, edm_sigmas(2), curve_guidance(FRAMES, [(0, 1), (1, 4)])),
        (
            {"steps": 3, "schedule": "align_your_steps"},
            align_your_steps_sigmas(3),
            linear_guidance(FRAMES, 1.0, 2.0),
        ),
    ],
)
def test_the_sampler_makes_the_cores_clip(sample, conditioned, reference, inputs, sigmas, guidance):
    expected = core_sample(reference, conditioned.one, sigmas, guidance)
    assert relative(sample(**inputs), expected) < 1e-4


def test_other_samplers_are_the_cores_too(sample, conditioned, reference):
    expected = core_sample(reference, conditioned.one, edm_sigmas(3), linear_guidance(FRAMES, 1.0, 2.0), "heun")
    assert relative(sample(steps=3, sampler_name="heun"), expected) < 1e-4


def test_two_clips_are_the_cores_two_clips(sample, conditioned, reference):
    expected = core_sample(reference, conditioned.two, edm_sigmas(2), linear_guidance(FRAMES, 1.0, 2.0))
    assert relative(sample(conditioned.two), expected) < 1e-4


def test_each_of_two_clips_is_what_it_is_alone(call, loaded, conditioned):
    import comfy.samplers

    positive, negative, latent = conditioned.two
    samples = latent["samples"]
    noise = seeded(samples.shape)

    def clip(conds: list, rows: slice) -> Tensor:
        guider = call("StableVideoGuider", model=loaded.model, positive=conds[0], negative=conds[1])
        euler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            return guider.sample(noise[rows], samples[rows], euler, edm_sigmas(2))

    def only(cond: list, row: int) -> list:
        [[context, numbers]] = cond
        first = numbers["concat_latent_image"][row : row + 1]
        return [[context[row : row + 1], {**numbers, "concat_latent_image": first}]]

    both = clip((positive, negative), slice(None))
    for start in (0, FRAMES):
        rows = slice(start, start + FRAMES)
        alone = clip([only(cond, start) for cond in (positive, negative)], rows)
        assert relative(both[rows], alone) < 1e-4
    assert relative(both[:FRAMES], both[FRAMES:]) > 0.1


# Against ComfyUI's own nodes


def test_the_guider_is_linear_cfg_guidance_with_ksampler(advanced, conditioned, loaded, native_call):
    positive, negative, latent = conditioned.one
    [patched] = native_call("comfy_extras.nodes_video_model", "VideoLinearCFGGuidance", model=loaded.model, min_cfg=1.0)
    sampled = native_call(
        "nodes",
        "KSampler",
        model=patched,
        seed=SEED,
        steps=4,
        cfg=2.5,
        sampler_name="euler",
        scheduler="karras",
        positive=positive,
        negative=negative,
        latent_image=latent,
    )[0]["samples"]
    ours = advanced(sigmas=edm_sigmas(4), min_guidance=1.0, max_guidance=2.5)
    assert relative(ours, sampled) < 1e-5


def test_the_parts_make_what_the_sampler_makes(advanced, sample, conditioned):
    for conds in (conditioned.one, conditioned.two):
        assert torch.equal(advanced(conds), sample(conds))


def test_the_native_model_makes_the_same_clips_batches_included(sample, conditioned, native, loaded):
    defaults = {"steps": 2, "min_guidance": 1.0, "max_guidance": 2.0}
    for conds in (conditioned.one, conditioned.two):
        assert relative(sample(conds, model=native.model, **defaults), sample(conds)) < 1e-4


def test_native_conditioning_drives_our_sampler(sample, loaded, pictures, native_call, conditioned):
    conds = native_call(
        "comfy_extras.nodes_video_model",
        "SVD_img2vid_Conditioning",
        clip_vision=loaded.clip_vision,
        init_image=pictures[:1],
        vae=loaded.vae,
        width=128,
        height=64,
        video_frames=FRAMES,
        motion_bucket_id=127,
        fps=7,
        augmentation_level=0.0,
    )
    sampled = sample(conds)
    assert sampled.shape == (FRAMES, 4, 8, 16)
    assert sampled.isfinite().all()


def test_defaults_of_a_native_model_are_those_of_svd(call, native, conditioned):
    guider = call("StableVideoGuider", model=native.model, positive=conditioned.one[0], negative=conditioned.one[1])
    torch.testing.assert_close(guider.weights(14), linear_guidance(14, 1.0, 2.5))
    assert len(call("StableVideoSigmas", model=native.model)) == 26
    assert len(call("StableVideoSigmas")) == 26


# Passes through the network


def test_both_branches_run_unless_every_weight_is_one(sample, loaded):
    model, rows = counted(loaded.model)
    sample(model=model)
    assert sum(rows) == 2 * 2 * FRAMES
    rows.clear()
    sample(model=model, min_guidance=1.0, max_guidance=1.0)
    assert sum(rows) == 2 * FRAMES
    for points in ("0:3, 1:1", "0:0.5, 1:1"):
        rows.clear()
        sample(model=model, guidance_points=points)
        assert sum(rows) == 2 * 2 * FRAMES, points


def test_patches_are_told_which_branch_they_see(sample, loaded):
    """As ComfyUI tells them: 0 is the positive, 1 the negative."""
    seen = []

    def wrapper(apply, args):
        seen.append((args["cond_or_uncond"], args["c"]["transformer_options"]["cond_or_uncond"]))
        return apply(args["input"], args["timestep"], **args["c"])

    model = loaded.model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    sample(model=model, steps=1)
    assert seen == [([0], [0]), ([1], [1])]


def test_no_bit_depends_on_free_memory(sample, monkeypatch):
    """ComfyUI runs both guidance branches as one batch or apart, as memory allows."""
    import comfy.model_management
    import comfy.model_patcher

    plenty = sample(max_guidance=3.0)
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda *_: 0)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: 0)
    assert torch.equal(sample(max_guidance=3.0), plenty)


def test_frames_beyond_the_whole_memory_are_refused_before_the_model_runs(sample, loaded, monkeypatch, input_error):
    """The message names the frames, what they need, what there is, and how many would do."""
    import comfy.model_management

    one = 16 * 32 * 16 * 8 * 4  # bytes a frame of the tiny model needs at least, at 128x64
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_, **__: FRAMES * one - 1)
    monkeypatch.setattr(type(loaded.model.model), "apply_model", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(input_error, match=rf"{FRAMES} frames of 128x64 need .* ask for {FRAMES - 1} frames at most"):
        sample()


def test_guidance_of_nodes_before_it_is_replaced(sample, loaded, native_call):
    [patched] = native_call("comfy_extras.nodes_video_model", "VideoLinearCFGGuidance", model=loaded.model, min_cfg=9.0)
    assert torch.equal(sample(model=patched), sample())
    unguided = {"min_guidance": 1.0, "max_guidance": 1.0}
    assert torch.equal(sample(model=patched, **unguided), sample(**unguided))


def test_guidance_that_is_replaced_is_told(sample, call, loaded, conditioned, native_call, part, monkeypatch):
    shown = []
    monkeypatch.setattr(part("nodes.sampling"), "show", lambda node, *sentences: shown.append("".join(sentences)))
    [patched] = native_call("comfy_extras.nodes_video_model", "VideoLinearCFGGuidance", model=loaded.model, min_cfg=9.0)
    positive, negative, _ = conditioned.one
    for model, told in ((loaded.model, False), (patched, True)):
        sample(model=model, steps=1)
        call("StableVideoGuider", model=model, positive=positive, negative=negative)
        assert ["is replaced by this node's" in each for each in shown] == [told, told]
        shown.clear()


def test_the_model_is_left_as_it_was(sample, loaded, native, conditioned):
    for model in (loaded.model, native.model):
        before = set(model.model_options), str(model.model_options)
        sample(conditioned.two, model=model)
        assert (set(model.model_options), str(model.model_options)) == before


# Noise, schedules and parts of them


def test_the_seed_decides_the_clip(sample):
    torch.manual_seed(5)
    one = sample()
    torch.manual_seed(6)
    assert torch.equal(one, sample())
    assert not torch.equal(one, sample(seed=SEED + 1))


def test_two_parts_make_what_the_whole_makes(sample, conditioned):
    positive, negative, latent = conditioned.one
    whole = sample(steps=5)
    begun = sample(steps=5, end_step=2)
    assert not torch.allclose(begun, whole)
    handed_on = {**latent, "samples": begun}
    finished = sample((positive, negative, handed_on), steps=5, start_step=2, add_noise=False)
    assert relative(finished, whole) < 1e-4


def test_denoise_keeps_the_given_video_as_far_as_it_says(sample, conditioned, reference):
    positive, negative, latent = conditioned.one
    video = seeded(latent["samples"].shape) / SCALE
    given = (positive, negative, {**latent, "samples": video})
    changes = [relative(sample(given, steps=4, denoise=denoise), video) for denoise in (0.2, 0.5, 1.0)]
    assert changes[0] < changes[1] < changes[2]
    # The last four of twenty steps, from the video noised to where they begin.
    sigmas = edm_sigmas(20)[-5:]
    [[context, numbers]] = positive
    vector = reference.condition(torch.zeros(1, 3, 64, 128)).vector
    cond = Conditioning(context, numbers["concat_latent_image"], vector)
    start = video * SCALE + sigmas[0] * seeded(video.shape)
    unit = start / torch.sqrt(1 + sigmas[0] ** 2)
    expected = reference.sample(unit, cond, sigmas, linear_guidance(FRAMES, 1.0, 2.0)) / SCALE
    assert relative(sample(given, steps=4, denoise=0.2), expected) < 1e-4


def test_a_noise_mask_keeps_the_rest_of_the_video(sample, conditioned):
    positive, negative, latent = conditioned.one
    video = seeded(latent["samples"].shape) / SCALE
    mask = torch.zeros(1, 1, 64, 128)
    mask[..., 64:] = 1
    sampled = sample((positive, negative, {**latent, "samples": video, "noise_mask": mask}))
    torch.testing.assert_close(sampled[..., :8], video[..., :8], rtol=1e-4, atol=1e-4)
    assert relative(sampled[..., 8:], video[..., 8:]) > 0.1


def test_what_the_latent_carries_is_handed_on_and_the_given_one_is_left(call, loaded, conditioned):
    positive, negative, latent = conditioned.one
    given = {**latent, "batch_index": list(range(FRAMES))}
    inputs = {"model": loaded.model, "positive": positive, "negative": negative, "latent": given}
    out = call("StableVideoSampler", **inputs)
    assert out["num_video_frames"] == FRAMES
    assert out["batch_index"] == given["batch_index"]
    assert not latent["samples"].any()
    bare = {"samples": latent["samples"].repeat(2, 1, 1, 1)}  # such as VAE Encode's
    assert call("StableVideoSampler", **(inputs | {"latent": bare}))["num_video_frames"] == FRAMES


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"steps": 7}, edm_sigmas(7)),
        ({"steps": 7, "sigma_min": 0.01, "sigma_max": 80.0, "rho": 5.0}, edm_sigmas(7, 0.01, 80.0, 5.0)),
        ({"steps": 7, "schedule": "align_your_steps"}, align_your_steps_sigmas(7)),
        ({"steps": 7, "denoise": 0.5}, edm_sigmas(14)[-8:]),
        ({"steps": 7, "start_step": 2, "end_step": 5}, edm_sigmas(7)[2:6]),
        ({"levels": "700, 20 1"}, torch.tensor([700.0, 20.0, 1.0, 0.0])),
        ({"levels": "700, 20, 1", "start_step": 1}, torch.tensor([20.0, 1.0, 0.0])),
    ],
)
def test_sigmas(call, inputs, expected):
    assert torch.equal(call("StableVideoSigmas", **inputs), expected)


def test_steps_left_open_are_the_checkpoints(call, loaded):
    assert len(call("StableVideoSigmas", model=loaded.model)) == 3


def test_a_cache_that_needs_both_branches_gets_them_in_one_call(sample, conditioned, loaded):
    """EasyCache decides by the first branch whether to skip both."""
    from comfy.patcher_extension import WrappersMP
    from comfy_extras.nodes_easycache import EasyCacheNode

    model, asked = EasyCacheNode.execute(loaded.model, 0.0, 0.15, 0.95, False).result[0], []

    def watch(executor, *args):
        asked.append([cond is not None for cond in args[1]])
        return executor(*args)

    model.add_wrapper(WrappersMP.CALC_COND_BATCH, watch)
    sample(conditioned.one, model=model, steps=3)
    assert asked == [[True, True]] * 3


# What is refused, before the model runs


def test_what_does_not_fit_is_refused_before_the_model_runs(sample, conditioned, loaded, input_error):
    positive, negative, latent = conditioned.one
    model, rows = counted(loaded.model)

    def refused(message: str, samples=None, positive=positive, **inputs) -> None:
        given = latent if samples is None else {**latent, "samples": samples}
        with pytest.raises(input_error, match=message):
            sample((positive, negative, given), model=model, **inputs)

    refused("latent is for 128x128 pixels and the conditioning for 128x64: use the latent", torch.zeros(3, 4, 16, 16))
    refused("holds 4 frames, which is not a whole number of clips of 3: give 3", torch.zeros(4, 4, 8, 16))
    refused(r"latent is shape \(3, 16, 8, 16\); needed \(frames, 4,", torch.zeros(3, 16, 8, 16))
    pictures = positive[0][1]["concat_latent_image"].repeat(2, 1, 1, 1)
    uneven = [[positive[0][0], {**positive[0][1], "concat_latent_image": pictures}]]
    refused("the conditioning holds 2 pictures for 1 clips of 3 frames: take both from the same nodes", positive=uneven)
    refused("holds 3 clips and the conditioning 2", torch.zeros(9, 4, 8, 16), conditioned.two[0])
    refused("positive holds no picture: connect Stable Video Conditioning", positive=[[torch.zeros(1, 77, 32), {}]])
    narrow = [[positive[0][0][..., :16], positive[0][1]]]
    refused("16 numbers for the picture and this model reads 32: connect the CLIP_VISION", positive=narrow)
    damaged = torch.zeros(3, 4, 8, 16)
    damaged[1, 0, 0, 0] = torch.nan
    refused(r"the latent's frames \[1\] hold NaN", damaged)
    refused("latent is empty and add_noise is off", add_noise=False)
    refused("steps 3 to 2 are not a part of 2 steps", start_step=3)
    line = "denoise 0.01 takes the last 20 of 2000 steps, and 1000 are the most: raise denoise to 0.02, or .* to 10"
    refused(line, steps=20, denoise=0.01)
    with pytest.raises(input_error, match="latent is for clips of 6 frames and the conditioning for clips of 3: take"):
        sample((positive, negative, {"samples": torch.zeros(6, 4, 8, 16), "num_video_frames": 6}), model=model)
    assert rows == []


def test_one_picture_may_make_several_clips(sample, conditioned):
    positive, negative, latent = conditioned.one
    samples = latent["samples"].repeat(2, 1, 1, 1)
    clips = sample((positive, negative, {**latent, "samples": samples}))
    assert torch.allclose(clips[:FRAMES], sample(), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(clips[FRAMES:], clips[:FRAMES], atol=0.1)


def test_the_model_of_another_family_is_named(sample, input_error):
    other = SimpleNamespace(model=type("SDXL", (), {})(), model_options={})
    with pytest.raises(input_error, match="this MODEL is SDXL, not Stable Video Diffusion: connect"):
        sample(model=SimpleNamespace(**vars(other)))


def test_a_result_that_is_not_finite_names_frames_dtype_and_remedy(sample, loaded, input_error):
    def overflow(apply, args):
        out = apply(args["input"], args["timestep"], **args["c"])
        out[2::FRAMES] = torch.inf
        return out

    model = loaded.model.clone()
    model.set_model_unet_function_wrapper(overflow)
    with pytest.raises(input_error, match=r"sampling in float32 gave NaN or infinity in frames \[2\]: start ComfyUI"):
        sample(model=model, steps=1, min_guidance=1.0, max_guidance=1.0)


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        ("Sampler", {"guidance_points": "0.5"}, "guidance point '0.5' is not position:weight"),
        ("Sampler", {"guidance_points": "0:1, 0:2"}, "curve position 0 after 0"),
        ("Sampler", {"guidance_points": "0:1, 1:-3"}, "guidance_points: weight -3 is outside 0 to 100"),
        ("Guider", {"guidance_points": "0:1e30"}, "guidance_points: weight 1e+30 is outside 0 to 100"),
        ("Curves", {"augmentation_points": "a:1"}, "augmentation_points: 'a' in augmentation points is not a number"),
        (
            "Curves",
            {"motion_bucket_points": "5"},
            "motion_bucket_points: motion bucket point '5' is not position:value",
        ),
        ("Sampler", {"guidance_points": "a:1"}, "'a' in guidance points is not a number"),
        ("Sampler", {"start_step": 5, "end_step": 5}, "start step 5 to end step 5 leaves nothing"),
        ("Sigmas", {"levels": "1, 2"}, "sigma 2 after 1"),
        ("Sigmas", {"levels": "high"}, "'high' in levels is not a number"),
        ("Sigmas", {"start_step": -1}, "start step -1 to end step 0 leaves nothing"),
        ("Guider", {"guidance_points": "2:1"}, "positions must rise, from 0 to 1"),
    ],
)
def test_bad_widgets_are_refused_before_the_workflow_runs(pack, node, inputs, message):
    import nodes

    answer = nodes.NODE_CLASS_MAPPINGS[f"StableVideo{node}"].validate_inputs(**inputs)
    assert message in answer


def test_widgets_that_are_linked_are_not_judged_too_early(pack):
    import nodes

    for node, names in (("Sampler", ["guidance_points", "start_step", "end_step"]), ("Sigmas", ["levels"])):
        check = nodes.NODE_CLASS_MAPPINGS[f"StableVideo{node}"].validate_inputs
        assert check(**dict.fromkeys(names)) is True
        assert check() is True


# Cancel


def test_cancel_acts_within_a_step_and_leaves_nothing_on_the_guider(call, loaded, conditioned, part):
    import comfy.model_management as management
    import comfy.samplers

    positive, negative, latent = conditioned.one
    model, rows = counted(loaded.model)
    guider = call("StableVideoGuider", model=model, positive=positive, negative=negative)
    preview = part("nodes.bridge.preview").ProgressCallback(model, 8, FRAMES)

    def callback(step, x0, x, total):
        if step == 1:
            management.interrupt_current_processing()
        preview(step, x0, x, total)

    samples = latent["samples"]
    euler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode(), pytest.raises(management.InterruptProcessingException):
        guider.sample(seeded(samples.shape), samples, euler, edm_sigmas(8), callback=callback)
    assert sum(rows) == 2 * 2 * FRAMES
    assert not {"conds", "inner_model", "loaded_models"} & set(vars(guider))
    with torch.inference_mode():
        again = guider.sample(seeded(samples.shape), samples, euler, edm_sigmas(2))
    assert again.isfinite().all()


def test_cancel_acts_within_a_decode(call, loaded):
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        call("StableVideoDecode", latent={"samples": torch.zeros(3, 4, 8, 16)}, vae=loaded.vae)
