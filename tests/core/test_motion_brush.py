"""Motion Brush: what is painted still stays, to the bit, and grey is in between."""

import numpy as np
import pytest
import torch
from fake_clips import Drifting, conditioning

from svd_core.errors import InputError
from svd_core.motion import Brush, Brushed, Part, composite
from svd_core.sampling import SAMPLERS, edm_sigmas, noisy_start

FRAMES = 3


def brushed(freedom, drift=1.0):
    still = torch.full((1, 4, 2, 4), 5.0)
    return Brushed(Drifting(conditioning(5.0), FRAMES, drift), freedom, still, lowest=0.002, highest=700.0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_still_cells_end_as_the_still_with_every_sampler(name):
    freedom = torch.zeros(1, 1, 2, 4)
    freedom[..., 2:] = 1
    sigmas = edm_sigmas(4)
    sampled = SAMPLERS[name](brushed(freedom), noisy_start(torch.randn(FRAMES, 4, 2, 4), sigmas), sigmas)
    assert torch.equal(sampled[..., :2], torch.full((FRAMES, 4, 2, 2), 5.0))
    torch.testing.assert_close(sampled[2, :, :, 2:], torch.full((4, 2, 2), 7.0))


def test_a_sampler_goes_along_the_noised_still_where_it_is_held():
    """Replacing what is denoised is exact: at every level the state is the still plus its own noise."""
    seen, noise, sigmas = [], torch.randn(FRAMES, 4, 2, 4), edm_sigmas(5)
    start = 5.0 + sigmas[0] * noise
    SAMPLERS["euler"](brushed(torch.zeros(1, 1, 2, 4)), start, sigmas, callback=lambda state: seen.append(state["x"]))
    for x, sigma in zip(seen, sigmas[:-1], strict=True):
        torch.testing.assert_close(x, 5.0 + sigma * noise, rtol=1e-4, atol=1e-4)


def test_grey_is_held_while_the_noise_left_is_above_it():
    grey = brushed(torch.full((1, 1, 2, 4), 0.5))
    middle = (700.0 * 0.002) ** 0.5  # half of the way in the logarithm
    x = torch.zeros(FRAMES, 4, 2, 4)
    assert torch.equal(grey(x, middle * 1.01), torch.full_like(x, 5.0))
    assert torch.equal(grey(x, middle * 0.99)[2], torch.full_like(x[2], 7.0))
    assert brushed(torch.ones(1, 1, 2, 4))(x, 700.0)[2].mean() == 7.0
    assert brushed(torch.zeros(1, 1, 2, 4))(x, 0.001)[2].mean() == 5.0


def test_a_mask_for_each_frame_and_clips_of_a_batch():
    freedom = torch.ones(FRAMES, 1, 2, 4)
    freedom[1] = 0
    still = torch.tensor([5.0, 8.0])[:, None, None, None].expand(2, 4, 2, 4)
    two = Brushed(Drifting(conditioning(5.0, clips=2), FRAMES, 1.0), freedom, still, 0.002, 700.0)
    values = two(torch.zeros(2 * FRAMES, 4, 2, 4), 1.0)[:, 0, 0, 0]
    torch.testing.assert_close(values, torch.tensor([5.0, 5.0, 7.0, 5.0, 8.0, 7.0]))


def test_a_cell_moves_as_much_as_its_freest_pixel():
    mask = torch.zeros(16, 24)
    mask[3, 9] = 0.25
    mask[4, 10] = 0.75
    cells = Brush(mask).cells()
    assert cells.shape == (1, 1, 2, 3)
    assert cells[0, 0, 0].tolist() == [0.0, 0.75, 0.0]


@pytest.mark.parametrize("feather", [1, 3, 40])
def test_a_feather_rises_with_the_distance_to_the_nearest_still_pixel(feather):
    mask = (torch.rand(2, 19, 33, generator=torch.Generator().manual_seed(0)) > 0.02).float()
    rows, columns = torch.meshgrid(torch.arange(19), torch.arange(33), indexing="ij")
    for frame, opacity in zip(mask, Brush(mask).opacity(feather), strict=True):
        still = (frame == 0).nonzero()
        away = torch.maximum((rows[..., None] - still[:, 0]).abs(), (columns[..., None] - still[:, 1]).abs())
        expected = ((2 * away.amin(-1) - 1) / (2 * feather + 1)).clamp(0, 1)
        torch.testing.assert_close(opacity, expected)
    assert (Brush(torch.ones(9, 20)).opacity(feather) == 1).all()


@pytest.mark.parametrize("feather", [1, 4, 64])
def test_a_stroke_thinner_than_the_feather_still_moves(feather):
    mask = torch.zeros(32, 48)
    mask[20:23, 4:40] = 1
    opacity = Brush(mask).opacity(feather)[0]
    assert (opacity[mask == 1] > 0).all() and (opacity[mask == 0] == 0).all()


def test_masks_for_another_clip_than_the_windows_are_of_are_refused():
    freedom = torch.ones(5, 1, 2, 4)
    held = Brushed(None, freedom, torch.zeros(1, 4, 2, 4), 0.002, 700.0)
    with pytest.raises(InputError, match="5 masks for 9 frames: give one mask, or one for each frame"):
        held.part(Part(slice(3, 7), 9))


@pytest.mark.parametrize("feather", [0, 1, 4, 50])
def test_compositing_leaves_still_pixels_their_bits(feather):
    rng = np.random.default_rng(0)
    picture, frames = rng.random((16, 24, 3), np.float32), rng.random((4, 16, 24, 3), np.float32)
    mask = torch.zeros(4, 16, 24)
    mask[:, :, 12:] = 0.3
    mask[2] = 0
    done = composite(frames, picture, Brush(mask).opacity(feather).numpy())
    assert (done[:, :, :12] == picture[:, :12]).all()
    assert (done[2] == picture).all()
    assert (done[[0, 1, 3], :, 23] == frames[[0, 1, 3], :, 23]).all() or feather > 11
    rising = Brush(mask).opacity(feather)[0, 8, 12:]
    assert (rising.diff() >= 0).all()


def test_everything_free_changes_nothing():
    x, free = torch.randn(FRAMES, 4, 2, 4), brushed(torch.ones(1, 1, 2, 4))
    assert torch.equal(free(x, 3.0), free.denoise(x, 3.0))


def test_it_asks_the_model_once_and_passes_on_what_it_is_told():
    free = brushed(torch.ones(1, 1, 2, 4))
    told = free.with_conditioning(lambda given: conditioning(1.0))
    told(torch.zeros(FRAMES, 4, 2, 4), 1.0)
    assert [rows for rows, _ in free.denoise.asked] == [FRAMES]
    assert told.denoise.conditioning.context.mean() == 1.0


def test_masks_that_do_not_fit_are_refused_with_both_sizes():
    brush = Brush(torch.ones(64, 128))
    with pytest.raises(InputError, match="the mask is 128x64 and the clip 192x64: paint it on the fitted picture"):
        brush.check(14, 64, 192)
    with pytest.raises(InputError, match="5 masks for 14 frames: give one mask, or one for each frame"):
        Brush(torch.ones(5, 64, 128)).check(14, 64, 128)
    with pytest.raises(InputError, match=r"a mask of shape \(1, 1, 64, 128\)"):
        Brush(torch.ones(1, 1, 64, 128))
    with pytest.raises(InputError, match="outside 0 to 1"):
        Brush(torch.full((8, 8), 255.0))
    with pytest.raises(InputError, match="outside 0 to 1"):
        Brush(torch.full((8, 8), torch.nan))
    with pytest.raises(InputError, match="2 masks for 3 frames"):
        brushed(torch.ones(2, 1, 2, 4))(torch.zeros(FRAMES, 4, 2, 4), 1.0)
    with pytest.raises(InputError, match="the mask is"):
        brushed(torch.ones(1, 1, 2, 5))(torch.zeros(FRAMES, 4, 2, 4), 1.0)
