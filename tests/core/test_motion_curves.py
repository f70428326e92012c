"""Curves: a value for each frame, embedded as the model embeds one for all."""

import pytest
import torch
from fake_clips import conditioning

from svd_core.conditioning import Conditioning, MicroConditioning
from svd_core.errors import InputError
from svd_core.motion import curve_values, with_curves
from svd_core.sampling import GuidedDenoiser, constant_guidance

WIDTH = 48


def told(bucket=127.0, augmentation=0.02, clips=1):
    vector = MicroConditioning(7, bucket, augmentation).vector(WIDTH).expand(clips, -1)
    plain = conditioning(clips=clips)
    return Conditioning(plain.context, plain.first, vector)


def test_values_from_a_number_a_list_and_points():
    assert curve_values(2.5, 3).tolist() == [2.5] * 3
    assert curve_values([2.5], 3).tolist() == [2.5] * 3
    assert curve_values([1, 2, 4], 3).tolist() == [1, 2, 4]
    assert curve_values([(0, 0), (0.5, 10), (1, 0)], 5).tolist() == [0, 5, 10, 5, 0]
    with pytest.raises(InputError, match="2 values for 3 frames: give one value, or one for each frame"):
        curve_values([1, 2], 3)
    with pytest.raises(InputError, match="positions must rise"):
        curve_values([(1, 0), (0, 1)], 3)


def test_each_frame_is_embedded_as_that_value_alone():
    curved = with_curves(told(), torch.tensor([0.0, 127.0, 255.0]), torch.tensor([0.0, 0.02, 1.0]))
    wanted = [MicroConditioning(7, *pair).vector(WIDTH)[0] for pair in ((0, 0.0), (127, 0.02), (255, 1.0))]
    torch.testing.assert_close(curved.vector[0], torch.stack(wanted))


def test_one_curve_leaves_the_other_setting():
    curved = with_curves(told(augmentation=0.3), torch.tensor([10.0, 20.0]), None)
    torch.testing.assert_close(curved.vector[0, 1], MicroConditioning(7, 20, 0.3).vector(WIDTH)[0])
    assert with_curves(told(), None, None).vector.ndim == 2


def test_a_constant_curve_is_the_constant_and_rows_follow_frames():
    seen = []

    def unet(x, c_noise, context, vector, num_frames):
        seen.append(vector)
        return torch.zeros_like(x[:, :4])

    for cond in (told(clips=2), with_curves(told(clips=2), torch.full((3,), 127.0), None)):
        GuidedDenoiser(unet, cond, constant_guidance(3, 2.0))(torch.zeros(6, 4, 2, 4), 1.0)
    torch.testing.assert_close(seen[0], seen[1])
    curve = torch.tensor([1.0, 2.0, 3.0])
    GuidedDenoiser(unet, with_curves(told(clips=2), curve, None), constant_guidance(3, 1.0))(
        torch.zeros(6, 4, 2, 4), 1.0
    )
    wanted = torch.cat([MicroConditioning(7, value, 0.02).vector(WIDTH) for value in (1, 2, 3)])
    torch.testing.assert_close(seen[2], wanted.repeat(2, 1))


def test_curves_out_of_range_or_of_other_lengths_are_refused():
    with pytest.raises(InputError, match="the motion bucket curve goes from -1 to 5"):
        with_curves(told(), torch.tensor([-1.0, 5.0]), None)
    with pytest.raises(InputError, match="the augmentation curve goes from 0 to 11"):
        with_curves(told(), None, torch.tensor([0.0, 11.0]))
    with pytest.raises(InputError, match="curves of 2 and 3 frames"):
        with_curves(told(), torch.zeros(2), torch.zeros(3))
    cond = with_curves(told(), torch.zeros(2), None)
    with pytest.raises(InputError, match="motion settings for 2 frames and a clip of 3"):
        cond.repeat_frames(3)
