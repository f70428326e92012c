"""Schedules fall from sigma_max to 0 through the published numbers."""

import math

import pytest
import torch

from svd_core.errors import InputError
from svd_core.sampling import (
    align_your_steps_sigmas,
    check_sigmas,
    cut_sigmas,
    edm_sigmas,
    noisy_start,
    sample_euler,
    sigmas_from_list,
)
from svd_core.settings import MAX_STEPS

# Spec 5.2, printed there to six digits.
PUBLISHED = {
    25: "700 545.729 421.569 322.454 244.023 182.547 134.854 98.2671 70.5409 49.8098 34.5367 23.4675 15.59 10.0971 "
    "6.35427 3.8697 2.26912 1.27318 .678146 .339378 .157405 .0663991 .0248026 .00788252 .002 0",
    30: "700 570.027 461.313 370.878 296.086 234.613 184.421 143.729 110.989 84.8619 64.1942 48.0003 35.4422 25.8125 "
    "18.5185 13.0677 9.05427 6.14739 4.08019 2.63993 1.65944 1.00925 .590901 .330954 .175904 .0878049 .0405951 .017056 "
    ".00633786 .002 0",
}

# Spec 9.3.
OPTIMISED = [700, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034]


@pytest.mark.parametrize("steps", PUBLISHED)
def test_the_edm_schedule_is_the_published_table(steps):
    expected = torch.tensor([float(number) for number in PUBLISHED[steps].split()])
    torch.testing.assert_close(edm_sigmas(steps), expected, rtol=1e-5, atol=0)


def test_c_noise_runs_over_the_published_range():
    first, last = edm_sigmas(25)[[0, -2]].log() / 4
    assert first.item() == pytest.approx(1.63777, abs=5e-6)
    assert last.item() == pytest.approx(-1.55365, abs=5e-6)


@pytest.mark.parametrize("schedule", [edm_sigmas, align_your_steps_sigmas])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25, MAX_STEPS])
def test_a_schedule_falls_strictly_from_700_to_an_exact_0_in_float32(schedule, steps):
    sigmas = schedule(steps)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float32
    assert sigmas[0].item() == pytest.approx(700, rel=1e-6)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_the_edm_schedule_is_even_in_its_own_power():
    levels = edm_sigmas(5, sigma_min=1.0, sigma_max=16.0, rho=2.0)[:-1].sqrt()
    torch.testing.assert_close(levels, torch.tensor([4, 3.25, 2.5, 1.75, 1.0]))


def test_ten_optimised_steps_are_the_published_ones():
    torch.testing.assert_close(align_your_steps_sigmas(10), torch.tensor([*OPTIMISED, 0]), rtol=1e-6, atol=0)


def test_twenty_optimised_steps_hold_the_ten_and_their_geometric_means():
    sigmas = align_your_steps_sigmas(20)
    knots = torch.tensor([*OPTIMISED, 0.002])
    torch.testing.assert_close(sigmas[:-1:2], knots[:-1], rtol=1e-6, atol=0)
    torch.testing.assert_close(sigmas[1::2], (knots[:-1] * knots[1:]).sqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", [edm_sigmas, align_your_steps_sigmas])
@pytest.mark.parametrize("steps", [0, -3, MAX_STEPS + 1])
def test_a_number_of_steps_outside_the_limits_is_refused(schedule, steps):
    with pytest.raises(InputError, match=rf"^{steps} steps are outside 1 to {MAX_STEPS}: "):
        schedule(steps)


@pytest.mark.parametrize(
    ("sigma_min", "sigma_max"),
    [(0, 700), (-1, 700), (2, 2), (700, 0.002), (math.nan, 700), (0.002, math.nan), (0.002, math.inf)],
)
def test_bounds_that_are_not_a_rising_pair_above_0_are_refused(sigma_min, sigma_max):
    with pytest.raises(InputError, match=f"^sigma_min {sigma_min} and sigma_max {sigma_max} do not satisfy"):
        edm_sigmas(10, sigma_min=sigma_min, sigma_max=sigma_max)


@pytest.mark.parametrize("rho", [0, -7, math.nan, math.inf])
def test_a_rho_that_is_not_above_0_is_refused(rho):
    with pytest.raises(InputError, match=f"^rho {rho} is not a finite number above 0"):
        edm_sigmas(10, rho=rho)


@pytest.mark.parametrize("settings", [{"rho": 1e-3}, {"rho": 0.05}, {"rho": 1e9}, {"sigma_min": 699.9999}])
def test_levels_that_float32_cannot_hold_or_tell_apart_are_refused(settings):
    rho = settings.get("rho", 7.0)
    with pytest.raises(InputError, match=rf"^rho {rho} makes no falling noise levels in float32 of 25 steps from 700 "):
        edm_sigmas(25, **settings)


@pytest.mark.parametrize("schedule", [edm_sigmas, align_your_steps_sigmas])
@pytest.mark.parametrize("steps", [2.5, 3.0, None, "3"])
def test_steps_that_are_no_whole_number_are_refused(schedule, steps):
    with pytest.raises(InputError, match=f"^{steps!r} steps are not a whole number: 25 are usual"):
        schedule(steps)


@pytest.mark.parametrize("values", [[700, 20, 1.5], [700, 20, 1.5, 0], (700, 20, 1.5, 0.0)])
def test_a_list_becomes_a_schedule_with_or_without_its_final_0(values):
    sigmas = sigmas_from_list(values)
    assert sigmas.tolist() == [700, 20, 1.5, 0]
    assert sigmas.dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "no sigma above 0 was given"),
        ([0], "no sigma above 0 was given"),
        ([10, 20], "sigma 20 after 10"),
        ([10, 10], "sigma 10 after 10"),
        ([10, 0, 0], "sigma 0 after 10"),
        ([10, -1], "sigma -1 after 10"),
        ([math.inf, 1], "sigma inf after inf"),
        ([10, math.nan], "sigma nan after 10"),
        ([1.0, 1.0 - 1e-12], "sigma 1 after 1"),  # distinct only beyond float32
        (range(MAX_STEPS + 1, 0, -1), f"{MAX_STEPS + 1} steps are outside 1 to {MAX_STEPS}"),
    ],
)
def test_a_list_that_does_not_fall_is_refused_naming_the_fault(values, message):
    with pytest.raises(InputError, match=f"^{message}"):
        sigmas_from_list(values)


@pytest.mark.parametrize("sigmas", [edm_sigmas(3), edm_sigmas(3)[1:], edm_sigmas(3)[:3], edm_sigmas(3).double()])
def test_schedules_and_parts_of_them_pass(sigmas):
    check_sigmas(sigmas)


def test_levels_may_repeat_and_rise_where_a_function_has_a_schedule_of_its_own():
    check_sigmas(torch.tensor([5.0, 5.0, 1.0, 0.0]))
    check_sigmas(edm_sigmas(3)[:3].flip(0), may_rise=True)
    for broken in ([1.0, math.nan], [1.0, 0.0, 2.0], [1.0, math.inf], [-1.0, 2.0]):
        with pytest.raises(InputError, match=r"^sigma "):
            check_sigmas(torch.tensor(broken), may_rise=True)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        (torch.tensor([1.0, 2.0, 0.0]), "sigma 2 after 1: give finite falling numbers, of which the last"),
        (torch.tensor([2.0, 0.0, 0.0]), "sigma 0 after 0"),
        (torch.tensor([2.0, 0.0, 1.0]), "sigma 1 after 0"),
        (torch.tensor([2.0, -1.0, 0.0]), "sigma -1 after 2"),
        (torch.tensor([2.0, math.nan, 0.0]), "sigma nan after 2"),
        (torch.tensor([math.inf, 1.0, 0.0]), "sigma inf after inf"),
        (torch.tensor([]), r"sigmas of shape \(0,\) are not a tensor \(n \+ 1,\)"),
        (torch.ones(1, 3), r"sigmas of shape \(1, 3\) are not"),
        ([700.0, 0.0], "sigmas of class list are not"),
    ],
)
def test_sigmas_that_no_sampler_can_walk_are_refused(sigmas, message):
    with pytest.raises(InputError, match=f"^{message}"):
        check_sigmas(sigmas)


def test_adjoining_parts_of_a_schedule_make_the_whole_run():
    def model(x, sigma):
        return torch.tanh(x) / (1 + sigma[:, None])

    sigmas, x = edm_sigmas(6), torch.full((2, 3), 600.0)
    half_way = sample_euler(model, x, cut_sigmas(sigmas, end=4))
    assert len(cut_sigmas(sigmas, end=4)) == 5
    assert torch.equal(sample_euler(model, half_way, cut_sigmas(sigmas, start=4)), sample_euler(model, x, sigmas))


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (3, 3), (4, 2), (0, 7), (6, None)])
def test_a_part_that_is_not_in_the_schedule_is_refused(start, end):
    with pytest.raises(InputError, match="are not a part of 6 steps: use 0 <= start < end <= 6"):
        cut_sigmas(edm_sigmas(6), start, end)


def test_a_clip_from_nothing_starts_at_the_published_multiple_of_its_noise():
    noise = torch.ones(2, 4, 1, 1)
    start = noisy_start(noise, edm_sigmas(25))
    assert start.dtype == torch.float32
    assert start.unique().item() == pytest.approx(700.000714, rel=3e-7)  # spec 0, row 8


def test_a_clip_from_a_clip_starts_with_that_clip_under_the_noise_of_its_first_step():
    noise, latent = torch.full((2, 4, 1, 1), 3.0, dtype=torch.float16), torch.full((2, 4, 1, 1), 0.5)
    start = noisy_start(noise, cut_sigmas(sigmas_from_list([100, 10, 1]), start=1), latent)
    assert start.dtype == torch.float32
    assert start.unique().item() == 30.5
