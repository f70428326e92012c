"""At the released size, from one file of random weights: our loader against ComfyUI's own, in the same native graph."""

from __future__ import annotations

import gc

import pytest
import torch
from native_pair import Trio, submodule
from test_native_nodes import condition, native, sample  # noqa: F401
from weights import relative

from benchmarks.__main__ import BIG_FILE
from benchmarks.big_file import write_big_file

FRAMES, STEPS, SEED = 4, 2, 11


def render(native, trio: Trio) -> torch.Tensor:  # noqa: F811
    """A short clip at 128x64 through native conditioning and KSampler."""
    image = torch.rand(1, 64, 128, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return sample(native, trio.model, condition(native, trio, image, FRAMES), STEPS)


def released(trio: Trio) -> None:
    """Give a model's memory back before the next one comes."""
    import comfy.model_management

    del trio
    comfy.model_management.unload_all_models()
    gc.collect()


@pytest.mark.slow
def test_our_loader_equals_comfyuis_own(native, pack):  # noqa: F811
    import comfy.sd

    write_big_file(BIG_FILE)
    torch.set_num_threads(2)
    loaded = submodule(pack, "nodes.bridge.loader").load(BIG_FILE)
    ours = render(native, Trio(loaded.model, loaded.clip_vision, loaded.vae))
    released(loaded)
    del loaded
    model, _, vae, clip_vision = comfy.sd.load_checkpoint_guess_config(
        str(BIG_FILE), output_vae=True, output_clip=False, output_clipvision=True
    )
    theirs = render(native, Trio(model, clip_vision, vae))
    assert relative(ours, theirs) < 1e-4
    print(f"full size, {FRAMES} frames, {STEPS} steps: relative difference {relative(ours, theirs):.1e}")
