"""Samplers solve what their papers say they solve, repeatably, and leave their arguments alone.

The model of most tests is the exact denoiser of a Gaussian, whose probability-flow ODE has a closed form.
"""

import inspect
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from svd_core.errors import InputError
from svd_core.sampling import (
    SAMPLERS,
    edm_sigmas,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_euler,
    sample_euler_ancestral,
    sample_heun,
    sample_lcm,
    seeded_noise,
)

MEAN, SPREAD = 0.3, 0.8
DETERMINISTIC = {"euler": sample_euler, "heun": sample_heun, "dpmpp_2m": sample_dpmpp_2m}
STOCHASTIC = {
    "euler_ancestral": sample_euler_ancestral,
    "dpmpp_2m_sde": sample_dpmpp_2m_sde,
    "lcm": sample_lcm,
    "euler churned": lambda *args, **kwargs: sample_euler(*args, s_churn=4.0, **kwargs),
    "heun churned": lambda *args, **kwargs: sample_heun(*args, s_churn=4.0, **kwargs),
}
ALL = DETERMINISTIC | STOCHASTIC

every_sampler = pytest.mark.parametrize("sampler", ALL.values(), ids=ALL.keys())
every_stochastic_sampler = pytest.mark.parametrize("sampler", STOCHASTIC.values(), ids=STOCHASTIC.keys())


def gaussian(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
    """The best guess of a clean value from N(MEAN, SPREAD^2) under noise of level sigma."""
    sigma = sigma.view(-1, *[1] * (x.ndim - 1))
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def exact(x: Tensor, sigma: float, sigma_end: float) -> Tensor:
    """Where the probability-flow ODE of `gaussian` takes x."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + sigma_end**2) / (SPREAD**2 + sigma**2))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def sigmas() -> Tensor:
    return edm_sigmas(8)


@pytest.fixture
def x() -> Tensor:
    return 700 * noise(3, 4, 2, 5)


# What they solve


def _error(sampler, steps: int) -> float:
    """Of integrating from 20 to 0.5 in float64. Halving the step divides it by 2 to the order of the sampler."""
    x = noise(1, 64, seed=1, dtype=torch.float64) * 20
    sigmas = torch.linspace(math.log(20), math.log(0.5), steps + 1, dtype=torch.float64).exp()
    return (sampler(gaussian, x, sigmas) - exact(x, 20, 0.5)).abs().max().item()


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_a_sampler_of_order_n_divides_its_error_by_2_to_the_n_when_the_step_is_halved(name, order):
    ratio = _error(DETERMINISTIC[name], 64) / _error(DETERMINISTIC[name], 128)
    assert math.log2(ratio) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sampler", DETERMINISTIC.values(), ids=DETERMINISTIC.keys())
def test_many_steps_end_where_the_closed_form_does(sampler):
    x = 80 * noise(1, 64, seed=1, dtype=torch.float64)
    result = sampler(gaussian, x, edm_sigmas(400, sigma_max=80.0))
    torch.testing.assert_close(result, exact(x, 80, 0), rtol=0, atol=0.02)


@every_stochastic_sampler
def test_noise_put_in_comes_out_as_the_data_s_own_spread(sampler):
    clips = sampler(gaussian, 80 * noise(1, 20_000, seed=2), edm_sigmas(400, sigma_max=80.0), extra_args={"seed": 5})
    assert clips.mean().item() == pytest.approx(MEAN, abs=0.02)
    if sampler is not sample_lcm:  # jumps to the mean of what is possible, so its last sample has less spread
        assert clips.std().item() == pytest.approx(SPREAD, rel=0.03)


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_single_possible_clip_is_found_exactly_in_any_number_of_steps(sampler, steps, x):
    truth = noise(*x.shape, seed=3)
    assert torch.equal(sampler(lambda x, sigma: truth, x, edm_sigmas(steps)), truth)


@every_sampler
def test_the_last_step_returns_what_the_model_denoised(sampler, x, sigmas):
    calls = []
    result = sampler(gaussian, x, sigmas, callback=calls.append)
    assert torch.equal(result, calls[-1]["denoised"])


def test_an_euler_step_interpolates_between_the_latent_and_the_denoised(x):
    sigmas = torch.tensor([10.0, 4.0])
    expected = 0.4 * x + 0.6 * gaussian(x, torch.full((3,), 10.0))  # spec 11 (d)
    torch.testing.assert_close(sample_euler(gaussian, x, sigmas), expected)


def test_dpmpp_s_second_step_uses_the_denoised_latent_of_its_middle(x):
    """Where the denoised latent is linear in log sigma, the slope of an unequal step before finds it exactly."""
    sigmas = torch.tensor([8.0, 4.0, 1.0])
    slope = noise(*x.shape, seed=4)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return slope * math.log(8.0 / sigma[0].item())

    first = x / 2  # the denoised latent is 0 at the first level
    middle = model(x, torch.tensor([2.0]))  # the geometric mean of 4 and 1
    torch.testing.assert_close(sample_dpmpp_2m(model, x, sigmas), 0.25 * first + 0.75 * middle)


def test_the_two_solver_types_differ_from_each_other_and_agree_in_the_limit():
    x = 20 * noise(1, 64, seed=1, dtype=torch.float64)

    def distance(steps: int) -> float:
        sigmas = torch.linspace(math.log(20), math.log(0.5), steps + 1, dtype=torch.float64).exp()
        midpoint, heun = (
            sample_dpmpp_2m_sde(gaussian, x, sigmas, eta=0.0, solver_type=solver) for solver in ("midpoint", "heun")
        )
        return (midpoint - heun).abs().max().item()

    assert distance(16) > 1e-3
    assert math.log2(distance(64) / distance(128)) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_a_repeated_level_changes_nothing_without_noise(solver, x):
    given = {"eta": 0.0, "solver_type": solver}
    once, twice = (
        sample_dpmpp_2m_sde(gaussian, x, torch.tensor(levels), **given)
        for levels in ([20.0, 5.0, 1.0, 0.0], [20.0, 5.0, 5.0, 1.0, 0.0])
    )
    torch.testing.assert_close(once, twice)


def test_an_unknown_solver_type_is_refused(x, sigmas):
    with pytest.raises(InputError, match="solver_type 'euler' is not known: choose one of midpoint, heun"):
        sample_dpmpp_2m_sde(gaussian, x, sigmas, solver_type="euler")


@pytest.mark.parametrize("sampler", [sample_euler_ancestral, sample_dpmpp_2m_sde])
def test_without_noise_a_stochastic_sampler_is_its_deterministic_sibling(sampler, x, sigmas):
    sibling = {sample_euler_ancestral: sample_euler, sample_dpmpp_2m_sde: sample_dpmpp_2m}[sampler]
    assert torch.equal(sampler(gaussian, x, sigmas, eta=0.0), sibling(gaussian, x, sigmas))


@pytest.mark.parametrize("sampler", [sample_euler_ancestral, sample_dpmpp_2m_sde])
@pytest.mark.parametrize("s_noise", [1.0, 1.5])
def test_added_noise_is_that_of_the_posterior_times_s_noise(sampler, s_noise):
    """Variance of q(x at sigma_next | x at sigma, clean), for which eta is 1 (arXiv 2006.11239, equation 7)."""
    sigma, sigma_next = 4.0, 3.0
    zero, options = torch.zeros(1, 1), {"s_noise": s_noise, "noise_sampler": lambda *_: torch.ones(1, 1)}
    added = sampler(lambda x, sigma: zero, zero, torch.tensor([sigma, sigma_next]), **options).item()
    posterior = 1 / (1 / sigma_next**2 + 1 / (sigma**2 - sigma_next**2))
    assert added**2 == pytest.approx(s_noise**2 * posterior)


def test_lcm_noises_the_denoised_latent_to_the_next_level(x, sigmas):
    added = noise(*x.shape, seed=6)
    calls = []
    sample_lcm(gaussian, x, sigmas, callback=calls.append, noise_sampler=lambda sigma, sigma_next: added)
    for before, after in pairwise(calls):
        torch.testing.assert_close(after["x"], before["denoised"] + after["sigma"] * added)


# Churn


@pytest.mark.parametrize("sampler", [sample_euler, sample_heun])
@pytest.mark.parametrize(("s_churn", "gamma"), [(1.6, 0.2), (1e9, math.sqrt(2) - 1)])
def test_churn_raises_the_level_by_its_share_of_each_step_and_adds_the_noise_to_match(
    sampler, x, sigmas, s_churn, gamma
):
    calls, added = [], noise(*x.shape, seed=6)
    sampler(gaussian, x, sigmas, callback=calls.append, s_churn=s_churn, s_noise=1.5, noise_sampler=lambda *_: added)
    for call in calls:
        assert (call["sigma_hat"] / call["sigma"]).item() == pytest.approx(1 + gamma)  # spec 5.3, n = 8 steps
    level = 700 * math.sqrt((1 + gamma) ** 2 - 1)
    torch.testing.assert_close(calls[0]["x"], x + 1.5 * level * added, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sampler", [sample_euler, sample_heun])
def test_churn_leaves_levels_outside_its_bounds_alone(sampler, x, sigmas):
    calls = []
    low, high = sigmas[5].item(), sigmas[2].item()
    sampler(gaussian, x, sigmas, callback=calls.append, s_churn=1.6, s_tmin=low, s_tmax=high)
    churned = [call["i"] for call in calls if call["sigma_hat"] != call["sigma"]]
    assert churned == [2, 3, 4, 5]


# Noise


@every_stochastic_sampler
def test_a_seed_means_one_clip_and_another_seed_another(sampler, x, sigmas):
    def run(seed: int | None) -> Tensor:
        return sampler(gaussian, x, sigmas, extra_args={"seed": seed})

    assert torch.equal(run(7), run(7))
    assert not torch.equal(run(7), run(8))
    assert torch.equal(run(None), sampler(gaussian, x, sigmas))
    assert torch.equal(run(0), sampler(gaussian, x, sigmas))
    assert torch.isfinite(run(2**64 - 1)).all()


@every_stochastic_sampler
def test_a_noise_sampler_wins_over_the_seed_and_is_asked_for_each_step(sampler, x, sigmas):
    asked = []

    def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        asked.append((sigma.item(), sigma_next.item()))
        return noise(*x.shape, seed=len(asked))

    first = sampler(gaussian, x, sigmas, extra_args={"seed": 1}, noise_sampler=noise_sampler)
    count = len(asked)
    assert [sigma for sigma, _ in asked] == sigmas[:count].tolist()
    assert count in (7, 8)  # the last step needs none, unless it is churned first
    asked.clear()
    assert torch.equal(first, sampler(gaussian, x, sigmas, extra_args={"seed": 2}, noise_sampler=noise_sampler))


def test_the_seed_of_the_first_latent_does_not_give_the_same_noise_again(x):
    x = noise(3, 4, 2, 5, seed=7)
    calls = []
    sample_lcm(gaussian, x, torch.tensor([1.0, 1.0, 0.0]), extra_args={"seed": 7}, callback=calls.append)
    added = calls[1]["x"] - calls[0]["denoised"]
    correlation = torch.corrcoef(torch.stack([added.flatten(), x.flatten()]))[0, 1].item()
    assert abs(correlation) < 0.4


@every_sampler
def test_the_global_generator_is_neither_read_nor_moved(sampler, x, sigmas):
    before = torch.get_rng_state()
    first = sampler(gaussian, x, sigmas)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        assert torch.equal(sampler(gaussian, x, sigmas), first)


def test_seeded_noise_is_unit_normal_and_new_at_each_call():
    draw = seeded_noise(3, torch.empty(50_000))
    first, second = (draw(torch.tensor(2.0), torch.tensor(1.0)) for _ in range(2))
    assert torch.equal(first, noise(50_000, seed=3))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 0.02
    assert second.std().item() == pytest.approx(1, abs=0.02)


def test_seeded_noise_is_shaped_typed_and_placed_like_its_latent():
    like = torch.empty(2, 3, dtype=torch.float64)
    drawn = seeded_noise(3, like)(torch.tensor(2.0), torch.tensor(1.0))
    assert drawn.dtype == torch.float64
    assert torch.equal(drawn, noise(2, 3, seed=3).double())  # drawn in float32 first
    assert seeded_noise(3, torch.empty(2, 3, device="meta"))(torch.tensor(2.0), torch.tensor(1.0)).is_meta


def test_a_seed_of_more_than_64_bits_is_refused():
    with pytest.raises(InputError, match=f"seed {2**64} does not fit in 64 bits"):
        seeded_noise(2**64, torch.empty(1))


# The contract


@every_sampler
def test_arguments_are_not_written_to(sampler, x, sigmas):
    x_before, sigmas_before, extra = x.clone(), sigmas.clone(), {"seed": 1}
    sampler(gaussian, x, sigmas, extra_args=extra)
    assert torch.equal(x, x_before)
    assert torch.equal(sigmas, sigmas_before)
    assert extra == {"seed": 1}


@every_sampler
def test_the_model_gets_one_sigma_a_frame_and_the_extra_arguments(sampler, x, sigmas):
    seen = []

    def model(x: Tensor, sigma: Tensor, **extra: object) -> Tensor:
        seen.append((x.dtype, tuple(sigma.shape), sigma.unique().numel(), extra))
        return gaussian(x, sigma)

    sampler(model, x, sigmas, extra_args={"seed": 1, "model_options": {}})
    assert all(call == (torch.float32, (3,), 1, {"seed": 1, "model_options": {}}) for call in seen)


@every_sampler
def test_the_callback_hears_of_every_step_in_order(sampler, x, sigmas):
    calls = []
    sampler(gaussian, x, sigmas, callback=calls.append)
    assert [call["i"] for call in calls] == list(range(8))
    assert torch.equal(torch.stack([call["sigma"] for call in calls]), sigmas[:-1])
    for call in calls:
        assert call.keys() == {"x", "i", "sigma", "sigma_hat", "denoised"}
        torch.testing.assert_close(call["denoised"], gaussian(call["x"], call["sigma_hat"].expand(3)))


@every_sampler
def test_half_precision_is_widened_before_the_first_step(sampler, x, sigmas):
    half = x.half()
    assert torch.equal(sampler(gaussian, half, sigmas), sampler(gaussian, half.float(), sigmas))


@every_sampler
def test_a_model_that_answers_in_half_precision_does_not_narrow_the_state(sampler, x, sigmas):
    calls = []
    result = sampler(lambda x, sigma: gaussian(x, sigma).bfloat16(), x, sigmas, callback=calls.append)
    assert {result.dtype, *(call["x"].dtype for call in calls)} == {torch.float32}


@every_sampler
@pytest.mark.parametrize("sigmas", [torch.tensor([5.0]), torch.tensor([])])
def test_a_schedule_without_steps_changes_nothing(sampler, x, sigmas):
    assert torch.equal(sampler(gaussian, x, sigmas), x)


@every_sampler
def test_an_exception_in_the_callback_ends_the_run_within_that_step(sampler, x, sigmas):
    steps = []

    def interrupt(call: dict) -> None:
        steps.append(call["i"])
        if call["i"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(gaussian, x, sigmas, callback=interrupt)
    assert steps == [0, 1, 2]


def test_every_sampler_of_the_table_can_be_called_alike(x, sigmas):
    assert list(SAMPLERS) == ["euler", "heun", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "lcm"]
    for sampler in SAMPLERS.values():
        names = list(inspect.signature(sampler).parameters)
        assert names[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
        result = sampler(gaussian, x, sigmas, callback=None, noise_sampler=seeded_noise(1, x))
        assert result.shape == x.shape
        assert not result.requires_grad
