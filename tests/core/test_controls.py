"""Controls in the whole way from a picture to frames, on a model of random weights."""

import dataclasses

import numpy as np
import pytest
import torch
from defaults import other_defaults
from PIL import ExifTags, Image
from synthetic import write_checkpoint

import svd_core
from benchmarks.controls import colour_drift, spread
from svd_core import Controls
from svd_core.errors import InputError
from svd_core.motion import CameraMove
from svd_core.settings import Settings
from svd_core.shot import Shot

FRAMES, STEPS, WIDTH, HEIGHT = 4, 2, 128, 64
GIVEN = Settings(frames=FRAMES, width=WIDTH, height=HEIGHT)


@pytest.fixture(scope="module")
def svd(tmp_path_factory):
    return svd_core.load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors"))


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).random((2, HEIGHT, WIDTH, 3), np.float32)


@pytest.fixture
def render(svd, pictures):
    """The clip, and the frames of each pass through the network: one pass holds both branches of guidance."""

    def run(settings=GIVEN, callback=None, image=None, **controls):
        rows = []
        with torch.inference_mode():
            hook = svd.unet.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
        try:
            still = pictures[0] if image is None else image
            return svd.render(still, settings, Controls(**controls), callback=callback), rows
        finally:
            hook.remove()

    return run


def test_without_controls_it_is_the_stages_in_order_to_the_bit(svd, render, pictures):
    clip, rows = render()
    assert rows == [2 * FRAMES] * STEPS
    generator = torch.Generator().manual_seed(GIVEN.seed)
    pixels = torch.from_numpy(pictures[0]).permute(2, 0, 1)[None] * 2 - 1
    on_still = torch.randn(pixels.shape, generator=generator)
    noise = torch.randn(FRAMES, 4, HEIGHT // 8, WIDTH // 8, generator=generator)
    guidance = svd_core.linear_guidance(FRAMES, clip.settings.min_guidance, clip.settings.max_guidance)
    latents = svd.sample(noise, svd.condition(pixels, noise=on_still), svd_core.edm_sigmas(STEPS), guidance)
    assert torch.equal(clip.latents, latents)
    assert (clip.frames == svd.decode_latents(latents)).all()


def half(count=None):
    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    mask[:, WIDTH // 2 :] = 1
    return mask if count is None else np.stack([mask] * count)


def test_still_pixels_are_the_fitted_pictures(render, pictures):
    clip, rows = render(brush=half(FRAMES))
    assert (clip.frames[:, :, : WIDTH // 2] == pictures[0][:, : WIDTH // 2]).all()
    assert (clip.frames[:, :, WIDTH // 2 :] != pictures[0][:, WIDTH // 2 :]).mean() > 0.9
    assert rows == [2 * FRAMES] * STEPS


@pytest.mark.parametrize("sequential", [False, True])
def test_bounded_clips_take_two_model_calls_for_one(render, pictures, sequential):
    between, rows = render(end=pictures[1], sequential=sequential)
    assert between.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert rows == [2 * FRAMES] * 2 * STEPS
    loop, rows = render(loop=True, sequential=sequential)
    assert loop.frames.shape == (FRAMES - 1, HEIGHT, WIDTH, 3)
    assert len(loop.latents) == FRAMES - 1
    assert rows == [2 * FRAMES] * 2 * STEPS


def test_a_long_take_calls_the_model_once_for_each_window(render):
    nine, six = (dataclasses.replace(GIVEN, frames=frames) for frames in (9, 6))
    clip, rows = render(nine, window=4, fused=True, overlap=2)
    assert clip.frames.shape[0] == 9
    assert rows == [2 * 4] * 4 * STEPS
    clip, rows = render(nine, window=4)
    assert clip.frames.shape[0] == 9
    assert rows == [2 * 4] * 3 * STEPS  # from frames 0, 3 and 5
    own, rows = render(six, window=0)
    assert rows == [2 * 3] * 3 * STEPS  # this model's own three frames
    assert own.frames.shape[0] == 6


def test_a_long_take_of_one_window_is_the_clip_itself(render):
    one, _ = render(window=FRAMES, colour_hold=0.0)
    assert torch.equal(one.latents, render()[0].latents)


def test_a_long_take_says_every_step_of_every_window_and_ends_with_the_last(render):
    said = []
    render(dataclasses.replace(GIVEN, frames=9), callback=said.append, window=4)
    done = [progress.index for progress in said if progress.stage == "sample"]
    assert done == [0, 1, 1, 1, 2, 2, 2]


def test_a_brush_for_each_frame_holds_in_every_window(render, pictures):
    masks = half(9)
    masks[5] = 0
    clip, _ = render(dataclasses.replace(GIVEN, frames=9), window=4, brush=masks, feather=0)
    assert (clip.frames[:, :, : WIDTH // 2] == pictures[0][:, : WIDTH // 2]).all()
    assert (clip.frames[5] == pictures[0]).all()
    still = clip.latents[0, :, :, : WIDTH // 16]
    torch.testing.assert_close(clip.latents[..., : WIDTH // 16], still.expand(9, -1, -1, -1), rtol=1e-4, atol=1e-4)
    assert (clip.frames[[4, 6], :, WIDTH // 2 :] != pictures[0][:, WIDTH // 2 :]).mean() > 0.9


def test_an_existing_clip_is_continued(render, svd, pictures):
    clip = np.stack([pictures[0], pictures[1], pictures[0]])
    with torch.inference_mode():
        wanted = svd.vae.encode(torch.from_numpy(clip[1:]).movedim(-1, 1) * 2 - 1) * 0.18215
    given = {"settings": dataclasses.replace(GIVEN, frames=6), "window": 4, "continued": clip}
    fused, _ = render(**given, fused=True, overlap=2, image=pictures[1])
    torch.testing.assert_close(fused.latents[:2], wanted, rtol=1e-4, atol=1e-4)
    in_turns, _ = render(**given, image=pictures[0])
    torch.testing.assert_close(in_turns.latents[:1], wanted[1:], rtol=1e-4, atol=1e-4)


def test_unstick_and_curves_cost_nothing_and_change_the_clip(render):
    plain, rows = render()
    for controls in (
        {"unstick": 1.0},
        {"motion_bucket": [(0, 10), (1, 250)]},
        {"augmentation": [0.0, 0.1, 0.2, 0.3]},
        {"guidance": [1.0, 1.0, 1.0, 4.0]},
    ):
        clip, own = render(**controls)
        assert own == rows
        assert not np.allclose(clip.frames, plain.frames, atol=1e-4)
    assert render(unstick=1.0)[0].sigmas[0] == pytest.approx(50.0)
    assert render(unstick=1.0)[0].settings.motion_bucket == 255


def test_controls_go_together(render, pictures):
    clip, rows = render(brush=half(), loop=True, unstick=0.5, motion_bucket=[1, 2, 3, 4], sequential=True)
    assert (clip.frames[:, :, : WIDTH // 2] == pictures[0][:, : WIDTH // 2]).all()
    assert clip.frames.shape[0] == FRAMES - 1
    assert rows == [2 * FRAMES] * 2 * STEPS


@pytest.mark.parametrize(
    "controls",
    [
        {"end": np.full((HEIGHT, WIDTH, 3), 0.5, np.float32)},
        {"window": 3, "fused": True, "overlap": 1, "brush": half()},
        {"window": 3, "unstick": 1.0, "guidance": [(0, 1), (1, 3)]},
        {"camera": CameraMove(0.2, 0.1, 1.2, 5), "depth": half()},
    ],
)
def test_torchs_default_device_and_dtype_change_nothing(render, controls):
    clip, _ = render(**controls)
    with other_defaults():
        again, _ = render(**controls)
        one = render(dataclasses.replace(GIVEN, steps=1), unstick=1.0)[0].sigmas
    assert np.array_equal(clip.frames, again.frames)
    assert one == pytest.approx((50.0, 0.0))


@pytest.mark.parametrize(
    "controls", [{"brush": half()}, {"loop": True}, {"loop": True, "sequential": True}, {"window": 3}]
)
def test_cancelling_stops_within_the_step(render, controls):
    passes = []

    def cancel(progress):
        if progress.stage == "sample" and progress.index == 1:
            raise KeyboardInterrupt
        passes.append(progress)

    with pytest.raises(KeyboardInterrupt):
        render(dataclasses.replace(GIVEN, steps=8), callback=cancel, **controls)
    assert [progress.index for progress in passes if progress.stage == "sample"] == [0]


@pytest.mark.parametrize(
    ("frames", "controls", "message"),
    [
        (FRAMES, {"brush": np.ones((8, 8))}, "the mask is 8x8 and the clip 128x64"),
        (FRAMES, {"brush": half(3)}, "3 masks for 4 frames"),
        (FRAMES, {"end": np.zeros((64, 64, 3))}, "the end picture is 64x64 and the clip 128x64: fit it to the same"),
        (2, {"loop": True}, "a loop of 2 frames cannot leave the picture"),
        (FRAMES, {"window": 5}, "windows of 5 frames are longer than the clip of 4"),
        (FRAMES, {"window": 4, "overlap": 4, "fused": True}, "overlap must be at least 1 and shorter"),
        (FRAMES, {"window": 4, "overlap": 2}, "an overlap of 2 for windows in turns, which share one frame"),
        (FRAMES, {"loop": True, "end": np.zeros((64, 128, 3))}, "choose one of them"),
        (FRAMES, {"loop": True, "window": 3}, "leave out window, or loop and end"),
        (FRAMES, {"continued": np.zeros((2, 64, 128, 3))}, "a clip is continued in windows"),
        (FRAMES, {"fused": True}, "fused and overlap are about windows: give a window"),
        (FRAMES, {"overlap": 3}, "fused and overlap are about windows"),
        (FRAMES, {"window": 2.5}, "window 2.5 is not a whole number of 0 or more: give one"),
        (FRAMES, {"feather": 4.5}, "feather 4.5 is not a whole number of 0 or more"),
        (FRAMES, {"feather": -3}, "feather -3 is not a whole number of 0 or more"),
        (FRAMES, {"feather": 10**12}, "feather 1000000000000 is above 256 pixels"),
        (FRAMES, {"unstick": "0.5"}, "unstick '0.5' is not a number: give one from 0 to 1"),
        (FRAMES, {"window": 4, "overlap": -5}, "overlap -5 is not a whole number of 0 or more"),
        (FRAMES, {"sequential": True}, "sequential is a way to reach an end: give an end picture or loop"),
        (FRAMES, {"window": 4, "colour_hold": 5.0}, "colour hold 5.0 is outside 0 to 1"),
        (FRAMES, {"window": 4, "colour_hold": float("nan")}, "colour hold nan is outside 0 to 1"),
        (1, {"end": np.zeros((64, 128, 3))}, "a clip of 1 frame has no end beside its start"),
        (FRAMES, {"end": "x.png"}, r"the end picture cannot be taken: image is a str"),
        (
            FRAMES,
            {"window": 4, "continued": np.zeros((2, 64, 64, 3))},
            "a frame to go on from is 64x64 and the clip 128x64",
        ),
        (FRAMES, {"window": 4, "continued": np.zeros((64, 128, 3))}, r"has shape \(64, 128, 3\): give frames"),
        (FRAMES, {"window": 4, "continued": np.zeros((0, 64, 128, 3))}, r"has shape \(0, 64, 128, 3\): give frames"),
        (FRAMES, {"window": 4, "continued": [[1.0], [1.0, 2.0]]}, r"the clip to go on from is no array \(list\)"),
        (FRAMES, {"window": 4, "continued": np.full((2, 64, 128, 3), np.nan)}, "NaN"),
        (FRAMES, {"unstick": 2.0}, "un-stick strength 2.0 is outside 0 to 1"),
        (FRAMES, {"guidance": [1.0, 2.0]}, "2 values for 4 frames"),
        (FRAMES, {"motion_bucket": [1.0, 2.0]}, "2 values for 4 frames"),
        (
            FRAMES,
            {"motion_bucket": [(0, 0), (1, 5000)]},
            "the motion bucket curve goes from 0 to 5000: values must lie",
        ),
        (FRAMES, {"augmentation": [(0, 0), (1, 50)]}, "the augmentation curve goes from 0 to 50: values must lie"),
        (FRAMES, {"brush": "abc"}, r"the mask is no array \(str\): give one of NumPy"),
        (FRAMES, {"brush": [[1.0], [1.0, 0.5]]}, r"the mask is no array \(list\): give one of NumPy"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_network_runs(svd, pictures, monkeypatch, frames, controls, message):
    monkeypatch.setattr(type(svd.unet), "forward", lambda *_: pytest.fail("the network ran"))
    monkeypatch.setattr(type(svd.vae), "encode", lambda *_: pytest.fail("the autoencoder ran"))
    with pytest.raises(InputError, match=message) as caught:
        svd.render(pictures[0], dataclasses.replace(GIVEN, frames=frames), Controls(**controls))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"sampler": "heun"}, {"churn": 2.0}])
def test_an_end_in_turns_has_a_sampler_of_its_own(svd, pictures, settings):
    with pytest.raises(InputError, match=r"sequential takes Euler steps of its own, and sampler .* was asked for"):
        controls = Controls(loop=True, sequential=True)
        svd.render(pictures[0], dataclasses.replace(GIVEN, **settings), controls)


def test_a_clip_to_go_on_from_may_be_of_bytes(svd, render, pictures):
    """As files hold it."""
    clip = (np.stack([pictures[1]] * 2) * 255).round().astype(np.uint8)
    of_bytes, _ = render(window=FRAMES, continued=clip)
    of_floats, _ = render(window=FRAMES, continued=clip.astype(np.float32) / 255)
    assert torch.equal(of_bytes.latents, of_floats.latents)


# What the benchmark measures with


def test_spread_counts_equal_steps():
    assert spread(np.ones(13)) == pytest.approx(1.0)
    assert spread(np.eye(13)[0]) == pytest.approx(1 / 13)
    assert spread(np.repeat([1.0, 0.0], 4)) == pytest.approx(0.5)


def test_colour_drift_is_of_the_mean_in_parts_of_its_range():
    frames = np.full((3, 4, 4, 3), 0.5)
    frames[2, ..., 1] = 0.53
    assert colour_drift(frames) == pytest.approx(0.03)


def test_an_end_picture_is_measured_upright(render):
    lying = Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), np.uint8))
    lying.getexif()[ExifTags.Base.Orientation] = 6
    clip, _ = render(end=lying)
    assert clip.frames.shape[1:3] == (HEIGHT, WIDTH)


@pytest.mark.parametrize("controls", [{}, {"loop": True, "unstick": 0.5}, {"window": 2}])
def test_a_shot_renders_as_its_parts_do_and_is_left_as_it_was(svd, render, pictures, controls):
    shot = Shot.of(svd.config.variant, pictures[0], GIVEN, Controls(**controls))
    expected, _ = render(**controls)
    for made in (svd.render_shot(shot), svd.render_shot(shot, chunk=1, memory=2**34)):
        assert torch.equal(made.latents, expected.latents) and (made.frames == expected.frames).all()
        assert (made.settings, made.fit_report) == (expected.settings, expected.fit_report)
