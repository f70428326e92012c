"""Long Take: windows cover the clip, agree where they overlap, and follow one another; fused, and in turns."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from fake_clips import Drifting, conditioning

from svd_core.errors import InputError
from svd_core.motion import LongTake, Statistics, Windows, hold_colours, sample_in_turns
from svd_core.motion.turns import SEED_ROUND, SEED_STEP
from svd_core.motion.windows import MOST_GAIN
from svd_core.sampling import SAMPLERS, edm_sigmas, noisy_start

LENGTH, OVERLAP, TOTAL = 4, 2, 9


def long_take(**changes):
    inner = Drifting(conditioning(0.0), LENGTH, drift=1.0)
    return replace(LongTake(inner, Windows(LENGTH, OVERLAP), "cpu"), **changes)


@pytest.mark.parametrize(("length", "overlap", "total"), [(4, 2, 4), (4, 2, 9), (4, 1, 11), (14, 7, 100), (5, 4, 6)])
def test_windows_cover_every_frame_with_the_overlap_or_more(length, overlap, total):
    windows = Windows(length, overlap)
    for shift in range(windows.hop):
        starts = windows.starts(total, shift)
        assert starts[0] == 0
        assert starts[-1] + length == total
        assert all(0 < after - before <= length - overlap for before, after in pairwise(starts))
        assert len(starts) <= len(windows.starts(total)) + 1
        weight = torch.zeros(total)
        for start, share in zip(starts, windows.shares(starts), strict=True):
            assert (share > 0).all()
            weight[start : start + length] += share
        assert (weight > 0).all()


def test_shares_of_neighbours_add_up_to_one_in_the_overlap():
    one, other = Windows(4, 2).shares([0, 2])
    torch.testing.assert_close(one[2:] + other[:2], torch.ones(2))
    assert one[:2].tolist() == other[2:].tolist() == [1, 1]


def test_windows_begin_elsewhere_at_every_noise_level_and_everywhere_in_turn():
    windows = Windows(14, 7)
    shifts = [windows.shift(float(sigma)) for sigma in edm_sigmas(25)[:-1]]
    assert set(shifts) == set(range(windows.hop))
    assert shifts == [windows.shift(float(sigma)) for sigma in edm_sigmas(25)[:-1]]
    most = max(shifts.count(shift) for shift in set(shifts))
    assert most <= len(shifts) / 3, "one start is taken far more often than others"


def test_each_window_goes_on_from_what_the_one_before_predicted():
    """A model that drifts by one a frame from its picture drifts evenly over the whole clip."""
    drifting = long_take()(torch.zeros(TOTAL, 4, 2, 4), torch.ones(TOTAL))
    assert drifting[:, 0, 0, 0].tolist() == pytest.approx(list(range(TOTAL)))


def test_one_window_is_the_model_itself():
    x = torch.randn(LENGTH, 4, 2, 4)
    take = long_take()
    assert torch.equal(take(x, 1.0), take.denoise(x, 1.0))


def test_the_network_sees_one_window_at_a_time_and_is_asked_once_for_each():
    take, sigmas = long_take(), edm_sigmas(3)
    SAMPLERS["euler"](take, noisy_start(torch.randn(TOTAL, 4, 2, 4), sigmas), sigmas)
    windows = take.windows
    asked = sum(len(windows.starts(TOTAL, windows.shift(float(sigma)))) for sigma in sigmas[:-1])
    assert [rows for rows, _ in take.denoise.asked] == [LENGTH] * asked


def test_settings_for_the_whole_clip_are_cut_into_windows():
    curve = torch.arange(TOTAL).float()[None, :, None].expand(1, TOTAL, 12)
    take = long_take().with_conditioning(lambda given: replace(given, vector=curve))
    take(torch.zeros(TOTAL, 4, 2, 4), 1.0)
    seen = [given.vector[0, :, 0].tolist() for _, given in take.denoise.asked]
    starts = take.windows.starts(TOTAL, take.windows.shift(1.0))
    assert seen == [list(range(start, start + LENGTH)) for start in starts]


def test_a_host_is_told_the_frames_of_each_window():
    told = []
    take = long_take(around=lambda frames: nullcontext(told.append(list(frames))))
    take(torch.zeros(TOTAL, 4, 2, 4), 1.0)
    starts = take.windows.starts(TOTAL, take.windows.shift(1.0))
    assert told == [list(range(start, start + LENGTH)) for start in starts]


def test_colours_are_held_to_the_first_frame():
    still = torch.randn(1, 4, 2, 4)
    held = long_take(colour=Statistics.of(still))(torch.randn(TOTAL, 4, 2, 4), 1.0)
    torch.testing.assert_close(held.mean(dim=(2, 3)), still.mean(dim=(2, 3)).expand(TOTAL, -1), rtol=1e-4, atol=1e-5)
    loose = long_take(colour=Statistics.of(still), colour_hold=0.0)
    x = torch.randn(TOTAL, 4, 2, 4)
    assert torch.equal(loose(x, 1.0), long_take()(x, 1.0))


def test_statistics_keep_what_lies_where():
    still, frames = torch.randn(1, 4, 3, 5), 0.3 * torch.randn(2, 4, 3, 5) + 2
    held = Statistics.of(still).impose(frames, 1.0)
    assert torch.equal(held.flatten(2).sort().values, still.flatten(2).sort().values.expand(2, -1, -1))
    assert torch.equal(held.flatten(2).argsort(), frames.flatten(2).argsort())
    torch.testing.assert_close(Statistics.of(still).impose(still, 1.0), still)
    torch.testing.assert_close(Statistics.of(still).impose(frames, 0.5), (held + frames) / 2)


def test_decoded_frames_are_held_to_the_first():
    generator = np.random.default_rng(0)
    first = generator.uniform(0.3, 0.6, (1, 12, 16, 3)).astype(np.float32)
    tint = np.array([1.1, 0.9, 1.0], np.float32)
    other = generator.uniform(0.2, 0.7, first.shape).astype(np.float32)
    frames = np.concatenate([first, 0.8 * first * tint + 0.1, other])
    given = frames.copy()
    held = hold_colours(frames, 1.0)
    for measured in (np.mean, np.std):
        wanted = np.broadcast_to(measured(first, axis=(1, 2)), (3, 3))
        np.testing.assert_allclose(measured(held, axis=(1, 2)), wanted, atol=1e-5)
    np.testing.assert_allclose(held[1], first[0], atol=1e-5)
    np.testing.assert_allclose(hold_colours(frames, 0.5), (held + frames) / 2, atol=1e-6)
    assert hold_colours(frames, 0.0) is frames
    assert np.array_equal(frames, given)


def test_noise_of_an_empty_frame_is_not_made_contrast():
    first = np.zeros((8, 8, 3), np.float32)
    first[:4] = 1.0
    flat = np.full((8, 8, 3), 0.4, np.float32)
    flat[0, 0] += 0.01
    held = hold_colours(np.stack([first, flat]), 1.0)[1]
    assert np.ptp(held) <= 0.01 * MOST_GAIN + 1e-6


def test_an_existing_clip_is_continued():
    given = torch.tensor([5.0, 6.0])[:, None, None, None].expand(2, 4, 2, 4)
    sigmas = edm_sigmas(3)
    take = long_take(continued=given)
    sampled = SAMPLERS["euler"](take, noisy_start(torch.randn(TOTAL, 4, 2, 4), sigmas), sigmas)
    assert torch.equal(sampled[:2], given)


# In turns

IN_TURNS = Windows(LENGTH, 1)
SCHEDULE = edm_sigmas(3)


def in_turns(take=None, sigmas=SCHEDULE, sampler="euler", **more):
    start = noisy_start(torch.randn(TOTAL, 4, 2, 4, generator=torch.Generator().manual_seed(0)), sigmas)
    return sample_in_turns(take or long_take(), start, sigmas, windows=IN_TURNS, sampler=SAMPLERS[sampler], **more)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_window_in_turn_goes_on_from_the_last_frame_of_the_one_before(sampler):
    """A model that drifts by one a frame from its picture drifts evenly over the whole clip, whatever the sampler."""
    made = in_turns(sampler=sampler)
    assert made[:, 0, 0, 0].tolist() == pytest.approx(list(range(TOTAL)), abs=1e-4)


def test_windows_in_turn_are_asked_once_for_each_step_and_show_the_model_their_picture():
    take = long_take()
    in_turns(take)
    pictures = [float(given.first[0, 0, 0, 0]) * 0.18215 for _, given in take.denoise.asked]
    assert [rows for rows, _ in take.denoise.asked] == [LENGTH] * 9
    assert pictures == pytest.approx([0, 0, 0, 3, 3, 3, 5, 5, 5], abs=1e-5)


def test_a_schedule_that_ends_in_noise_goes_on_from_what_was_denoised():
    take = long_take()
    end = in_turns(take, SCHEDULE[:-1])
    assert float(end.std()) > 1, "the state has noise left"
    pictures = [float(given.first[0, 0, 0, 0]) * 0.18215 for _, given in take.denoise.asked]
    assert pictures == pytest.approx([0, 0, 3, 3, 5, 5], abs=1e-5)


def test_whoever_watches_windows_in_turn_sees_the_whole_clip():
    said = []
    in_turns(callback=said.append)
    assert [each["i"] for each in said] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {each[name].shape for each in said for name in ("x", "denoised")} == {(TOTAL, 4, 2, 4)}
    seen = [each["denoised"][:, 0, 0, 0].round().tolist() for each in said]
    assert seen[0] == [0, 1, 2, 3, 3, 3, 3, 3, 3], "frames to come are shown as the last known one"
    assert seen[3] == [0, 1, 2, 3, 4, 5, 6, 6, 6]
    assert seen[-1] == list(range(TOTAL))


def test_noise_of_a_window_is_that_of_its_frames_in_the_clip():
    drawn, seen = [], []

    def noise(sigma, sigma_next):
        drawn.append(torch.arange(TOTAL).float()[:, None, None, None].expand(TOTAL, 4, 2, 4))
        return drawn[-1]

    def sampler(model, x, sigmas, extra_args, callback, disable, noise_sampler):
        seen.append(noise_sampler(sigmas[0], sigmas[1])[:, 0, 0, 0].tolist())
        return model(x, sigmas[0])

    sigmas = edm_sigmas(1)
    sample_in_turns(
        long_take(), torch.zeros(TOTAL, 4, 2, 4), sigmas, noise_sampler=noise, windows=IN_TURNS, sampler=sampler
    )
    assert seen == [[0, 1, 2, 3], [3, 4, 5, 6], [5, 6, 7, 8]]


def seeds_of_windows(args, total=TOTAL):
    seen = []

    def sampler(model, x, sigmas, extra_args, callback, disable):
        seen.append(extra_args.pop("seed", None))
        return model(x, sigmas[0])

    start = torch.zeros(total, 4, 2, 4)
    sample_in_turns(long_take(), start, edm_sigmas(1), args, windows=IN_TURNS, sampler=sampler)
    return seen


def test_each_window_has_a_seed_and_arguments_of_its_own():
    given = {"seed": 5}
    assert seeds_of_windows(given) == [5, 5 + SEED_STEP, (5 + 2 * SEED_STEP) % SEED_ROUND]
    assert given == {"seed": 5}
    assert seeds_of_windows(None) == [None, None, None]


def test_no_window_has_the_seed_of_another_window_of_a_seed_nearby():
    """Seeds nearby are what a scout, a sweep and a seed widget that counts up try."""
    seeds = sorted(seed for first in range(20) for seed in seeds_of_windows({"seed": first}, total=61))
    assert len(seeds) == 20 * 20
    assert len(set(seeds)) == len(seeds)


def test_a_sampler_can_add_one_to_the_seed_of_every_window():
    """ComfyUI's do on a CPU, and a generator takes 64 bits. Some seeds here lead a later window to the top of them."""
    highest = [(top - turn * SEED_STEP) % (top + 1) for top in (2**64 - 2, 2**64 - 1) for turn in (1, 2)]
    for seed in (2**64 - 2, 2**64 - 3, *highest):
        for each in seeds_of_windows({"seed": seed}):
            torch.Generator().manual_seed(each + 1)


def test_a_clip_is_continued_in_turns_and_settings_are_cut():
    given = torch.full((1, 4, 2, 4), 7.0)
    curve = torch.arange(TOTAL).float()[None, :, None].expand(1, TOTAL, 12)
    take = long_take(continued=given).with_conditioning(lambda told: replace(told, vector=curve))
    assert torch.equal(in_turns(take)[:1], given)
    seen = [told.vector[0, :, 0].tolist() for _, told in take.denoise.asked]
    assert seen[::3] == [[0, 1, 2, 3], [3, 4, 5, 6], [5, 6, 7, 8]]


def test_windows_share_one_frame_in_turns_and_half_of_them_fused():
    assert Windows.of(14, fused=False) == Windows.of(14, fused=False, overlap=1) == Windows(14, 1)
    assert Windows.of(14, fused=True) == Windows(14, 7)
    assert Windows.of(14, fused=True, overlap=3) == Windows(14, 3)
    with pytest.raises(InputError, match="an overlap of 2 for windows in turns, which share one frame: leave it at 0"):
        Windows.of(14, fused=False, overlap=2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="windows of 4 frames are longer than the clip of 3"):
        sample_in_turns(long_take(), torch.zeros(3, 4, 2, 4), edm_sigmas(1), windows=IN_TURNS)
    with pytest.raises(InputError, match="windows of 14 frames are longer than the clip of 9: ask for at least 14"):
        Windows(14, 7).starts(9)
    for overlap in (0, 4, 5):
        with pytest.raises(InputError, match="overlap must be at least 1 and shorter than the window"):
            Windows(4, overlap)
    with pytest.raises(InputError, match="4 given frames fill a window of 4: continue from fewer"):
        long_take(continued=torch.zeros(4, 4, 2, 4))
