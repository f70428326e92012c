"""The whole way from a picture to frames: against diffusers' pipeline, and the properties that people rely on."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from defaults import other_defaults
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from PIL import Image
from synthetic import TINY, TINY_IMAGE_DECODER, write_checkpoint, write_diffusers_folder
from transformers import CLIPImageProcessor
from weights import relative

import svd_core
from svd_core import device_memory
from svd_core.errors import InputError, PrecisionWarning
from svd_core.loading import known_device
from svd_core.sampling import align_your_steps_sigmas, sample_euler, sigmas_from_list
from svd_core.settings import Settings

# diffusers' scheduler converts tensors the way NumPy 1 did.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

FRAMES, STEPS, WIDTH, HEIGHT = 3, 6, 128, 64
CONFIG = dataclasses.replace(TINY, clip_vision=dataclasses.replace(TINY.clip_vision, image_size=224))


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A diffusers folder of small random modules, and those modules."""
    path = tmp_path_factory.mktemp("diffusers")
    return path, write_diffusers_folder(path, CONFIG)


@pytest.fixture(scope="module")
def svd(folder):
    return svd_core.load_checkpoint(folder[0])


@pytest.fixture(scope="module")
def temporal(tmp_path_factory):
    return svd_core.load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("single") / "tiny.safetensors"))


@pytest.fixture(scope="module")
def theirs(folder):
    """diffusers' pipeline as it is released for SVD, with the reference's GroupNorm eps in the UNet (spec 1.6)."""
    modules = folder[1]
    for name, module in modules["unet"].named_modules():
        if isinstance(module, torch.nn.GroupNorm) and "res_block" in name:
            module.eps = 1e-5
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        steps_offset=1,
    )
    feature_extractor = CLIPImageProcessor(crop_size=224, size=224)
    pipeline = StableVideoDiffusionPipeline(
        modules["vae"], modules["image_encoder"], modules["unet"], scheduler, feature_extractor
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_diffusers(pipeline, picture, output_type, seed=5):
    return pipeline(
        picture,
        HEIGHT,
        WIDTH,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        min_guidance_scale=1.0,
        max_guidance_scale=2.0,
        fps=9,
        motion_bucket_id=80,
        noise_aug_strength=0.1,
        generator=torch.Generator().manual_seed(seed),
        output_type=output_type,
    ).frames[0]


def run_ours(svd, picture, seed=5, **more):
    settings = svd_core.Settings(
        frames=FRAMES,
        steps=STEPS,
        width=WIDTH,
        height=HEIGHT,
        fps=9,
        motion_bucket=80,
        augmentation=0.1,
        min_guidance=1.0,
        max_guidance=2.0,
        seed=seed,
    )
    return svd.render(picture, dataclasses.replace(settings, **more))


def test_six_steps_from_the_same_seed_equal_diffusers(svd, theirs, picture):
    """Picture, augmentation noise, CLIP, encoder, six guided Euler steps: one number at the end of all of it."""
    ours = run_ours(svd, picture).latents
    assert relative(ours, run_diffusers(theirs, picture, "latent")) < 1e-4


def test_frames_equal_diffusers_when_it_decodes_the_clip_whole(svd, theirs, picture):
    expected = run_diffusers(theirs, picture, "np")
    assert np.abs(run_ours(svd, picture).frames - expected).max() < 1e-3


def test_the_same_seed_repeats_and_another_does_not(temporal, picture):
    first, again, other = (run_ours(temporal, picture, seed).latents for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert relative(other, first) > 0.1


def test_the_global_generator_is_left_alone(temporal, picture):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run_ours(temporal, picture, sampler="euler_ancestral")
    assert torch.equal(torch.get_rng_state(), before)


def test_joint_and_split_guidance_agree(temporal, picture):
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    cond = temporal.condition(pixels, seed=4)
    noise = torch.randn(FRAMES, 4, HEIGHT // 8, WIDTH // 8)
    sigmas, guidance = svd_core.edm_sigmas(3), svd_core.linear_guidance(FRAMES, 1.0, 3.0)
    joint, split = (temporal.sample(noise, cond, sigmas, guidance, joint=joint) for joint in (True, False))
    assert relative(split, joint) < 1e-4


def test_two_stills_give_the_clips_they_would_give_alone(temporal):
    pixels = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    pixel_noise = torch.randn(2, 3, HEIGHT, WIDTH)
    noise = torch.randn(2 * FRAMES, 4, HEIGHT // 8, WIDTH // 8)
    sigmas, guidance = svd_core.edm_sigmas(2), svd_core.linear_guidance(FRAMES, 1.0, 3.0)
    both = temporal.sample(noise, temporal.condition(pixels, noise=pixel_noise), sigmas, guidance)
    alone = [
        temporal.sample(
            noise[index * FRAMES : (index + 1) * FRAMES],
            temporal.condition(pixels[index : index + 1], noise=pixel_noise[index : index + 1]),
            sigmas,
            guidance,
        )
        for index in range(2)
    ]
    assert relative(torch.cat(alone), both) < 1e-4


def test_guidance_of_one_throughout_skips_the_unconditional_pass(temporal, picture, monkeypatch):
    seen = []
    forward = type(temporal.unet).forward
    monkeypatch.setattr(type(temporal.unet), "forward", lambda *a, **k: seen.append(a[1].shape[0]) or forward(*a, **k))
    run_ours(temporal, picture, min_guidance=1.0, max_guidance=1.0)
    assert seen == [FRAMES] * STEPS
    seen.clear()
    run_ours(temporal, picture)
    assert seen == [2 * FRAMES] * STEPS


@pytest.mark.parametrize("memory", [{"chunk": 1}, {"chunk": 2}, {"budget": 2**26}, {"budget": 2**34}])
def test_memory_changes_no_bit_of_the_frames(temporal, picture, memory):
    latents = run_ours(temporal, picture).latents
    assert np.array_equal(temporal.decode_latents(latents), temporal.decode_latents(latents, **memory))


def test_the_image_decoder_decodes_each_frame_alone(tmp_path, picture):
    svd = svd_core.load_checkpoint(write_checkpoint(tmp_path / "image.safetensors", TINY_IMAGE_DECODER))
    latents = run_ours(svd, picture).latents
    alone = np.concatenate([svd.decode_latents(latents[index : index + 1]) for index in range(FRAMES)])
    np.testing.assert_allclose(svd.decode_latents(latents), alone, atol=1e-5)


def test_bfloat16_keeps_the_sampler_in_float32(tmp_path, picture):
    svd = svd_core.load_checkpoint(write_checkpoint(tmp_path / "tiny.safetensors"), dtype=torch.bfloat16)
    clip = run_ours(svd, picture)
    assert clip.latents.dtype == torch.float32
    assert clip.frames.dtype == np.float32
    assert not torch.equal(clip.latents.bfloat16().float(), clip.latents)


def test_every_sampler_and_schedule_ends_in_finite_frames(temporal, picture):
    for sampler in ("euler", "heun", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "lcm"):
        for schedule in ("edm", "align_your_steps"):
            frames = run_ours(temporal, picture, steps=3, sampler=sampler, schedule=schedule).frames
            assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
            assert np.isfinite(frames).all()


def test_progress_names_each_stage_in_order(temporal, picture):
    seen = []
    temporal.animate(picture, frames=2, steps=2, width=64, height=64, callback=seen.append)
    assert [(p.stage, p.index, p.total) for p in seen] == [
        ("condition", 0, 1),
        ("condition", 1, 1),
        ("sample", 0, 2),
        ("sample", 1, 2),
        ("sample", 2, 2),
        ("decode", 0, 1),
        ("decode", 1, 1),
    ]


def test_defaults_come_from_the_variant(temporal, picture):
    clip = temporal.render(picture, svd_core.Settings(width=64, height=64))
    assert (clip.settings.frames, clip.settings.steps) == (TINY.variant.frames, TINY.variant.steps)
    assert clip.sigmas == tuple(svd_core.edm_sigmas(TINY.variant.steps).tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "frames 0 is outside 1 to 1024"),
        ({"frames": 100_000}, "frames 100000 is outside 1 to 1024"),
        ({"steps": -1}, "steps -1 is outside 1 to 1000"),
        ({"frames": 2.5}, "frames 2.5 is not a whole number: 14 for SVD, 25 for SVD-XT"),
        ({"frames": "3"}, "frames '3' is not a whole number"),
        ({"steps": 1.5}, "steps 1.5 is not a whole number: 25 is usual"),
        ({"width": 64.0}, "width 64.0 is not a whole number"),
        ({"seed": None}, "seed None is not a whole number: give a whole number that is not negative"),
        ({"seed": 1.5}, "seed 1.5 is not a whole number"),
        ({"frames": True}, "frames True is not a whole number"),
        ({"fps": 7.5}, "fps 7.5 is not a whole number: 7 is usual"),
        ({"motion_bucket": None}, "motion_bucket None is not a whole number: 127 is usual"),
        ({"augmentation": None}, "augmentation None is not a number"),
        ({"reuse": None}, "reuse None is not a number"),
        ({"min_guidance": "1"}, "min_guidance '1' is not a number"),
        ({"sigmas": 5}, "sigmas 5 is no list: give several numbers"),
        ({"sigmas": [700.0, "a"]}, "sigmas 'a' is not a number"),
        ({"guidance_points": [0, 1]}, "guidance_points 0 is no list"),
        ({"guidance_points": [(0, 1, 2)]}, "guidance_points .* give pairs of a position"),
        ({"guidance_interval": (1,)}, "guidance_interval .*: give two noise levels"),
        ({"guidance_interval": 5}, "guidance_interval 5 is no list"),
        ({"background": None}, "background None is no list"),
        ({"background": "#fff"}, "background '#' is not a whole number"),
        ({"background": (0, 0, 256)}, "background .* is no colour: give red, green and blue"),
        ({"fps": 0}, "fps 0 is outside 1 to 1024"),
        ({"sampler": "magic"}, "sampler 'magic' is not known"),
        ({"fit": "squeeze"}, "fit 'squeeze' is not known"),
        ({"schedule": "soon"}, "schedule 'soon' is not known"),
        ({"seed": -1}, "seed -1 is outside 0"),
        ({"sampler": "dpmpp_2m", "churn": 1.0}, "churn 1.0 with sampler dpmpp_2m, which has none"),
        ({"sigmas": (1.0, 2.0)}, "sigma"),
    ],
)
def test_settings_out_of_range_are_named_before_any_work(temporal, picture, settings, message, monkeypatch):
    monkeypatch.setattr(type(temporal.unet), "forward", lambda *_: pytest.fail("the network ran"))
    monkeypatch.setattr(type(temporal.vae), "encode", lambda *_: pytest.fail("the encoder ran"))
    with pytest.raises(InputError, match=message):
        temporal.animate(picture, **{"width": 64, "height": 64} | settings)


@pytest.mark.parametrize(
    ("memory", "message"),
    [({"budget": 1000}, "a budget of 1000 bytes cannot hold the decode"), ({"chunk": -1}, "chunk")],
)
def test_a_decode_that_cannot_run_is_refused_before_any_work(temporal, picture, memory, message, monkeypatch):
    monkeypatch.setattr(type(temporal.vae), "encode", lambda *_, **__: pytest.fail("the encoder ran"))
    settings = Settings(frames=4, steps=1, width=64, height=64)
    with pytest.raises(InputError, match=message):
        temporal.render(picture, settings, **memory)
    with pytest.raises(InputError, match=message):
        temporal.render(picture, settings, svd_core.Controls(loop=True), **memory)


def test_what_is_free_of_the_hosts_memory_says_what_a_decode_keeps(temporal, picture, monkeypatch):
    latents, kept = run_ours(temporal, picture).latents, []
    decode, plan = type(temporal.vae).decode, temporal.vae.decode_plan

    def decoded(vae, *args, chunk, budget, **more):
        kept.append((chunk, budget))
        return decode(vae, *args, chunk=chunk, budget=budget, **more)

    monkeypatch.setattr(type(temporal.vae), "decode", decoded)
    frames = []
    for free in (None, 2**40, 1):
        monkeypatch.setattr(device_memory, "free_host_bytes", lambda free=free: free)
        frames.append(temporal.decode_latents(latents))
    least = temporal.vae.least_plan(latents.shape, FRAMES, temporal.device).device_bytes
    fits = plan(latents.shape, FRAMES, temporal.device, budget=least).keep
    assert kept == [(None, None), (FRAMES, None), (fits, None)]
    assert np.array_equal(frames[0], frames[1]) and np.array_equal(frames[0], frames[2])


def test_little_free_memory_is_no_reason_to_refuse_what_is_decoded_again_in_float32(tmp_path, picture, monkeypatch):
    svd = svd_core.load_checkpoint(write_checkpoint(tmp_path / "tiny.safetensors"), dtype=torch.float16)
    with torch.no_grad():
        svd.vae.decoder.up[0].block[0].conv2.bias.fill_(6e4)
        svd.vae.decoder.up[0].block[1].conv2.bias.fill_(6e4)
    monkeypatch.setattr(device_memory, "free_host_bytes", lambda: 1)
    latents = torch.randn(FRAMES, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    with pytest.warns(PrecisionWarning, match="overflowed float16"):
        frames = svd.decode_latents(latents)
    assert np.isfinite(frames).all()


@pytest.mark.parametrize("kind", [np.int64, torch.tensor])
def test_whole_numbers_of_other_libraries_are_whole(temporal, picture, kind):
    ours = temporal.animate(picture, frames=2, steps=1, width=64, height=64, seed=3)
    theirs = temporal.animate(picture, frames=kind(2), steps=kind(1), width=64, height=64, seed=kind(3))
    assert np.array_equal(theirs, ours)


SMALL_CLIP = {
    "noise": torch.zeros(2, 4, 4, 6),
    "sigmas": torch.tensor([700.0, 1.0, 0.0]),
    "guidance": torch.full((2,), 2.0),
}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance": torch.tensor(1.5)}, r"guidance of shape \(\) is not \(T,\): give one weight a frame"),
        ({"guidance": 1.5}, r"guidance of class float is not \(T,\)"),
        (
            {"noise": torch.zeros(2, 4, 4, 5)},
            r"shape \(2, 4, 4, 5\) for a still whose latent is \(1, 4, 4, 6\): give \(N, 4, 4, 6\)",
        ),
        ({"noise": torch.zeros(2, 4, 4)}, r"shape \(2, 4, 4\) for a still"),
        ({"noise": torch.zeros(2, 8, 4, 6)}, r"shape \(2, 8, 4, 6\) for a still"),
        ({"sigmas": torch.tensor([1.0, 2.0, 0.0])}, "sigma 2 after 1: give finite falling numbers"),
        ({"sigmas": torch.tensor([2.0, torch.nan, 0.0])}, "sigma nan after 2"),
        ({"sigmas": torch.tensor([2.0, -1.0])}, "sigma -1 after 2"),
        ({"sigmas": torch.tensor([2.0, 0.0, 0.0])}, "sigma 0 after 0"),
        ({"sigmas": torch.tensor([])}, r"sigmas of shape \(0,\)"),
        ({"seed": 1.5}, "seed 1.5 is not a whole number"),
    ],
)
def test_tensors_that_cannot_be_sampled_are_refused_before_the_network_runs(temporal, given, message, monkeypatch):
    cond = temporal.condition(torch.zeros(1, 3, 32, 48))
    monkeypatch.setattr(type(temporal.unet), "forward", lambda *_: pytest.fail("the network ran"))
    with pytest.raises(InputError, match=message):
        temporal.sample(cond=cond, **SMALL_CLIP | given)


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "lcm"])
def test_a_part_of_a_schedule_is_sampled_from_where_it_starts_to_where_it_ends(temporal, sampler):
    cond = temporal.condition(torch.zeros(1, 3, 32, 48))
    given = SMALL_CLIP | {"sigmas": torch.tensor([50.0, 5.0, 0.5])}
    assert temporal.sample(cond=cond, sampler=sampler, **given).isfinite().all()


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "lcm"])
def test_a_level_that_repeats_is_a_step_of_no_length(temporal, sampler):
    cond = temporal.condition(torch.zeros(1, 3, 32, 48))
    given = SMALL_CLIP | {"sigmas": torch.tensor([50.0, 5.0, 5.0, 0.5, 0.0])}
    clip = temporal.sample(cond=cond, sampler=sampler, **given)
    assert clip.isfinite().all()
    if sampler in ("euler", "heun"):
        once = temporal.sample(cond=cond, sampler=sampler, **given | {"sigmas": torch.tensor([50.0, 5.0, 0.5, 0.0])})
        torch.testing.assert_close(clip, once)


def test_a_function_may_walk_back(temporal):
    cond = temporal.condition(torch.zeros(1, 3, 32, 48))
    rising = {"sigmas": torch.tensor([0.5, 5.0, 50.0]), "guidance": torch.ones(2)}
    assert temporal.sample_from(torch.zeros(2, 4, 4, 6), cond, **rising, sampler=sample_euler).isfinite().all()
    with pytest.raises(InputError, match=r"sigma 5 after 0\.5"):
        temporal.sample_from(torch.zeros(2, 4, 4, 6), cond, **rising, sampler="euler")


def test_devices_that_cannot_be_counted_are_tried():
    assert known_device(torch.device("cpu", 0)) == torch.device("cpu", 0)
    for absent in ("xla", "privateuseone:0", "meta", "cuda:99"):
        with pytest.raises(InputError, match=f"device '{absent}' is not on this machine"):
            known_device(absent)


def test_a_sampler_that_makes_its_own_noise_is_not_told_of_any(temporal):
    """As k-diffusion's: neither `noise_sampler` nor anything in place of it."""

    def jump(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return model(x, sigmas[0])

    def told(model, x, sigmas, **more):
        assert more["noise_sampler"](sigmas[0], sigmas[1]).shape == x.shape
        return jump(model, x, sigmas)

    cond = temporal.condition(torch.zeros(1, 3, 32, 48))
    clips = [temporal.sample(cond=cond, sampler=sampler, **SMALL_CLIP) for sampler in (jump, told)]
    assert torch.equal(*clips)


def test_latents_that_are_not_finite_are_named(temporal):
    latents = torch.zeros(4, 4, 8, 8)
    latents[2, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"frames \[2\]"):
        temporal.decode_latents(latents)


def test_what_is_returned_may_be_changed_in_place_and_trained_on(temporal):
    pixels, noise = torch.zeros(1, 3, 64, 64), torch.zeros(2, 4, 8, 8)
    cond = temporal.condition(pixels)
    latents = temporal.sample(noise, cond, svd_core.edm_sigmas(1), torch.ones(2))
    latents /= 2
    weight = torch.ones(1, requires_grad=True)
    (cond.context.sum() * weight * cond.first.sum()).backward()
    assert not any(tensor.is_inference() for tensor in (latents, cond.context, cond.first, cond.vector))


def test_torchs_default_device_and_dtype_change_nothing(temporal, picture):
    frames = run_ours(temporal, picture).frames
    with other_defaults():
        again = run_ours(temporal, picture).frames
        schedules = [*map(svd_core.edm_sigmas, (1, 2)), align_your_steps_sigmas(3), sigmas_from_list([2, 1])]
    assert np.array_equal(frames, again)
    assert {(each.dtype, each.device.type) for each in schedules} == {(torch.float32, "cpu")}


def test_a_model_can_be_copied(temporal):
    copied = copy.deepcopy(temporal)
    assert copied.unet is not temporal.unet and copied.unet.backend is temporal.unet.backend


def test_numbers_that_are_not_finite_are_refused_before_a_network_runs(temporal):
    pixels, nan = torch.zeros(1, 3, 64, 64), float("nan")
    cond, sigmas, noise = temporal.condition(pixels), svd_core.edm_sigmas(1), torch.zeros(2, 4, 8, 8)
    for call, name in (
        (lambda: temporal.condition(pixels * nan), "pixels"),
        (lambda: temporal.condition(pixels, noise=pixels * nan), "noise"),
        (lambda: temporal.sample(noise * nan, cond, sigmas, torch.ones(2)), "the noise or latents"),
        (lambda: temporal.sample(noise, cond, sigmas, torch.tensor([1, nan])), "guidance"),
    ):
        with pytest.raises(svd_core.InputError, match=f"NaN or infinity in {name}"):
            call()
    with pytest.raises(svd_core.InputError, match="pixels of class ndarray"):
        temporal.condition(pixels.numpy())


@pytest.mark.parametrize("path", [None, b"x.safetensors", ""])
def test_what_is_no_path_is_refused_in_a_line(path):
    with pytest.raises(svd_core.CheckpointError, match="is not a path"):
        svd_core.load_checkpoint(path)
