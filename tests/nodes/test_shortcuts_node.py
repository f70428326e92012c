"""The approximate shortcuts in the real ComfyUI: what they leave out, what they leave alone, and what they refuse."""

import logging

import pytest
import torch
from test_motion_nodes import condition, conds, counted, ksampled, native, sample  # noqa: F401
from weights import relative

STEPS = 6


def shortened(call, model, **given):
    return call("StableVideoShortcuts", model=model, **({"reuse": 0.0} | given))


def middles(loaded) -> tuple[list, object]:
    """A list that grows with each run of the deepest block, and the hook to remove."""
    ran = []
    unet = loaded.model.model.diffusion_model
    return ran, unet.middle_block.register_forward_hook(lambda *_: ran.append(1))


def test_all_off_is_the_same_clip_and_the_model_is_left_alone(call, loaded, sample):  # noqa: F811
    plain = sample(steps=STEPS)["samples"]
    shortened_model = shortened(call, loaded.model, reuse=1.0)
    assert torch.equal(sample(shortened(call, loaded.model), steps=STEPS)["samples"], plain)
    assert torch.equal(sample(steps=STEPS)["samples"], plain)
    assert not torch.equal(sample(shortened_model, steps=STEPS)["samples"], plain)


def test_reuse_leaves_deep_blocks_out_and_says_so(call, loaded, sample, caplog):  # noqa: F811
    plain = sample(steps=STEPS)["samples"]
    ran, hook = middles(loaded)
    try:
        with caplog.at_level(logging.INFO):
            near = sample(shortened(call, loaded.model, reuse=0.3), steps=STEPS)["samples"]
    finally:
        hook.remove()
    assert 2 <= len(ran) < 2 * STEPS
    assert f"reuse 0.3 (approximate): {2 * STEPS - len(ran)} of {2 * STEPS} UNet calls" in caplog.text
    assert 0 < relative(near, plain) < 0.5


def test_a_patch_on_the_blocks_has_everything_computed(call, loaded, sample):  # noqa: F811
    patched = loaded.model.clone()
    patched.set_model_output_block_patch(lambda images, skip, options: (images * 1.01, skip))
    expected = sample(patched, steps=STEPS)["samples"]
    assert torch.equal(sample(shortened(call, patched, reuse=1.0), steps=STEPS)["samples"], expected)


def test_outside_the_interval_a_step_has_one_pass(call, loaded, sample):  # noqa: F811
    model, rows = counted(loaded.model)
    expected = sample(model, steps=STEPS)["samples"]
    assert len(rows) == 2 * STEPS
    rows.clear()
    limited = sample(shortened(call, model, guidance_low=1.0, guidance_high=100.0), steps=STEPS)["samples"]
    assert STEPS < len(rows) < 2 * STEPS
    assert relative(limited, expected) > 1e-4
    rows.clear()
    unguided = sample(shortened(call, model, guidance_high=0.001), steps=STEPS)["samples"]
    assert len(rows) == STEPS
    assert torch.equal(unguided, sample(model, steps=STEPS, min_guidance=1.0, max_guidance=1.0)["samples"])


def test_a_cfg_pp_sampler_is_eulers_outside_the_interval(call, loaded, conds):  # noqa: F811
    """It steps along the unconditional result, which one pass does not have: the conditional one stands in for it."""
    model = shortened(call, loaded.model, reuse=0.0, guidance_high=0.001)
    plain, cfg_pp = (ksampled(model, conds, conds[2], name, steps=STEPS) for name in ("euler", "euler_cfg_pp"))
    assert relative(cfg_pp, plain) < 1e-4


def test_comfyuis_own_sampler_takes_both(call, loaded, conds):  # noqa: F811
    model, rows = counted(shortened(call, loaded.model, reuse=0.5, guidance_low=1.0))
    assert torch.isfinite(ksampled(model, conds, conds[2], steps=STEPS)).all()
    assert len(rows) < 2 * STEPS


def test_the_native_model_is_guided_in_the_interval_and_refused_for_reuse(call, native, input_error):  # noqa: F811
    shortened(call, native.model, guidance_low=1.0)
    with pytest.raises(input_error, match="reuse needs the MODEL of Load Stable Video"):
        shortened(call, native.model, reuse=0.1)
