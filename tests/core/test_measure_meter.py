"""The motion meter on clips whose motion, flicker, drift and seam are known by construction."""

import json

import numpy as np
import pytest
from defaults import other_defaults
from moving import X, Y, clip, disc, pan, roll, texture, zoom

from svd_core.errors import InputError
from svd_core.measure import measure, plot_measured, seam
from svd_core.measure.meter import CURVES, FRAME_CURVES, PAIRS
from training.world import HELD_OUT_SEEDS, draw_scene


def readings(frames):
    return {each.name: each.value for each in measure(frames).readings}


def test_a_pan_is_the_cameras():
    found = readings(pan(1.5, -0.5))
    assert found["pan x"] == pytest.approx(1.5, abs=0.03)
    assert found["pan y"] == pytest.approx(-0.5, abs=0.03)
    assert found["camera"] == pytest.approx(np.hypot(1.5, 0.5), rel=0.03)
    assert found["motion"] == pytest.approx(found["camera"], rel=0.03)
    assert found["subject"] < 0.1
    assert abs(found["zoom"]) < 0.15
    assert abs(found["roll"]) < 0.05


def test_torchs_default_device_and_dtype_change_nothing():
    moving = clip(lambda t: texture(X - t, Y), 4)
    found = measure(moving, side=32).to_json()
    with other_defaults():
        again = measure(moving, side=32).to_json()
    assert found == again


@pytest.mark.parametrize("percent", [2.0, -1.5])
def test_a_zoom_is_the_cameras(percent):
    found = readings(zoom(percent))
    assert found["zoom"] == pytest.approx(percent, abs=0.1)
    assert abs(found["pan x"]) < 0.02
    assert found["camera"] > 5 * found["subject"]


@pytest.mark.parametrize("degrees", [1.0, -0.7])
def test_a_roll_is_the_cameras(degrees):
    found = readings(roll(degrees))
    assert found["roll"] == pytest.approx(degrees, abs=0.05)
    assert abs(found["zoom"]) < 0.1
    assert found["camera"] > 5 * found["subject"]


def test_a_thing_that_moves_on_still_ground_is_the_subject():
    found = readings(disc(2.0))
    assert found["camera"] < 0.02
    assert found["subject"] == pytest.approx(2.0 * np.pi * 12**2 / (64 * 128), rel=0.4), "speed by share of the picture"


def test_a_thing_that_moves_against_a_pan_is_told_from_it():
    found = readings(disc(-2.0, 1.0))
    assert found["pan x"] == pytest.approx(1.0, abs=0.03)
    assert found["subject"] == pytest.approx(3.0 * np.pi * 12**2 / (64 * 128), rel=0.7)


def test_a_thing_before_an_empty_sky_does_not_become_the_camera():
    still = clip(lambda t: np.where(np.hypot(X - 40 - 2 * t, Y - 32) < 9, texture(X - 2 * t, Y), 0.5))
    found = readings(still)
    assert found["camera"] < found["subject"]


@pytest.mark.parametrize(("kind", "camera"), [("pan", True), ("zoom", True), ("rocket", False), ("cart", False)])
def test_drawn_scenes_are_told_apart(kind, camera):
    found = readings(draw_scene(HELD_OUT_SEEDS[7001], kind=kind, frames=4).frames)
    assert (found["camera"] > found["subject"]) is camera


def test_distances_are_in_pixels_of_the_given_frames():
    large = np.repeat(np.repeat(pan(1.0), 4, axis=1), 4, axis=2)
    found = {each.name: each.value for each in measure(large, side=128).readings}
    assert found["pan x"] == pytest.approx(4.0, abs=0.1)
    assert found["camera"] == pytest.approx(4.0, abs=0.1)
    assert found["roll"] == pytest.approx(0, abs=0.05)


# Flicker, drift, sharpness, seam


@pytest.mark.parametrize("change", [lambda t: 0.02 * (-1) ** t, lambda t: 0.01 * t])
def test_brightness_that_changes_is_flicker_and_no_motion(change):
    step = 100 * abs(change(1) - change(0))
    found = readings(clip(lambda t: texture(X, Y) + change(t)))
    assert found["flicker"] == pytest.approx(step, rel=0.02)
    assert found["motion"] < 0.01


def test_motion_alone_is_hardly_flicker():
    assert readings(pan(1.5, 0.5))["flicker"] < 0.15
    assert readings(disc(2.0))["flicker"] < 0.15


def test_a_flickering_lamp_is_seen_beside_a_steady_one():
    lamp = clip(lambda t: texture(X - t, Y) + 0.04 * (t % 2) * (X > 64))
    assert 1 < readings(lamp)["flicker"] < 4.5


def test_drift_is_the_worst_colour_statistic_against_the_first_frame():
    frames = pan(0.0, frames=3)
    frames[1, ..., 2] += 0.05
    frames[2, ..., 0] -= 0.08
    np.testing.assert_allclose(measure(frames).drift, [0, 5, 8], atol=0.01)
    assert readings(frames)["drift"] == pytest.approx(8, abs=0.01)


def test_a_change_of_contrast_is_drift_too():
    mean = texture(X, Y).mean()
    frames = clip(lambda t: mean + (texture(X, Y) - mean) * (1 - 0.2 * t), frames=2)
    assert measure(frames).drift[1] == pytest.approx(20 * texture(X, Y).std(), rel=0.01)


def test_sharpness_is_against_the_first_frame():
    frames = clip(lambda t: 0.5 + (texture(X, Y) - 0.5) / (1 + t), frames=3)
    np.testing.assert_allclose(measure(frames).sharpness, [1, 1 / 2, 1 / 3], rtol=0.01)


def test_seam_of_a_loop_of_a_jump_and_of_a_still():
    loop = clip(lambda t: texture(X + 4 * np.cos(t * np.pi / 4), Y + 4 * np.sin(t * np.pi / 4)), frames=8)
    assert seam(loop) == pytest.approx(1, abs=0.05)
    assert seam(pan(1.0, frames=5)) > 2
    assert seam(pan(0.0)) == 0
    assert seam(np.concatenate([loop, loop[:1]])) == 0


# Any length, any content


def test_long_clips_are_measured_in_parts_with_the_same_result():
    frames = pan(1.0, 0.2, frames=PAIRS + 3)
    whole, part = measure(frames), measure(frames[PAIRS - 2 : PAIRS + 2])
    np.testing.assert_allclose(whole.pan_x[PAIRS - 2 : PAIRS + 1], part.pan_x, atol=2e-3)
    assert {name: len(getattr(whole, name)) for name in CURVES} == {
        name: PAIRS + 2 + (name in FRAME_CURVES) for name in CURVES
    }


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_flat_clip_has_nothing_to_report_and_no_nan(level):
    found = readings(np.full((3, 16, 24, 3), level, np.float32))
    assert set(found.values()) == {0.0}


def test_noise_gives_finite_numbers():
    noise = np.random.default_rng(0).random((5, 32, 48, 3)).astype(np.float32)
    assert np.isfinite(list(readings(noise).values())).all()


def test_the_given_frames_are_left_as_they_were():
    frames = disc(2.0)
    before = frames.copy()
    measure(frames)
    assert np.array_equal(frames, before)


def test_the_report_and_the_json_say_the_same():
    measured = measure(pan(1.5, -0.5))
    told = json.loads(measured.to_json())
    report = measured.report()
    assert report.splitlines()[0] == "4 frames"
    for each in measured.readings:
        assert told["numbers"][each.name] == {"value": round(each.value, 5), "unit": each.unit}
        [line] = [line for line in report.splitlines() if line.startswith(f"{each.name:10} ")]
        assert each.unit in line
        assert f"{each.value:.2f}".replace("-0.00", "0.00") in line
    assert len(told["curves"]["motion"]) == 3
    assert len(told["curves"]["drift"]) == 4


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), "at least 2 frames"),
        (np.zeros((3, 64, 64, 3), np.uint8), r"frames are of uint8: needed floats in \[0, 1\], divide bytes by 255"),
        (np.zeros((3, 8, 64, 3), np.float32), "frames are 64x8: needed at least 16 pixels a side"),
        (np.full((3, 16, 16, 3), np.nan, np.float32), r"frames \[0, 1, 2\] hold NaN or infinity"),
    ],
)
def test_what_cannot_be_measured_is_refused(frames, message):
    for measurement in (measure, seam):
        with pytest.raises(InputError, match=message):
            measurement(frames)


# The plot


def test_the_plot_draws_every_curve_and_stays_within_its_panels():
    steady, restless = (plot_measured(measure(frames)) for frames in (pan(0.0), disc(2.0, 1.0)))
    assert steady.shape == restless.shape == (640, 1024, 3)
    assert steady.dtype == np.float32
    assert 0 <= steady.min() <= steady.max() <= 1
    for row, column in ((0, 0), (0, 1), (1, 0)):
        box = np.s_[96 + 272 * row : 96 + 272 * (row + 1), 512 * column : 512 * (column + 1)]
        assert not np.array_equal(steady[box], restless[box]), "the curve does not follow the clip"
    for edge in (restless[:, :4], restless[:, -4:], restless[:4], restless[-4:]):
        assert np.ptp(edge, axis=(0, 1)).max() == 0, "something is cut off at the border"


def test_the_plot_of_two_frames_is_a_level_line():
    plot = plot_measured(measure(pan(1.0, frames=2)))
    assert np.isfinite(plot).all()
