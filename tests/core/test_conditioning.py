"""The numbers that describe a clip reach the network as it was trained on them."""

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from svd_core.conditioning import (
    Conditioning,
    MicroConditioning,
    augment,
    draw_noise,
    seeded_generator,
    warnings_for,
)
from svd_core.config import Variant
from svd_core.errors import InputError
from svd_core.sinusoid import sinusoid


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def conditioning() -> Conditioning:
    return Conditioning(noise(2, 1, 8, seed=1), noise(2, 4, 3, 5, seed=2), noise(2, 6, seed=3))


# Micro-conditioning


def test_the_vector_of_the_usual_settings_has_the_published_values():
    vector = MicroConditioning().vector()
    assert vector.shape == (1, 768)
    assert vector.dtype == torch.float32
    fps, motion, augmentation = vector[0].split(256)
    # Spec 1.2: S(6, 256) for 7 frames per second, S(127, 256), S(0.02, 256).
    published = {
        "fps": (fps, {0: 0.960170, 1: 0.765001, 128: -0.279415, 129: -0.644029}, 113.80752),
        "motion": (motion, {0: 0.232359, 128: 0.972630}, 78.63788),
        "augmentation": (augmentation, {0: 0.999800, 128: 0.019999}, 128.28654),
    }
    for part, entries, total in published.values():
        for index, value in entries.items():
            assert part[index].item() == pytest.approx(value, abs=1e-6)
        assert part.double().sum().item() == pytest.approx(total, abs=1e-4)


def test_a_third_of_the_vector_goes_to_each_number_in_order():
    vector = MicroConditioning(fps=12, motion_bucket=40, augmentation=0.5).vector(48)
    expected = torch.cat([sinusoid(torch.tensor(value), 16) for value in (11.0, 40.0, 0.5)])
    assert torch.equal(vector, expected[None])


@pytest.mark.parametrize("width", [0, -3, 256, 767])
def test_a_vector_that_three_numbers_cannot_share_is_refused(width):
    with pytest.raises(InputError, match=f"a vector of width {width} has no room for three equal parts"):
        MicroConditioning().vector(width)


@pytest.mark.parametrize("fps", [0, -7, 0.99, math.nan, math.inf])
def test_fps_below_1_is_refused_naming_value_limit_and_remedy(fps):
    with pytest.raises(InputError, match=f"fps {fps} is outside 1 to 1024: give frames per second"):
        MicroConditioning(fps=fps)


@pytest.mark.parametrize("bucket", [-1, 1024, math.nan])
def test_a_motion_bucket_outside_its_range_is_refused(bucket):
    with pytest.raises(InputError, match=f"motion bucket {bucket} is outside 0 to 1023: 127 is usual"):
        MicroConditioning(motion_bucket=bucket)


@pytest.mark.parametrize("augmentation", [-0.01, 10.5, math.nan, math.inf])
def test_an_augmentation_outside_its_range_is_refused(augmentation):
    with pytest.raises(InputError, match=f"augmentation {augmentation} is outside 0 to 10: 0.02 is usual"):
        MicroConditioning(augmentation=augmentation)


@pytest.mark.parametrize("name", ["fps", "motion_bucket", "augmentation"])
@pytest.mark.parametrize("value", [None, "7", [7.0], 7j])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(InputError, match=re.escape(f"{name.replace('_', ' ')} {value!r} is not a number: ")):
        MicroConditioning(**{name: value})


@pytest.mark.parametrize("seven", [7, 7.0, np.int64(7), np.float32(7), torch.tensor(7)])
def test_numbers_of_numpy_and_torch_are_numbers(seven):
    assert torch.equal(MicroConditioning(seven, seven, seven).vector(), MicroConditioning(7, 7, 7).vector())


@pytest.mark.parametrize("limits", [(1, 0, 0), (1024, 1023, 10)])
def test_the_limits_themselves_are_fine(limits):
    assert torch.isfinite(MicroConditioning(*limits).vector()).all()


# Advice


@pytest.mark.parametrize(("height", "width"), [(576, 1024), (1024, 576)])
@pytest.mark.parametrize("fps", [6, 7, 31])
def test_settings_of_the_trained_range_need_no_advice(height, width, fps):
    assert warnings_for(MicroConditioning(fps=fps, motion_bucket=255), height, width) == []


def test_a_size_is_compared_with_what_this_model_was_trained_on():
    demo = Variant("demo", frames=14, steps=25, min_guidance=1, max_guidance=2, height=64, width=128)
    assert warnings_for(MicroConditioning(), 64, 128, demo) == []
    (advice,) = warnings_for(MicroConditioning(), 576, 1024, demo)
    assert advice.startswith("The size 1024x576 is not 128x64")


@pytest.mark.parametrize(
    ("micro", "size", "words"),
    [
        (MicroConditioning(), (512, 768), "The size 768x512 is not 1024x576"),
        (MicroConditioning(motion_bucket=256), (576, 1024), "Motion bucket 256 is above 255"),
        (MicroConditioning(fps=5), (576, 1024), "At 5 frames per second, below 6"),
        (MicroConditioning(fps=32), (576, 1024), "At 32 frames per second, above 31"),
    ],
)
def test_each_setting_out_of_the_trained_range_gets_one_sentence(micro, size, words):
    (advice,) = warnings_for(micro, *size)
    assert advice.startswith(words)


def test_advice_adds_up():
    assert len(warnings_for(MicroConditioning(fps=40, motion_bucket=300), 64, 64)) == 3


# Conditioning


def test_unconditional_forgets_the_still_and_keeps_the_vector(conditioning):
    without = conditioning.unconditional()
    assert not without.context.any()
    assert not without.first.any()
    assert torch.equal(without.vector, conditioning.vector)
    assert without.context.shape == conditioning.context.shape
    assert without.first.shape == conditioning.first.shape
    assert conditioning.context.any()


def test_frames_of_one_clip_follow_each_other(conditioning):
    frames = conditioning.repeat_frames(3)
    assert frames.rows == 6
    for name in ("context", "first", "vector"):
        clips = getattr(frames, name).unflatten(0, (2, 3))
        assert torch.equal(clips, getattr(conditioning, name)[:, None].expand_as(clips))


def test_following_appends_the_rows_of_the_other(conditioning):
    both = conditioning.unconditional().followed_by(conditioning)
    assert both.rows == 4
    assert not both.first[:2].any()
    assert torch.equal(both.first[2:], conditioning.first)
    assert torch.equal(both.context[2:], conditioning.context)
    assert torch.equal(both.vector, conditioning.vector.repeat(2, 1))


def test_moving_changes_device_and_dtype_of_all_three(conditioning):
    for moved in (conditioning.to(dtype=torch.float16), conditioning.to("meta", torch.float16)):
        assert {moved.context.dtype, moved.first.dtype, moved.vector.dtype} == {torch.float16}
    assert moved.context.is_meta
    assert moved.first.is_meta
    assert moved.vector.is_meta
    assert conditioning.first.dtype == torch.float32


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 8), (2, 4, 3, 5), (2, 6)),
        ((2, 1, 8), (4, 3, 5), (2, 6)),
        ((2, 1, 8), (2, 4, 3, 5), (6,)),
        ((1, 1, 8), (2, 4, 3, 5), (2, 6)),
        ((2, 1, 8), (2, 4, 3, 5), (1, 6)),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(shapes):
    with pytest.raises(InputError, match=r"give context \(B, L, D\), first \(B, 4, h, w\), vector \(B, V\)"):
        Conditioning(*(torch.zeros(shape) for shape in shapes))


# Noise on the still


def test_a_seed_draws_the_same_float32_noise_every_time_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first = draw_noise((1, 3, 8, 8), 5)
    assert first.dtype == torch.float32
    assert first.device.type == "cpu"
    assert torch.equal(first, draw_noise((1, 3, 8, 8), 5))
    assert not torch.equal(first, draw_noise((1, 3, 8, 8), 6))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_goes_on_where_it_was():
    generator = seeded_generator(5)
    first, second = (draw_noise((3, 4), generator) for _ in range(2))
    assert torch.equal(first, draw_noise((3, 4), 5))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_of_more_than_64_bits_is_refused(seed):
    with pytest.raises(InputError, match=f"seed {seed} does not fit in 64 bits: choose one from 0 to"):
        draw_noise((1,), seed)


@pytest.mark.parametrize("seed", [None, 1.5, "7"])
def test_a_seed_that_is_not_whole_is_refused(seed):
    with pytest.raises(InputError, match=f"seed {seed!r} is not a whole number: choose one from 0 to"):
        draw_noise((1,), seed)


@pytest.mark.parametrize("seed", [2**64 - 1, 0])
def test_the_largest_and_the_smallest_seed_of_the_interface_work(seed):
    assert torch.isfinite(draw_noise((4,), seed)).all()


def test_augmentation_is_in_units_of_pixels_from_minus_1_to_1():
    pixels, unit = torch.rand(1, 3, 64, 64) * 2 - 1, noise(1, 3, 64, 64)
    before = pixels.clone()
    noisy = augment(pixels, 0.1, unit)
    assert (noisy - pixels).std().item() == pytest.approx(0.1, rel=0.02)  # not ComfyUI's 0.2 (spec 10)
    torch.testing.assert_close(noisy, pixels + 0.1 * unit)
    assert torch.equal(pixels, before)


def test_no_augmentation_leaves_the_still_as_it_is():
    pixels = noise(1, 3, 4, 4, seed=1)
    assert torch.equal(augment(pixels, 0.0, noise(1, 3, 4, 4)), pixels)


def test_noise_of_another_shape_is_refused_and_not_broadcast():
    with pytest.raises(InputError, match=r"noise of shape \(1, 1, 4, 4\) for pixels of shape \(1, 3, 4, 4\)"):
        augment(torch.zeros(1, 3, 4, 4), 0.1, torch.zeros(1, 1, 4, 4))
