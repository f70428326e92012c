"""Flow and likeness on pictures whose motion and error are known by construction."""

import math

import numpy as np
import pytest
from moving import disc, moving, pan, texture

from svd_core.errors import InputError
from svd_core.measure import flow_magnitude, likeness, optical_flow, psnr
from svd_core.measure.flow import shrunk
from svd_core.measure.likeness import MOST_DB


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


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (4, 32, 32), (4, 3, 32, 32)])
def test_what_is_no_clip_is_refused(shape):
    with pytest.raises(InputError, match="at least 2 frames"):
        optical_flow(np.zeros(shape, np.float32))


def test_shrunk_averages_squares_and_says_how_large_they_are():
    frames = np.arange(2 * 64 * 96 * 3, dtype=np.float32).reshape(2, 64, 96, 3)
    small, factor = shrunk(frames, 40)
    assert factor == 3
    assert small.shape == (2, 21, 32, 3)
    np.testing.assert_allclose(small[1, 2, 5], frames[1, 6:9, 15:18].mean(axis=(0, 1)), rtol=1e-6)
    assert shrunk(frames, 96) == (frames, 1)
    thin = np.zeros((2, 16, 800, 3), np.float32)
    assert shrunk(thin, 40) == (thin, 1), "nothing would be left of the shorter side"


def test_psnr():
    black, grey = np.zeros((4, 4, 3), np.float32), np.full((4, 4, 3), 0.1)
    assert psnr(black, grey) == pytest.approx(20)
    assert psnr(black, black) == math.inf
    with pytest.raises(InputError, match="one shape"):
        psnr(black, grey[:1])


def test_what_travels_keeps_its_likeness_and_what_changes_loses_it():
    clip = pan(1.5)
    kept = likeness(clip, clip[0])
    plain = [psnr(frame, clip[0]) for frame in clip[1:]]
    assert kept[0] == MOST_DB
    assert (kept[1:] > 28).all()
    assert (kept[1:] > np.array(plain) + 6).all(), "compared in place, the shift counts as an error"
    faded = np.stack([frame * (1 - 0.2 * place) for place, frame in enumerate(clip)])
    assert (np.diff(likeness(faded, clip[0])) < 0).all()
    assert (likeness(disc(2.0), pan(0.0)[0]) < MOST_DB).all()


def test_a_frame_that_shows_something_else_is_not_like_the_still():
    clip = pan(0.0)
    y, x = np.mgrid[:64, :128]
    other = np.repeat(texture(2 * y + 40, x)[None, ..., None], 3, axis=-1).astype(np.float32)
    assert likeness(other, clip[0])[0] < 20


def test_a_still_of_another_size_is_refused():
    with pytest.raises(
        InputError, match=r"still has shape \(32, 128, 3\) and the frames \(64, 128, 3\): give the still"
    ):
        likeness(pan(0.0), np.zeros((32, 128, 3), np.float32))
