"""In-between: the model is asked from both ends, and both ends are reached."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from fake_clips import Drifting, conditioning

from svd_core.errors import InputError
from svd_core.motion import Between, sample_sequential
from svd_core.sampling import SAMPLERS, edm_sigmas, noisy_start

FRAMES = 5


def latent(value, clips=1):
    return torch.full((clips, 4, 2, 4), value)


def between(held=None, clips=1, drift=0.1):
    inner = Drifting(conditioning(0.0, clips), FRAMES, drift)
    return Between(inner, conditioning(2.0, clips), held)


def values(x):
    return x[:, 0, 0, 0].tolist()


def test_each_frame_listens_to_the_nearer_end():
    model, x = between(), torch.zeros(FRAMES, 4, 2, 4)
    forward, backward = [0.0, 0.1, 0.2, 0.3, 0.4], [2.4, 2.3, 2.2, 2.1, 2.0]
    assert values(model.forward(x, 1.0)) == pytest.approx(forward)
    assert values(model.backward(x, 1.0)) == pytest.approx(backward)
    shares = [0.0, 0.15625, 0.5, 0.84375, 1.0]  # 3 t^2 - 2 t^3 at quarters
    blended = [a + share * (b - a) for share, a, b in zip(shares, forward, backward, strict=True)]
    assert values(model(x, 1.0)) == pytest.approx(blended)


def test_the_ends_of_a_loop_are_one_frame():
    looped = replace(between(), loop=True)(torch.zeros(FRAMES, 4, 2, 4), 1.0)
    assert values(looped)[0] == values(looped)[-1] == pytest.approx(1.0)
    assert values(looped)[1:-1] == values(between()(torch.zeros(FRAMES, 4, 2, 4), 1.0))[1:-1]
    held = (latent(0.5), latent(0.5))
    assert values(replace(between(held), loop=True)(torch.zeros(FRAMES, 4, 2, 4), 1.0))[0] == 0.5


def test_the_backward_model_sees_the_clip_in_reverse_and_the_end_picture():
    inner = Drifting(conditioning(0.0), FRAMES, 0.0, pull=1.0)  # answers with what it is shown
    x = torch.arange(FRAMES).float()[:, None, None, None].expand(FRAMES, 4, 2, 4)
    assert torch.equal(Between(inner, conditioning(2.0)).backward(x, 1.0), x)
    [(_, told)] = inner.asked
    assert told.context.mean() == 2.0


def test_a_host_is_told_that_frames_are_reversed_in_each_clip():
    told, x = [], torch.zeros(2 * FRAMES, 4, 2, 4)
    model = replace(between(clips=2), around=lambda frames: nullcontext(told.append(frames)))
    model.forward(x, 1.0)
    model(x, 1.0)
    assert told == [[4, 3, 2, 1, 0, 9, 8, 7, 6, 5]]


def test_two_model_calls_for_one_and_two_a_step_in_turns():
    sigmas = edm_sigmas(4)
    for sampler, calls in ((SAMPLERS["euler"], 8), (SAMPLERS["heun"], 14), (sample_sequential, 8)):
        model = between()
        sampler(model, noisy_start(torch.randn(FRAMES, 4, 2, 4), sigmas), sigmas)
        assert [rows for rows, _ in model.denoise.asked] == [FRAMES] * calls, sampler


@pytest.mark.parametrize("sampler", [*SAMPLERS.values(), sample_sequential])
def test_held_ends_are_the_pictures_with_every_sampler(sampler):
    sigmas = edm_sigmas(3)
    model = between((latent(0.5), latent(1.5)))
    sampled = sampler(model, noisy_start(torch.randn(FRAMES, 4, 2, 4), sigmas), sigmas)
    assert torch.equal(sampled[:1], latent(0.5))
    assert torch.equal(sampled[-1:], latent(1.5))


def test_clips_of_a_batch_keep_to_themselves():
    held = (torch.cat([latent(0.0), latent(9.0)]), torch.cat([latent(1.0), latent(8.0)]))
    got = between(held, clips=2)(torch.zeros(2 * FRAMES, 4, 2, 4), 1.0)
    one = between((latent(0.0), latent(1.0)))(torch.zeros(FRAMES, 4, 2, 4), 1.0)
    torch.testing.assert_close(got[:FRAMES], one)
    assert (values(got)[FRAMES], values(got)[-1]) == (9.0, 8.0)


def test_per_frame_settings_are_reversed_with_the_clip():
    inner = Drifting(conditioning(), FRAMES)
    curve = torch.arange(FRAMES).float()[None, :, None].expand(1, FRAMES, 12)
    told = between().with_conditioning(lambda given: replace(given, vector=curve))
    told(torch.zeros(FRAMES, 4, 2, 4), 1.0)
    seen = [given.vector[0, :, 0].tolist() for _, given in told.denoise.asked]
    assert sorted(seen) == [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]
    assert inner.asked == []


def test_noise_is_added_back_to_the_level_before_and_comes_from_the_seed():
    sigmas, levels = torch.tensor([10.0, 1.0, 0.0]), []

    class Watched:
        def forward(self, x, sigma):
            levels.append(("forward", float(x.std()), float(sigma[0])))
            return torch.zeros_like(x)

        def backward(self, x, sigma):
            levels.append(("backward", float(x.std()), float(sigma[0])))
            return torch.zeros_like(x)

    start = 10 * torch.randn(8, 4, 16, 16)
    one = sample_sequential(Watched(), start, sigmas, {"seed": 3})
    for (way, seen, told), (wanted_way, wanted) in zip(
        levels, [("forward", 10), ("backward", 10), ("forward", 1), ("backward", 1)], strict=True
    ):
        assert (way, told) == (wanted_way, wanted)
        assert seen == pytest.approx(wanted, rel=0.05)
    assert torch.equal(one, torch.zeros_like(start))

    class Keeping(Watched):
        def forward(self, x, sigma):
            return x / 2

        backward = forward

    same, again, other = (sample_sequential(Keeping(), start, sigmas, {"seed": seed}) for seed in (3, 3, 4))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_cancelling_stops_within_the_step():
    model, sigmas = between(), edm_sigmas(6)

    def callback(state):
        if state["i"] == 2:
            raise KeyboardInterrupt

    for sampler, calls in ((SAMPLERS["euler"], 6), (sample_sequential, 5)):
        model.denoise.asked.clear()
        with pytest.raises(KeyboardInterrupt):
            sampler(model, noisy_start(torch.randn(FRAMES, 4, 2, 4), sigmas), sigmas, callback=callback)
        assert len(model.denoise.asked) == calls


def test_ends_of_another_size_are_refused():
    with pytest.raises(InputError, match="bring both pictures to one size"):
        between((latent(0.0), torch.zeros(1, 4, 3, 4)))
    with pytest.raises(InputError, match=r"the end picture is \(24, 32\) and the clip \(16, 32\)"):
        Between(Drifting(conditioning(), FRAMES), conditioning(height=3))(torch.zeros(FRAMES, 4, 2, 4), 1.0)
