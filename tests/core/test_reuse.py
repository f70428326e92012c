"""Deep features kept between steps: off they change no bit, on they leave out what they say and mix nothing up."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import TINY, write_checkpoint
from test_unet import SMALL, inputs
from weights import randomise, relative

import svd_core
from svd_core.conditioning import Conditioning
from svd_core.errors import InputError
from svd_core.model.reuse import MOST_KEPT, FeatureReuse, kept_bytes
from svd_core.model.unet import VideoUNet
from svd_core.planning import Job, plan_render
from svd_core.sampling import GuidedDenoiser, edm_sigmas, linear_guidance, sample_euler
from svd_core.settings import Settings

FRAMES, HEIGHT, WIDTH = 3, 9, 13


@pytest.fixture(scope="module")
def unet():
    return randomise(VideoUNet(SMALL)).requires_grad_(False)


@pytest.fixture
def given():
    return inputs(SMALL, 1, FRAMES, HEIGHT, WIDTH)


@pytest.fixture
def ran(unet):
    """Names of the blocks that ran."""
    names = []
    blocks = {"first": unet.input_blocks[1], "middle": unet.middle_block, "last": unet.output_blocks[-1]}
    hooks = [block.register_forward_hook(lambda *_, name=name: names.append(name)) for name, block in blocks.items()]
    yield names
    for hook in hooks:
        hook.remove()


def at(given, level, **changed):
    return {**given, "c_noise": torch.full((FRAMES,), float(level)), **changed}


def test_a_threshold_of_0_is_the_plain_network(unet, given):
    reuse = FeatureReuse(0.0)
    for level in (2, 1, 1, 0):
        assert torch.equal(unet(**at(given, level), reuse=reuse), unet(**at(given, level)))
    assert (reuse.computed, reuse.reused) == (4, 0)


def test_deep_blocks_run_once_where_all_is_near(unet, given, ran):
    reuse = FeatureReuse(1.0)
    for level in (2, 1.9, 1.8):
        unet(**at(given, level), reuse=reuse)
    assert ran == ["first", "middle", "last"] + 2 * ["first", "last"]
    assert (reuse.computed, reuse.reused) == (1, 2)
    assert reuse.report() == ("reuse 1 (approximate): 2 of 3 UNet calls took the deep features of an earlier step")


def test_the_same_call_is_the_same_bits_and_a_near_one_is_near(unet, given):
    reuse = FeatureReuse(1.0)
    exact = unet(**at(given, 1), reuse=reuse)
    assert torch.equal(unet(**at(given, 1), reuse=reuse), exact)
    near = unet(**at(given, 0.9), reuse=reuse)
    assert reuse.reused == 2
    assert 0 < relative(near, unet(**at(given, 0.9))) < 0.2


def test_what_changes_more_than_the_threshold_is_computed(unet, given):
    reuse = FeatureReuse(0.01)
    unet(**at(given, 2), reuse=reuse)
    other = at(given, 1, x=-given["x"])
    assert torch.equal(unet(**other, reuse=reuse), unet(**other))
    assert (reuse.computed, reuse.reused) == (2, 0)


def test_guidance_branches_keep_their_own(unet, given):
    reuse = FeatureReuse(1.0)
    with_picture, without = at(given, 1), at(given, 1, context=torch.zeros_like(given["context"]))
    exact = [unet(**branch, reuse=reuse) for branch in (with_picture, without)]
    later = [unet(**{**branch, "c_noise": branch["c_noise"] - 1e-6}, reuse=reuse) for branch in (without, with_picture)]
    assert (reuse.computed, reuse.reused) == (2, 2)
    assert relative(later[0], exact[1]) < 1e-4 and relative(later[1], exact[0]) < 1e-4
    assert relative(exact[0], exact[1]) > 1e-3


def test_a_clip_seen_from_both_ends_keeps_both(unet, given, ran):
    reuse = FeatureReuse(1.0)
    for level in (2, 1):
        for x in (given["x"], given["x"].flip(0)):
            unet(**at(given, level, x=x), reuse=reuse)
    assert ran.count("middle") == 2 and reuse.reused == 2


def test_a_call_that_is_repeated_finds_its_own_again(unet, given):
    """As after memory has run out in the middle: the calls that had succeeded run again."""
    states = [given["x"], given["x"] + 0.01]
    smooth, interrupted = FeatureReuse(0.5), FeatureReuse(0.5)
    for level, x in zip((2, 1), states, strict=True):
        expected = unet(**at(given, level, x=x), reuse=smooth)
        found = [unet(**at(given, level, x=x), reuse=interrupted) for _ in range(2)]
        assert all(torch.equal(each, expected) for each in found)


def test_no_more_is_kept_than_was_counted(unet, given):
    reuse = FeatureReuse(1.0)
    for shift in range(MOST_KEPT + 2):  # as many calls at one noise level
        unet(**at(given, 1, x=given["x"] + shift), reuse=reuse)
    assert len(reuse._kept) == MOST_KEPT
    held = sum(tensor.nbytes for kept in reuse._kept for tensor in (kept.seen, kept.first, kept.deep))
    assert held == kept_bytes(MOST_KEPT * FRAMES, SMALL.level_channels[0], HEIGHT, WIDTH, 4)
    reuse.forget()
    assert not reuse._kept


@pytest.mark.parametrize("joint", [True, False])
def test_a_guided_run_calls_the_deep_blocks_less_and_stays_near(unet, ran, joint):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    cond = Conditioning(draw(1, 1, SMALL.context_dim), draw(1, 4, 8, 8), draw(1, SMALL.vector_dim))
    start, sigmas = 700 * draw(FRAMES, 4, 8, 8), edm_sigmas(6)
    results, calls = [], []
    for threshold in (0.0, 0.3):
        ran.clear()
        reuse = FeatureReuse(threshold)
        network = lambda *args, reuse=reuse, **more: unet(*args, **more, reuse=reuse)  # noqa: E731
        denoise = GuidedDenoiser(network, cond, linear_guidance(FRAMES, 1.5, 3), joint)
        results.append(sample_euler(denoise, start, sigmas))
        calls.append(ran.count("middle"))
        assert ran.count("first") == reuse.computed + reuse.reused == (6 if joint else 12)
        assert ran.count("middle") == reuse.computed
    assert calls[1] < calls[0]
    assert relative(results[1], results[0]) < 0.5


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(InputError, match=re.escape(f"reuse {threshold} is outside 0 to 1")):
        FeatureReuse(threshold)


# In the pipeline


@pytest.fixture(scope="module")
def svd(tmp_path_factory):
    return svd_core.load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("reuse") / "tiny.safetensors"))


@pytest.fixture
def picture():
    return torch.rand(64, 128, 3, generator=torch.Generator().manual_seed(0)).numpy()


def test_a_clip_says_what_was_left_out(svd, picture):
    settings = Settings(frames=2, steps=6, reuse=0.9)
    clip = svd.render(picture, settings)
    counted = re.fullmatch(r"reuse 0.9 \(approximate\): (\d+) of 6 UNet calls took .*", clip.reuse_report)
    assert counted and int(counted[1]) > 0
    assert not np.array_equal(clip.frames, svd.render(picture, replace(settings, reuse=0.0)).frames)


def test_without_it_nothing_is_said_and_nothing_changes(svd, picture):
    clip = svd.render(picture, Settings(frames=2, steps=3))
    assert clip.reuse_report == ""
    # Nothing changes by less than a millionth, so all is computed.
    same = svd.render(picture, Settings(frames=2, steps=3, reuse=1e-6))
    assert np.array_equal(same.frames, clip.frames)


def test_a_plan_counts_what_is_kept():
    size = {"frames": 4, "width": 512, "height": 256, "dtype": torch.float16}
    plain, kept = (plan_render(Job(TINY, **size, reuse=reuse), 2**33).sample_bytes for reuse in (False, True))
    assert kept - plain == kept_bytes(2 * 4, TINY.unet.level_channels[0], 32, 64, 2)
