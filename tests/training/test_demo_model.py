"""The demo model that ships: what its file says, and that its clips mean something. `make evaluate` has all figures."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from svd_core.checkpoint import open_checkpoint
from svd_core.demo import DEMO_MODEL
from svd_core.loading import load_checkpoint
from svd_core.measure import flow_magnitude, psnr
from svd_core.strict_json import parse
from tools.samples import DEMO_PICTURE, draw_demo_picture
from training.export import LICENCE_KEY, RECIPE_KEY, SHIPPED_LIMIT, STAGES_KEY
from training.measure import angle_between, motion_direction
from training.recipe import DEMO, Recipe
from training.world import HELD_OUT_SEEDS, draw_scene

ROCKETS = [draw_scene(seed, kind="rocket") for seed in HELD_OUT_SEEDS[5000:5006]]


@pytest.fixture(scope="module")
def svd():
    return load_checkpoint(DEMO_MODEL)


@pytest.fixture(scope="module")
def clips(svd):
    return [svd.animate(scene.still) for scene in ROCKETS]


def test_the_file_is_small_and_says_where_it_comes_from():
    assert DEMO_MODEL.stat().st_size <= SHIPPED_LIMIT
    with safe_open(DEMO_MODEL, "pt") as file:
        metadata = file.metadata()
    assert parse(metadata[RECIPE_KEY], Recipe, "recipe") == DEMO, "the recipe in the tree made this file"
    assert all(of.split()[1] == of.split()[3] for of in json.loads(metadata[STAGES_KEY]).values()), "trained to the end"
    assert metadata[LICENCE_KEY] == "MIT"
    assert open_checkpoint(DEMO_MODEL).config == DEMO.model


def test_the_first_frame_is_the_picture(clips):
    assert np.median([psnr(clip[0], scene.still) for clip, scene in zip(clips, ROCKETS, strict=True)]) > 22


def test_rockets_fly_where_they_point(clips):
    """Six held-out ones; of a hundred, 92 do."""
    found = [motion_direction(clip) for clip in clips]
    angles = [
        180 if each is None else angle_between(each, scene.direction)
        for each, scene in zip(found, ROCKETS, strict=True)
    ]
    assert sum(angle <= 45 for angle in angles) >= 5, angles


def test_a_higher_bucket_and_a_slower_film_move_more(svd):
    def flow(**settings):
        return np.mean([flow_magnitude(svd.animate(scene.still, **settings)) for scene in ROCKETS[:3]])

    assert flow(motion_bucket=20) < flow(motion_bucket=220)
    assert flow(fps=14) < flow(fps=7)


def test_a_seed_repeats_and_another_differs(svd, clips):
    again, other = (svd.animate(ROCKETS[0].still, seed=seed) for seed in (0, 1))
    assert np.array_equal(again, clips[0])
    assert not np.array_equal(other, clips[0])


def test_the_demo_picture_is_the_still_of_its_scene():
    with Image.open(DEMO_PICTURE) as picture:
        kept = np.asarray(picture, int)
    assert np.abs(np.asarray(draw_demo_picture(), int) - kept).max() <= 1  # float32 rounds differently elsewhere
