"""The preconditioning turns a v-prediction into a clean latent, in float32 whatever the network computes in."""

import pytest
import torch
from torch import Tensor

from svd_core.conditioning import Conditioning
from svd_core.errors import InputError
from svd_core.sampling import Denoiser, v_scaling

CLIPS, FRAMES, HEIGHT, WIDTH = 2, 3, 4, 5
FLAT = (CLIPS * FRAMES, 4, HEIGHT, WIDTH)
SIGMAS = [0.002, 0.5, 1.0, 20.0, 700.0]


class Recorder:
    """A network that keeps what it is called with and answers with one number."""

    def __init__(self, answer: float = 0.0) -> None:
        self.answer = answer

    def __call__(self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor, num_frames: int) -> Tensor:
        self.x, self.c_noise, self.context, self.vector, self.num_frames = x, c_noise, context, vector, num_frames
        return torch.full_like(x[:, :4], self.answer)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def conditioning() -> Conditioning:
    return Conditioning(noise(CLIPS, 1, 8, seed=1), noise(CLIPS, 4, HEIGHT, WIDTH, seed=2), noise(CLIPS, 6, seed=3))


def test_the_factors_at_sigma_1_are_known_by_heart():
    scaling = v_scaling(torch.tensor(1.0))
    half = 0.5**0.5
    assert scaling.skip.item() == 0.5
    assert scaling.out.item() == pytest.approx(-half)
    assert scaling.input.item() == pytest.approx(half)
    assert scaling.noise.item() == 0


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_input_has_unit_variance_and_the_training_weight_cancels_the_output_factor(sigma):
    level = torch.tensor(sigma, dtype=torch.float64)
    scaling = v_scaling(level)
    torch.testing.assert_close(scaling.input**2 * (1 + level**2), torch.ones_like(level))
    weight = (1 + level**2) / level**2  # spec 8.1
    torch.testing.assert_close(weight * scaling.out**2, torch.ones_like(level))  # spec 8.2


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_network_that_predicts_v_perfectly_recovers_the_clean_latent(sigma):
    clean, eps = noise(4, 5, seed=4, dtype=torch.float64), noise(4, 5, seed=5, dtype=torch.float64)
    level = torch.tensor(sigma, dtype=torch.float64)
    v = (eps - level * clean) / (1 + level**2).sqrt()
    scaling = v_scaling(level)
    torch.testing.assert_close(scaling.skip * (clean + level * eps) + scaling.out * v, clean)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_weighted_loss_on_the_clean_latent_is_the_plain_loss_on_v(sigma):
    clean, eps, answer = (noise(4, 5, seed=seed, dtype=torch.float64) for seed in (4, 5, 6))
    level = torch.tensor(sigma, dtype=torch.float64)
    scaling = v_scaling(level)
    denoised = scaling.skip * (clean + level * eps) + scaling.out * answer
    on_clean = (1 + level**2) / level**2 * (denoised - clean).square().mean()
    on_v = (answer - (eps - level * clean) / (1 + level**2).sqrt()).square().mean()
    torch.testing.assert_close(on_clean, on_v, rtol=1e-5, atol=0)  # spec 8.2; at 0.002 float64 cancels to 1e-6


def test_the_network_gets_the_scaled_latent_then_the_unscaled_still_for_every_frame(conditioning):
    unet, x = Recorder(), noise(*FLAT)
    Denoiser(unet, conditioning, FRAMES)(x, 3.0)
    torch.testing.assert_close(unet.x[:, :4], x / 10**0.5)
    for clip in range(CLIPS):
        rows = slice(clip * FRAMES, (clip + 1) * FRAMES)
        for given, source in (
            (unet.x[rows, 4:], conditioning.first),
            (unet.context[rows], conditioning.context),
            (unet.vector[rows], conditioning.vector),
        ):
            assert torch.equal(given, source[clip].expand_as(given))
    assert unet.num_frames == FRAMES
    torch.testing.assert_close(unet.c_noise, torch.full((CLIPS * FRAMES,), 3.0).log() / 4)


def test_the_answer_is_skip_times_x_plus_out_times_v(conditioning):
    x = noise(*FLAT)
    denoised = Denoiser(Recorder(2.0), conditioning, FRAMES)(x, 3.0)
    torch.testing.assert_close(denoised, x / 10 - 3 / 10**0.5 * 2)


def test_one_sigma_is_the_same_as_that_sigma_for_every_frame(conditioning):
    denoiser, x = Denoiser(Recorder(2.0), conditioning, FRAMES), noise(*FLAT)
    expected = denoiser(x, torch.full((len(x),), 3.0))
    assert torch.equal(denoiser(x, 3.0), expected)
    assert torch.equal(denoiser(x, torch.tensor(3.0)), expected)


def test_every_frame_is_denoised_at_its_own_sigma(conditioning):
    denoiser, x = Denoiser(Recorder(2.0), conditioning, FRAMES), noise(*FLAT)
    sigmas = torch.tensor([0.1, 1.0, 10.0, 20.0, 30.0, 700.0])
    together = denoiser(x, sigmas)
    for frame, sigma in enumerate(sigmas):
        assert torch.equal(together[frame], denoiser(x, sigma)[frame])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_network_computes_in_its_dtype_and_the_latent_stays_float32(conditioning, dtype):
    unet, x = Recorder(0.5), 700 * noise(*FLAT)
    before = x.clone()
    denoised = Denoiser(unet, conditioning, FRAMES, dtype)(x, 700.0)
    assert {unet.x.dtype, unet.context.dtype, unet.vector.dtype} == {dtype}
    assert unet.c_noise.dtype == denoised.dtype == torch.float32
    torch.testing.assert_close(denoised, Denoiser(Recorder(0.5), conditioning, FRAMES)(x, 700.0))
    assert torch.equal(x, before)


def test_frames_that_do_not_fit_the_conditioning_are_refused(conditioning):
    with pytest.raises(InputError, match="a batch of 5 frames for 2 conditioned clips of 3 frames: give 6"):
        Denoiser(Recorder(), conditioning, FRAMES)(noise(5, 4, HEIGHT, WIDTH), 1.0)
