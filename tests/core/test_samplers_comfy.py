"""Our samplers and scaling against ComfyUI's own, on the same model and the same noise."""

import warnings
from types import ModuleType, SimpleNamespace

import pytest
import torch
from synthetic import write_checkpoint
from torch import Tensor

from svd_core.loading import load_checkpoint
from svd_core.sampling import SAMPLERS, align_your_steps_sigmas, edm_sigmas, v_scaling

SPREAD = 0.8


@pytest.fixture(scope="module")
def host(comfy) -> SimpleNamespace:
    """ComfyUI's samplers and the model sampling that it gives SVD."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import comfy.k_diffusion.sampling
        import comfy.model_sampling

    bases = (comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.V_PREDICTION)
    config = SimpleNamespace(sampling_settings={"sigma_max": 700.0, "sigma_min": 0.002})
    return SimpleNamespace(samplers=comfy.k_diffusion.sampling, sampling=type("SVDSampling", bases, {})(config))


class HostModel:
    """A denoiser in the wrapping that ComfyUI's samplers look into."""

    def __init__(self, model_sampling: object) -> None:
        model = SimpleNamespace(model_sampling=model_sampling)
        patcher = SimpleNamespace(get_model_object=lambda name: getattr(model, name))
        self.inner_model = SimpleNamespace(inner_model=model, model_patcher=patcher)

    def __call__(self, x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        sigma = sigma.view(-1, 1, 1, 1)
        return (SPREAD**2 * x + torch.tanh(x) * sigma**2) / (SPREAD**2 + sigma**2)


def noise_sampler(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return lambda sigma, sigma_next: torch.randn(2, 4, 3, 5, generator=generator)


def trace(sampler, model: HostModel, sigmas: Tensor, **options: object) -> list[Tensor]:
    """The state before each step and after the last."""
    x = 700 * torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    states = []
    last = sampler(model, x, sigmas, callback=lambda call: states.append(call["x"]), disable=True, **options)
    return [*states, last]


def theirs(host: SimpleNamespace, name: str):
    return getattr(host.samplers, f"sample_{name}")


@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.parametrize("options", [{}, {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 100.0, "s_noise": 1.1}])
def test_euler_and_heun_take_the_same_steps_to_the_last_bit(host, name, options, monkeypatch):
    model, sigmas = HostModel(host.sampling), edm_sigmas(9)
    draw = noise_sampler()
    monkeypatch.setattr(host.samplers, "torch", _drawing_from(draw))
    expected = trace(theirs(host, name), model, sigmas, **options)
    monkeypatch.undo()
    states = trace(SAMPLERS[name], model, sigmas, noise_sampler=noise_sampler(), **options)
    assert len(states) == len(expected) == 10
    for ours, other in zip(states[:-1], expected[:-1], strict=True):
        assert torch.equal(ours, other)
    torch.testing.assert_close(states[-1], expected[-1], rtol=1e-5, atol=1e-6)  # ours is the denoised, exactly


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_a_function_that_takes_no_noise_sampler_samples_too(host, name, tmp_path):
    """k-diffusion's own, in ComfyUI's copy."""
    svd = load_checkpoint(write_checkpoint(tmp_path / "tiny.safetensors"))
    cond = svd.condition(torch.zeros(1, 3, 32, 48))
    given = (torch.randn(2, 4, 4, 6), cond, edm_sigmas(3), torch.full((2,), 2.0))
    done = []
    clip = svd.sample(*given, theirs(host, name), lambda state: done.append(state["i"]), disable=True)
    torch.testing.assert_close(clip, svd.sample(*given, name), rtol=1e-4, atol=1e-4)
    assert done == [0, 1, 2]


def _drawing_from(draw) -> ModuleType:
    """torch for a module whose `randn_like` reads the global generator: the same, with our noise."""
    stand_in = ModuleType("torch")
    stand_in.__getattr__ = lambda name: getattr(torch, name)
    stand_in.randn_like = lambda x: draw(None, None)
    return stand_in


@pytest.mark.parametrize("options", [{}, {"eta": 0.5, "s_noise": 1.1}])
def test_ancestral_steps_are_the_same(host, options):
    model, sigmas = HostModel(host.sampling), edm_sigmas(9)
    expected = trace(theirs(host, "euler_ancestral"), model, sigmas, noise_sampler=noise_sampler(), **options)
    states = trace(SAMPLERS["euler_ancestral"], model, sigmas, noise_sampler=noise_sampler(), **options)
    _assert_same(states, expected, 1e-6)


def test_multistep_steps_are_the_same(host):
    model, sigmas = HostModel(host.sampling), edm_sigmas(9)
    expected = trace(theirs(host, "dpmpp_2m"), model, sigmas)
    _assert_same(trace(SAMPLERS["dpmpp_2m"], model, sigmas), expected, 1e-5)


@pytest.mark.parametrize("options", [{}, {"eta": 0.3, "s_noise": 1.1}, {"solver_type": "heun"}])
def test_stochastic_multistep_steps_are_the_same(host, options):
    model, sigmas = HostModel(host.sampling), edm_sigmas(9)
    expected = trace(theirs(host, "dpmpp_2m_sde"), model, sigmas, noise_sampler=noise_sampler(), **options)
    states = trace(SAMPLERS["dpmpp_2m_sde"], model, sigmas, noise_sampler=noise_sampler(), **options)
    _assert_same(states, expected, 1e-5)


def test_consistency_steps_are_the_same(host):
    model, sigmas = HostModel(host.sampling), edm_sigmas(4)
    expected = trace(theirs(host, "lcm"), model, sigmas, noise_sampler=noise_sampler())
    _assert_same(trace(SAMPLERS["lcm"], model, sigmas, noise_sampler=noise_sampler()), expected, 1e-6)


@pytest.mark.parametrize("name", ["euler_ancestral", "lcm"])
def test_a_seed_from_the_host_gives_the_host_s_noise_on_the_cpu(host, name):
    model, sigmas = HostModel(host.sampling), edm_sigmas(4)
    expected = trace(theirs(host, name), model, sigmas, extra_args={"seed": 41})
    _assert_same(trace(SAMPLERS[name], model, sigmas, extra_args={"seed": 41}), expected, 1e-6)


def _assert_same(states: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Relative to the size of each state, which falls from hundreds to about 1."""
    assert len(states) == len(expected)
    for ours, other in zip(states, expected, strict=True):
        assert (ours - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("steps", [2, 25, 30])
def test_the_schedule_is_the_host_s_karras_schedule_to_the_last_bit(host, steps):
    assert torch.equal(edm_sigmas(steps), host.samplers.get_sigmas_karras(steps, 0.002, 700.0))


@pytest.mark.parametrize("steps", [1, 7, 10, 25])
def test_the_optimised_schedule_is_the_host_s(host, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from comfy_extras.nodes_align_your_steps import AlignYourStepsScheduler
    (expected,) = AlignYourStepsScheduler.execute("SVD", steps, 1.0).result
    torch.testing.assert_close(align_your_steps_sigmas(steps), expected, rtol=1e-6, atol=0)


def test_the_preconditioning_is_the_host_s(host):
    sigma = edm_sigmas(9)[:-1]
    x, v = torch.randn(2, 9, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    scaling = v_scaling(sigma[:, None, None, None])
    torch.testing.assert_close(x * scaling.input, host.sampling.calculate_input(sigma, x))
    torch.testing.assert_close(scaling.skip * x + scaling.out * v, host.sampling.calculate_denoised(sigma, v, x))
    torch.testing.assert_close(scaling.noise.flatten(), host.sampling.timestep(sigma))
