"""Un-stick: one strength, three settings, and a start that has the right statistics."""

import pytest
import torch

from svd_core.errors import InputError
from svd_core.motion import analytic_start, lowered_sigmas, unstuck
from svd_core.sampling import align_your_steps_sigmas, edm_sigmas


def test_strength_zero_is_nothing_and_one_is_the_most():
    none, half, most = (unstuck(strength, 127, 0.02) for strength in (0, 0.5, 1))
    assert (none.sigma_start, none.motion_bucket, none.augmentation) == (700.0, 127, 0.02)
    assert none.sigma_start > half.sigma_start > most.sigma_start > 10
    assert none.motion_bucket < half.motion_bucket < most.motion_bucket == 255
    assert none.augmentation < half.augmentation < most.augmentation == pytest.approx(0.2)


def test_what_is_higher_already_stays():
    assert unstuck(1.0, 400, 0.5).motion_bucket == 400
    assert unstuck(1.0, 400, 0.5).augmentation == 0.5


def test_a_lowered_schedule_is_the_released_one_of_that_start():
    torch.testing.assert_close(lowered_sigmas(edm_sigmas(25), 80.0), edm_sigmas(25, sigma_max=80.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("sigmas", [edm_sigmas(1), edm_sigmas(2), align_your_steps_sigmas(10)])
def test_other_schedules_keep_their_steps_and_their_end(sigmas):
    low = lowered_sigmas(sigmas, 80.0)
    assert low.shape == sigmas.shape
    assert low.dtype == sigmas.dtype
    assert low[0] == pytest.approx(80.0)
    assert low[-1] == 0
    assert (low.diff() < 0).all()
    if len(sigmas) > 2:
        assert low[-2] == pytest.approx(sigmas[-2].item(), rel=1e-4)


def test_a_schedule_that_starts_lower_stays():
    sigmas = edm_sigmas(4, sigma_max=30.0)
    assert lowered_sigmas(sigmas, 80.0) is sigmas


@pytest.mark.parametrize("levels", [[700.0, 200.0, 100.0, 0.0], [700.0, 50.0, 0.0]])
def test_a_schedule_that_never_goes_below_the_start_is_refused(levels):
    with pytest.raises(InputError, match="un-stick starts at sigma 50, and the last level of this schedule is"):
        lowered_sigmas(torch.tensor(levels), 50.0)


def test_the_first_part_of_a_schedule_is_refused_and_the_last_stays():
    with pytest.raises(InputError, match="a part that ends at sigma 183: sample in one part, or set un-stick to 0"):
        lowered_sigmas(edm_sigmas(25)[:6], 50.0)
    last = edm_sigmas(25)[12:]
    assert lowered_sigmas(last, 50.0) is last


def test_the_start_has_the_pictures_mean_and_the_variance_of_its_cells():
    first = torch.randn(2, 4, 16, 16) * torch.tensor([0.5, 1.0, 2.0, 4.0])[:, None, None] + 3
    start = analytic_start(first, 50, seed=1)
    values = start.view(2, 50, 4, 16, 16).transpose(1, 2).flatten(2)
    torch.testing.assert_close(values.mean(-1), first.mean(dim=(2, 3)), rtol=0, atol=0.15)
    torch.testing.assert_close(values.std(-1), first.std(dim=(2, 3)), rtol=0.05, atol=0)
    frames = start.view(2, 50, -1)[:, :2]
    assert torch.nn.functional.cosine_similarity(*(frames[0] - frames[0].mean(-1, keepdim=True)), dim=0) < 0.2
    assert torch.equal(start, analytic_start(first, 50, seed=1))
    assert not torch.equal(start, analytic_start(first, 50, seed=2))


def test_a_strength_outside_its_range_is_refused():
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="outside 0 to 1"):
            unstuck(strength)
