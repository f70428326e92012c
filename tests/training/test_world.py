"""Scenes of the synthetic world are repeatable and legal, and move as they say, by the measure of their own tracker."""

import sys

import numpy as np
import pytest
from PIL import Image

from svd_core.errors import InputError
from svd_core.measure import flow_magnitude, optical_flow
from training.measure import angle_between, motion_direction, spearman
from training.world import (
    HELD_OUT_SEEDS,
    KINDS,
    STRIDE,
    TRAIN_SEEDS,
    camera,
    draw_scene,
    photographs,
    world_step,
)
from training.world.__main__ import main
from training.world.dice import Dice
from training.world.paint import Stage, box, convex, disc, inside
from training.world.sheet import contact_sheet
from training.world.view import look

BUCKETS = (16, 48, 80, 112, 144, 176, 208, 240)
MOVING_ALONG = ("rocket", "clouds", "cart", "pan")
"""Kinds whose mean flow is their direction (a ball also bounces back up)."""

kinds = pytest.mark.parametrize("kind", KINDS)


def held_out(place):
    return HELD_OUT_SEEDS[place]


@kinds
def test_the_same_seed_is_the_same_scene(kind):
    one, other = (draw_scene(11, kind=kind) for _ in range(2))
    np.testing.assert_array_equal(one.frames, other.frames)
    assert (one.direction, one.sense, one.speed) == (other.direction, other.sense, other.speed)


@kinds
def test_another_seed_is_another_scene(kind):
    assert np.abs(draw_scene(11, kind=kind).frames - draw_scene(12, kind=kind).frames).mean() > 0.01


def test_the_draws_are_those_of_every_platform():
    dice = Dice(7, 3)
    np.testing.assert_array_equal(dice.many(4) * 2**24, [16358348, 14840575, 3891818, 12268547])
    assert dice.index(1000) == 405


@kinds
@pytest.mark.parametrize("size", [(128, 64), (96, 96), (40, 72)])
def test_frames_are_legal(kind, size):
    scene = draw_scene(held_out(3), kind=kind, width=size[0], height=size[1], frames=5, motion_bucket=255, fps=3)
    assert scene.frames.shape == (5, size[1], size[0], 3)
    assert scene.frames.dtype == np.float32 and scene.frames.flags.c_contiguous
    assert scene.frames.min() >= 0 and scene.frames.max() <= 1
    assert scene.frames.std() > 0.02
    np.testing.assert_array_equal(scene.still, scene.frames[0])
    if scene.direction is not None:
        assert np.hypot(*scene.direction) == pytest.approx(1)


@kinds
def test_motion_bucket_0_stands_still(kind):
    scene = draw_scene(4, kind=kind, motion_bucket=0)
    np.testing.assert_array_equal(scene.frames, np.repeat(scene.frames[:1], 14, axis=0))
    assert scene.speed == 0


@kinds
def test_the_still_depends_on_neither_bucket_nor_fps_nor_length(kind):
    still = draw_scene(9, kind=kind).still
    for other in (draw_scene(9, kind=kind, motion_bucket=230, fps=4), draw_scene(9, kind=kind, frames=3)):
        np.testing.assert_allclose(other.still, still, atol=1e-6)


@kinds
def test_time_is_all_that_bucket_and_fps_change(kind):
    """Twice the bucket skips every other frame, and so does half the fps."""
    slow = draw_scene(6, kind=kind, frames=9, motion_bucket=60, fps=8)
    for fast in (draw_scene(6, kind=kind, frames=5, motion_bucket=120, fps=8),
                 draw_scene(6, kind=kind, frames=5, motion_bucket=60, fps=4)):  # fmt: skip
        np.testing.assert_allclose(fast.frames, slow.frames[::2], atol=0.02)


def test_the_worlds_clock():
    assert world_step(127, 7) == 1
    assert world_step(254, 7) == world_step(127, 3.5) == 2
    assert world_step(0, 7) == 0


@kinds
def test_measured_motion_ranks_as_the_motion_bucket(kind):
    clips = [draw_scene(21, kind=kind, motion_bucket=bucket, width=96, height=48).frames for bucket in BUCKETS]
    assert spearman(BUCKETS, [flow_magnitude(clip).mean() for clip in clips]) == pytest.approx(1)


@kinds
@pytest.mark.parametrize("seed", [31, 32])
def test_half_the_fps_moves_further_per_frame(kind, seed):
    fast, slow = (draw_scene(seed, kind=kind, fps=fps, frames=9, width=96, height=48) for fps in (12, 6))
    assert flow_magnitude(slow.frames).mean() > 1.3 * flow_magnitude(fast.frames).mean()
    if kind != "ball":  # it bounces at another time, so only the others go exactly twice as far
        assert slow.speed == pytest.approx(2 * fast.speed, rel=1e-5)


@pytest.mark.parametrize("place", range(20))
def test_a_rocket_is_seen_to_fly_where_it_points(place):
    scene = draw_scene(held_out(place), kind="rocket")
    assert angle_between(motion_direction(scene.frames), scene.direction) < 35


def test_rockets_point_everywhere():
    angles = [np.degrees(np.arctan2(*draw_scene(seed, kind="rocket", frames=1).direction)) for seed in range(60)]
    assert np.histogram(angles, bins=8, range=(-180, 180))[0].min() >= 2


@pytest.mark.parametrize("kind", MOVING_ALONG)
@pytest.mark.parametrize("seed", range(40, 42))
def test_things_go_along_their_direction(kind, seed):
    scene = draw_scene(seed, kind=kind, frames=7)
    assert angle_between(motion_direction(scene.frames), scene.direction) < 35


@pytest.mark.parametrize("seed", range(4))
def test_a_ball_first_falls(seed):
    scene = draw_scene(seed, kind="ball", frames=7)
    assert scene.direction == (0.0, 1.0)
    assert angle_between(motion_direction(scene.frames), scene.direction) < 20


@pytest.mark.parametrize("seed", range(6))
def test_a_wheel_turns_as_its_sense_says(seed):
    scene = draw_scene(seed, kind="wheel", frames=5)
    assert scene.direction is None
    assert np.sign(_moment(scene.frames, turned=True)) == scene.sense


@pytest.mark.parametrize("seed", range(6))
def test_a_zoom_in_spreads_the_picture(seed):
    scene = draw_scene(seed, kind="zoom", frames=5)
    assert scene.direction is None
    assert np.sign(_moment(scene.frames, turned=False)) == scene.sense


def _moment(frames, *, turned):
    """Mean product of the flow with the way out of the centre of all motion, or with the way around it, clockwise."""
    flow = optical_flow(frames).mean(axis=0)  # (H, W, 2)
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(float)
    weight = np.linalg.norm(flow, axis=-1)
    x, y = (axis - (axis * weight).sum() / weight.sum() for axis in (x, y))
    return (flow[..., 1] * x - flow[..., 0] * y if turned else flow[..., 0] * x + flow[..., 1] * y).mean()


@pytest.mark.parametrize("kind", ["rocket", "clouds", "cart", "pan"])
def test_speed_is_the_distance_per_frame(kind):
    scene = draw_scene(2, kind=kind, width=96, height=96, motion_bucket=200, fps=10)
    assert scene.speed == pytest.approx(STRIDE * 96 * world_step(200, 10), rel=1e-4)


def test_a_pan_moves_the_ground_by_its_speed():
    scene = draw_scene(2, kind="pan")
    flow = np.median(optical_flow(scene.frames), axis=(0, 1, 2))
    np.testing.assert_allclose(flow, scene.speed * np.array(scene.direction), atol=0.35)


def test_the_seed_chooses_among_all_kinds():
    assert {draw_scene(seed, frames=1, width=32, height=32).kind for seed in range(80)} == set(KINDS)


def test_the_kind_that_a_seed_chooses_is_drawn_as_if_asked_for():
    chosen = draw_scene(17)
    np.testing.assert_array_equal(chosen.frames, draw_scene(17, kind=chosen.kind).frames)


def test_held_out_seeds_and_photographs_are_never_trained_on():
    assert TRAIN_SEEDS.stop <= HELD_OUT_SEEDS.start
    assert not set(photographs.TRAIN_PHOTOGRAPHS) & set(photographs.HELD_OUT_PHOTOGRAPHS)


@pytest.mark.parametrize(
    ("seeds", "allowed"),
    [(TRAIN_SEEDS, photographs.TRAIN_PHOTOGRAPHS), (HELD_OUT_SEEDS, photographs.HELD_OUT_PHOTOGRAPHS)],
)
def test_scenes_use_only_the_photographs_of_their_side(monkeypatch, seeds, allowed):
    seen = set()
    monkeypatch.setattr(camera, "photograph", lambda name: seen.add(name) or photographs.photograph(name))
    for place in range(50):
        draw_scene(seeds[place], kind="zoom", frames=1, width=32, height=32)
    assert seen == set(allowed)


@pytest.mark.parametrize("name", [*photographs.TRAIN_PHOTOGRAPHS, *photographs.HELD_OUT_PHOTOGRAPHS])
def test_every_photograph_comes_with_scikit_image(name):
    picture = photographs.photograph(name)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3
    assert min(picture.shape[:2]) >= 256


def test_without_scikit_image_the_error_says_what_to_install(monkeypatch):
    photographs.photograph.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(InputError, match="pip install scikit-image"):
        photographs.photograph("coffee")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seed": -1}, "seed -1"),
        ({"seed": HELD_OUT_SEEDS.stop}, "no scene"),
        ({"frames": 0}, "0 frames"),
        ({"width": 8}, "8 x 64"),
        ({"fps": 0}, "fps 0"),
        ({"fps": float("nan")}, "fps nan"),
        ({"motion_bucket": -3}, "motion_bucket -3"),
        ({"kind": "boat"}, "'boat' is unknown"),
    ],
)
def test_settings_that_make_no_scene_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        draw_scene(**{"seed": 1, **settings})


# What scenes are drawn with


def test_a_disc_covers_its_area_wherever_it_lies():
    stage = Stage.of(32, 32, np.zeros(1))
    for shift in (0.0, 0.3, 0.77):
        cover = inside(disc(stage.x - 16 - shift, stage.y - 15.5, 6.0))
        assert cover.sum() == pytest.approx(np.pi * 36, rel=0.01)
        assert (cover * stage.x).sum() / cover.sum() == pytest.approx(16 + shift, abs=0.02)


def test_a_polygon_and_a_box_agree_inside():
    stage = Stage.of(24, 24, np.zeros(1))
    x, y = stage.x - 12, stage.y - 12
    square = convex(x, y, ((-6, -4), (6, -4), (6, 4), (-6, 4)))
    np.testing.assert_allclose(inside(square), inside(box(x, y, 6, 4)), atol=0.13)  # a corner's pixel differs
    assert inside(square).sum() == pytest.approx(96, rel=0.01)


def test_a_window_beyond_the_edge_sees_the_mirror_image():
    ramp = np.tile(np.arange(20, dtype=np.float32), (20, 1))
    seen = look(ramp, np.array([[-8.0, 0, 0, 8], [20, 0, 28, 8]]), 8, 8)
    np.testing.assert_allclose(seen[0, 0], np.arange(7, -1, -1), atol=1e-4)
    np.testing.assert_allclose(seen[1, 0], np.arange(19, 11, -1), atol=1e-4)


def test_a_window_moves_by_fractions_of_a_pixel():
    ramp = np.tile(np.arange(40, dtype=np.float32), (12, 1))
    seen = look(ramp, np.array([[10.0, 0, 18, 8], [10.25, 0, 18.25, 8]]), 8, 8)
    np.testing.assert_allclose(seen[1] - seen[0], 0.25, atol=1e-3)


def test_a_sheet_has_a_row_for_each_clip():
    clips = [np.full((6, 10, 12, 3), level, np.float32) for level in (0.0, 1.0)]
    sheet = np.asarray(contact_sheet(clips, columns=3))
    assert sheet.shape == (2 * 12 + 2, 3 * 14 + 2, 3)
    assert (sheet[2:12, 2:14] == 0).all() and (sheet[14:24, 30:42] == 255).all()


def test_the_command_writes_a_sheet(tmp_path, capsys):
    output = tmp_path / "sheet.png"
    assert main([str(output), "--seed", "3", "--count", "2", "--width", "32", "--height", "24", "--kind", "ball"]) == 0
    with Image.open(output) as sheet:
        assert sheet.size == (5 * 34 + 2, 2 * 26 + 2)
    assert "seed 4: ball" in capsys.readouterr().out


def test_the_command_says_in_one_line_what_it_cannot_do(tmp_path, capsys):
    assert main([str(tmp_path / "sheet.png"), "--seed", "-5"]) == 2
    assert main([str(tmp_path / "none" / "sheet.png"), "--count", "1", "--kind", "ball"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
