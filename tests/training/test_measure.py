"""Measures are checked on pictures whose motion and error are known by construction."""

import math

import numpy as np
import pytest
from moving import moving, texture

from svd_core.errors import InputError
from training.measure import angle_between, motion_direction, spearman


def test_an_empty_clip_has_no_direction():
    assert motion_direction(np.full((3, 32, 32, 3), 0.5, np.float32)) is None


@pytest.mark.parametrize("angle", range(0, 360, 40))
def test_a_patch_before_a_shimmering_background_is_tracked(angle):
    y, x = np.mgrid[:64, :64].astype(float)
    u, v = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    places = [(x - u * t, y - v * t) for t in (-6, -4, -2, 0, 2, 4, 6)]
    calm = 0.3 + 0.3 * texture(y, x)
    clip = np.stack([np.where(np.hypot(a - 32, b - 32) < 9, 1 - texture(a, b), calm) for a, b in places])
    clip = clip + np.random.default_rng(angle).normal(0, 0.01, clip.shape)
    assert angle_between(motion_direction(np.repeat(clip[..., None], 3, axis=-1)), (u, v)) < 20


def test_a_film_run_backwards_moves_the_other_way():
    clip = moving((1.5, 0.5))
    assert angle_between(motion_direction(clip), motion_direction(clip[::-1])) == pytest.approx(180, abs=4)


@pytest.mark.parametrize(
    ("one", "other", "degrees"), [((1, 0), (0, 2), 90), ((1, 1), (-1, -1), 180), ((3, 0), (1, 0), 0)]
)
def test_angles(one, other, degrees):
    assert angle_between(one, other) == pytest.approx(degrees)


def test_spearman_ranks_and_shares_ranks_among_ties():
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9486833)  # sqrt(0.9), by hand
    assert math.isnan(spearman([1, 2, 3], [5, 5, 5]))
    with pytest.raises(InputError, match="two pairs"):
        spearman([1], [1])
