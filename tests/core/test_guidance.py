"""Every frame has its own guidance weight, and how the two passes are run does not change the clip."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from svd_core.conditioning import Conditioning
from svd_core.errors import InputError
from svd_core.sampling import (
    Denoiser,
    GuidanceInterval,
    GuidedDenoiser,
    constant_guidance,
    curve_guidance,
    edm_sigmas,
    linear_guidance,
    sample_euler,
    trapezoid_guidance,
    triangle_guidance,
    v_scaling,
)
from svd_core.sampling.schedule import SIGMA_MAX

CLIPS, FRAMES, HEIGHT, WIDTH = 2, 3, 4, 6
FLAT = (CLIPS * FRAMES, 4, HEIGHT, WIDTH)
CURVES = [linear_guidance, triangle_guidance, trapezoid_guidance]


class ToyNetwork(nn.Module):
    """Reads all its inputs and lets each frame see its clip's others, as the video UNet does. Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(8, 4, 3, padding=1)
            self.context, self.vector = nn.Linear(8, 4), nn.Linear(6, 4)
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor, num_frames: int) -> Tensor:
        self.calls.append((x, context))
        embedding = self.context(context[:, 0]) + self.vector(vector) + c_noise[:, None]
        frames = torch.tanh(self.conv(x) + embedding[:, :, None, None])
        clips = frames.unflatten(0, (-1, num_frames))
        before = clips.roll(1, dims=1)
        return (clips + 0.5 * before + 0.1 * clips.mean(1, keepdim=True)).flatten(0, 1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def unet() -> ToyNetwork:
    return ToyNetwork().requires_grad_(False)


@pytest.fixture
def conditioning() -> Conditioning:
    return Conditioning(noise(CLIPS, 1, 8, seed=1), noise(CLIPS, 4, HEIGHT, WIDTH, seed=2), noise(CLIPS, 6, seed=3))


@pytest.fixture
def guided(unet, conditioning) -> GuidedDenoiser:
    return GuidedDenoiser(unet, conditioning, linear_guidance(FRAMES, 1.0, 2.5))


@pytest.fixture
def x() -> Tensor:
    return 5 * noise(*FLAT)


# Weights


def test_linear_weights_rise_evenly_as_the_released_models_use_them():
    assert linear_guidance(4, 1.0, 2.5).tolist() == [1.0, 1.5, 2.0, 2.5]
    assert torch.equal(linear_guidance(25, 1.5, 3.0), torch.linspace(1.5, 3.0, 25))


def test_a_triangle_peaks_in_the_middle():
    weights = triangle_guidance(21, 1.0, 2.5)
    assert weights[10] == 2.5  # spec 5.4
    assert weights[0] == weights[20] == 1.0
    torch.testing.assert_close(weights[:11], torch.linspace(1.0, 2.5, 11))
    torch.testing.assert_close(weights, weights.flip(0))


def test_an_even_number_of_frames_has_no_peak():
    torch.testing.assert_close(triangle_guidance(4, 0.0, 1.0), torch.tensor([0, 2 / 3, 2 / 3, 0]))  # spec 5.4


def test_a_trapezoid_stays_at_its_maximum_and_not_at_the_reference_s_1():
    assert trapezoid_guidance(21, 1.0, 2.5).tolist() == [1.0, *[2.5] * 19, 1.0]
    torch.testing.assert_close(
        trapezoid_guidance(10, 1.0, 3.0, edge=0.3), torch.tensor([1, 2, 3, 3, 3, 3, 3, 3, 2, 1], dtype=torch.float32)
    )


@pytest.mark.parametrize("num_frames", [1, 2, 9, 14, 21, 25, 60])
@pytest.mark.parametrize("edge", [0, 0.1, 0.25, 0.5])
def test_a_trapezoid_is_symmetric_and_as_long_as_the_clip(num_frames, edge):
    weights = trapezoid_guidance(num_frames, 1.2, 2.7, edge)
    assert weights.shape == (num_frames,)
    assert torch.equal(weights, weights.flip(0))
    width = int(num_frames * edge)
    assert (weights[width : num_frames - width] == torch.tensor(2.7)).all()
    assert width == 0 or weights[0] == torch.tensor(1.2)


@pytest.mark.parametrize("edge", [-0.1, 0.51, math.nan])
def test_an_edge_longer_than_half_the_clip_is_refused(edge):
    with pytest.raises(InputError, match=f"edge {edge} is outside 0 to 0.5"):
        trapezoid_guidance(14, 1.0, 2.5, edge)


def test_a_constant_is_the_same_for_all_frames():
    assert constant_guidance(3, 2.5).tolist() == [2.5, 2.5, 2.5]


def test_a_curve_goes_straight_from_point_to_point_and_level_beyond_them():
    weights = curve_guidance(5, [(0.25, 1.0), (0.75, 3.0)])
    assert weights.tolist() == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert curve_guidance(3, [(0.4, 2.0)]).tolist() == [2.0, 2.0, 2.0]
    torch.testing.assert_close(curve_guidance(14, [(0, 1.0), (1, 2.5)]), linear_guidance(14, 1.0, 2.5))
    torch.testing.assert_close(curve_guidance(21, [(0, 1.0), (0.5, 2.5), (1, 1.0)]), triangle_guidance(21, 1.0, 2.5))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "a guidance curve without points"),
        ([(-0.1, 1.0)], "curve position -0.1 after -inf"),
        ([(0.0, 1.0), (1.1, 1.0)], "curve position 1.1 after 0"),
        ([(0.5, 1.0), (0.5, 2.0)], "curve position 0.5 after 0.5"),
        ([(0.5, 1.0), (0.2, 2.0)], "curve position 0.2 after 0.5"),
        ([(math.nan, 1.0)], "curve position nan"),
        ([(0.5, math.nan)], "guidance nan is not a finite number"),
    ],
)
def test_a_curve_that_is_none_is_refused_naming_the_fault(points, message):
    with pytest.raises(InputError, match=f"^{message}"):
        curve_guidance(14, points)


@pytest.mark.parametrize("curve", CURVES)
def test_one_frame_gets_one_finite_weight(curve):
    weights = curve(1, 1.5, 3.0)
    assert weights.shape == (1,)
    assert weights.item() in (1.5, 3.0)


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(curve, bad):
    with pytest.raises(InputError, match=f"guidance {bad} is not a finite number"):
        curve(14, 1.0, bad)


@pytest.mark.parametrize("curve", CURVES)
def test_no_frames_are_refused(curve):
    with pytest.raises(InputError, match="0 frames cannot be guided: ask for at least 1"):
        curve(0, 1.0, 2.5)


# Guided denoiser


def test_each_frame_goes_from_unconditional_towards_conditional_by_its_weight(guided, unet, conditioning, x):
    without = Denoiser(unet, conditioning.unconditional(), FRAMES)(x, 3.0)
    given = Denoiser(unet, conditioning, FRAMES)(x, 3.0)
    for frame, weight in enumerate([1.0, 1.75, 2.5] * CLIPS):
        expected = without[frame] + weight * (given[frame] - without[frame])
        torch.testing.assert_close(guided(x, 3.0)[frame], expected)


@pytest.mark.parametrize("sigma", [0.05, 3.0, 700.0])
def test_joint_and_split_passes_agree(guided, x, sigma):
    split = dataclasses.replace(guided, joint=False)
    torch.testing.assert_close(guided(x, sigma), split(x, sigma), rtol=1e-5, atol=1e-6)


def test_a_joint_pass_is_one_call_with_the_unconditional_clips_first(guided, unet, x):
    guided(x, 3.0)
    ((inputs, context),) = unet.calls
    half = len(x)
    assert inputs.shape[0] == context.shape[0] == 2 * half
    assert not inputs[:half, 4:].any()
    assert not context[:half].any()
    assert torch.equal(inputs[:half, :4], inputs[half:, :4])
    assert inputs[half:, 4:].any()
    assert context[half:].any()


def test_split_passes_are_two_calls_of_half_the_size(guided, unet, x):
    dataclasses.replace(guided, joint=False)(x, 3.0)
    assert [len(inputs) for inputs, _ in unet.calls] == [len(x), len(x)]


@pytest.mark.parametrize("joint", [True, False])
def test_weights_of_exactly_1_skip_the_unconditional_pass(guided, unet, conditioning, x, joint):
    plain = dataclasses.replace(guided, guidance=constant_guidance(FRAMES, 1.0), joint=joint)
    assert torch.equal(plain(x, 3.0), Denoiser(unet, conditioning, FRAMES)(x, 3.0))
    assert [len(inputs) for inputs, _ in unet.calls] == [len(x), len(x)]  # one each


@pytest.mark.parametrize("joint", [True, False])
def test_permuting_clips_permutes_results(guided, conditioning, x, joint):
    guided = dataclasses.replace(guided, joint=joint)
    order = [1, 0]
    swapped = Conditioning(conditioning.context[order], conditioning.first[order], conditioning.vector[order])
    x_swapped = x.unflatten(0, (CLIPS, FRAMES))[order].flatten(0, 1)
    result = dataclasses.replace(guided, conditioning=swapped)(x_swapped, 3.0)
    expected = guided(x, 3.0).unflatten(0, (CLIPS, FRAMES))[order].flatten(0, 1)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_a_clip_does_not_depend_on_the_company_it_is_sampled_in(guided, conditioning, x):
    alone = Conditioning(conditioning.context[:1], conditioning.first[:1], conditioning.vector[:1])
    expected = guided(x, 3.0)[:FRAMES]
    result = dataclasses.replace(guided, conditioning=alone)(x[:FRAMES], 3.0)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_guiding_the_network_is_guiding_the_denoised_latent(guided, unet, conditioning, x):
    """Spec 11 (d): one Euler step in terms of the guided network output."""
    sigma, sigma_next = 5.0, 3.0
    scaling = v_scaling(torch.tensor(sigma))
    outputs = []
    for rows in (conditioning.unconditional(), conditioning):
        frames = rows.repeat_frames(FRAMES)
        inputs = torch.cat([x * scaling.input, frames.first], dim=1)
        outputs.append(unet(inputs, scaling.noise.expand(len(x)), frames.context, frames.vector, FRAMES))
    without, given = outputs
    weights = torch.tensor([1.0, 1.75, 2.5] * CLIPS)[:, None, None, None]
    guided_v = without + weights * (given - without)
    step = sigma_next - sigma
    expected = x * (1 + step * sigma / (sigma**2 + 1)) + step / (sigma**2 + 1) ** 0.5 * guided_v
    result = sample_euler(guided, x, torch.tensor([sigma, sigma_next]))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_a_run_through_the_schedule_is_the_same_joint_or_split(guided, x):
    x, sigmas = 140 * x, edm_sigmas(6)
    joint = sample_euler(guided, x, sigmas)
    split = sample_euler(dataclasses.replace(guided, joint=False), x, sigmas)
    torch.testing.assert_close(joint, split, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sigma", "calls"), [(1.0, 1), (1.001, 2), (10.0, 2), (10.01, 1)])
def test_an_interval_guides_above_its_lower_end_up_to_its_upper_one(guided, unet, x, sigma, calls):
    limited = dataclasses.replace(guided, joint=False, interval=GuidanceInterval(1.0, 10.0))
    limited(x, sigma)
    assert len(unet.calls) == calls


def test_outside_an_interval_the_conditional_pass_stands_alone_and_inside_nothing_changes(
    guided, unet, conditioning, x
):
    limited = dataclasses.replace(guided, interval=GuidanceInterval(1.0, 10.0))
    assert torch.equal(limited(x, 20.0), Denoiser(unet, conditioning, FRAMES)(x, 20.0))
    assert torch.equal(limited(x, 3.0), guided(x, 3.0))


def test_clips_at_different_sigmas_are_judged_one_by_one(guided, unet, conditioning, x):
    limited = dataclasses.replace(guided, interval=GuidanceInterval(1.0, 10.0))
    sigmas = torch.tensor([3.0] * FRAMES + [20.0] * FRAMES)
    result = limited(x, sigmas)
    assert torch.equal(result[:FRAMES], guided(x, sigmas)[:FRAMES])
    torch.testing.assert_close(result[FRAMES:], Denoiser(unet, conditioning, FRAMES)(x, sigmas)[FRAMES:])


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_an_interval_up_to_the_schedules_maximum_holds_its_first_level(steps):
    """float32 puts that level two units in the last place above 700."""
    assert GuidanceInterval(1.0, SIGMA_MAX).holds(edm_sigmas(steps))[0]


@pytest.mark.parametrize(("weight", "frames"), [(1e39, 3), (1.0, 3.0), (1.0, True), (1.0, 0)])
def test_guidance_that_no_clip_can_have_is_refused(weight, frames):
    for make in (constant_guidance, lambda n, w: linear_guidance(n, 1.0, w), lambda n, w: curve_guidance(n, [(0, w)])):
        with pytest.raises(InputError, match=r"is not a finite number|cannot be guided"):
            make(frames, weight)


def test_guidance_is_float32_on_the_cpu_whatever_torchs_defaults_are():
    expected = [make(5, 1.0, 3.0) for make in CURVES]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            made = [make(5, 1.0, 3.0) for make in CURVES]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(here, there) for here, there in zip(expected, made, strict=True))


@pytest.mark.parametrize(("low", "high"), [(-1, 3), (3, 3), (4, 3), (math.nan, 3), (1, math.nan)])
def test_an_empty_interval_is_refused(low, high):
    with pytest.raises(InputError, match=f"guidance interval from {low} to {high} is empty"):
        GuidanceInterval(low, high)


def test_the_guided_latent_is_float32_when_the_network_is_not(guided, unet, x):
    before = x.clone()
    half = dataclasses.replace(guided, unet=unet.bfloat16(), dtype=torch.bfloat16)
    with torch.no_grad():
        denoised = half(x, 3.0)
    assert denoised.dtype == torch.float32
    assert unet.calls[0][0].dtype == torch.bfloat16
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(), (0,), (FRAMES, 1)])
def test_guidance_that_is_not_a_weight_a_frame_is_refused(unet, conditioning, shape):
    with pytest.raises(InputError, match=r"is not \(T,\): give one weight a frame"):
        GuidedDenoiser(unet, conditioning, torch.ones(shape))


def test_guidance_that_is_no_tensor_is_refused(unet, conditioning):
    with pytest.raises(InputError, match=r"guidance of class float is not \(T,\): give one weight a frame"):
        GuidedDenoiser(unet, conditioning, 1.5)


def test_a_batch_that_is_not_whole_clips_is_refused(guided, x):
    with pytest.raises(InputError, match="a batch of 5 frames for 2 conditioned clips of 3 frames: give 6"):
        guided(x[:5], 3.0)
