"""Measures are checked on pictures whose motion and error are known by construction."""

import math

import numpy as np
import pytest

from svd_core.errors import InputError
from training.measure import angle_between, flow_magnitude, motion_direction, optical_flow, psnr, spearman


def texture(x, y):
    """A smooth pattern with slopes in every direction, between 0 and 1."""
    waves = ((0.31, 0.17), (-0.22, 0.36), (0.45, -0.28), (0.11, 0.52))
    return 0.5 + 0.12 * sum(np.sin(a * x + b * y + 1.7 * k) for k, (a, b) in enumerate(waves))


def moving(velocity, frames=3, size=(48, 64)):
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    clip = np.stack([texture(x - velocity[0] * t, y - velocity[1] * t) for t in range(frames)])
    return np.repeat(clip[..., None], 3, axis=-1).astype(np.float32)


@pytest.mark.parametrize("velocity", [(0.1, 0.0), (-0.7, 0.4), (1.8, -1.1), (0.0, 3.0), (-5.0, 2.0)])
def test_flow_is_the_displacement_per_frame(velocity):
    flow = optical_flow(moving(velocity))
    assert flow.shape == (2, 48, 64, 2)
    inner = flow[:, 8:-8, 8:-8]
    np.testing.assert_allclose(np.median(inner, axis=(0, 1, 2)), velocity, atol=0.08)
    np.testing.assert_allclose(flow_magnitude(moving(velocity)).mean(), math.hypot(*velocity), rtol=0.15)


def test_nothing_moves_in_a_still_or_in_an_empty_clip():
    assert flow_magnitude(moving((0, 0))).max() < 1e-3
    assert flow_magnitude(np.full((3, 32, 32, 3), 0.5, np.float32)).max() == 0
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


def test_psnr():
    black, grey = np.zeros((4, 4, 3), np.float32), np.full((4, 4, 3), 0.1)
    assert psnr(black, grey) == pytest.approx(20)
    assert psnr(black, black) == math.inf
    with pytest.raises(InputError, match="one shape"):
        psnr(black, grey[:1])


def test_spearman_ranks_and_shares_ranks_among_ties():
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9486833)  # sqrt(0.9), by hand
    assert math.isnan(spearman([1, 2, 3], [5, 5, 5]))
    with pytest.raises(InputError, match="two pairs"):
        spearman([1], [1])


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (4, 32, 32), (4, 3, 32, 32)])
def test_what_is_no_clip_is_refused(shape):
    with pytest.raises(InputError, match="at least 2 frames"):
        optical_flow(np.zeros(shape, np.float32))
