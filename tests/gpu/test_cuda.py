"""What only a GPU can show: `make test-gpu`. The same small networks as elsewhere, so that any card will do."""

import dataclasses

import numpy as np
import pytest
import torch
from synthetic import TINY, write_checkpoint
from weights import relative

import svd_core
from svd_core.model.backend import ROWS_PER_CALL, scaled_dot_product

pytestmark = pytest.mark.gpu

CONFIG = dataclasses.replace(TINY, variant=dataclasses.replace(TINY.variant, frames=5))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("gpu") / "tiny.safetensors", CONFIG)


def render(file, device, **more):
    image = np.random.default_rng(0).random((64, 128, 3), dtype=np.float32)
    svd = svd_core.load_checkpoint(file, device=device, **more)
    return svd, svd.render(image, svd_core.Settings(width=128, height=64, steps=4))


def test_a_gpu_makes_the_clip_that_the_cpu_makes(file):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    latents = [render(file, device)[1].latents for device in ("cpu", "cuda")]
    assert relative(latents[1], latents[0]) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", [{}, {"chunk": 1}, {"chunk": 2}, {"mode": "host"}, {"mode": "bands"}], ids=str)
def test_no_bit_of_a_decode_depends_on_memory(file, dtype, way):
    """The first way is that of the other side: where this alone fails, a kernel of some library sums as it likes."""
    vae = svd_core.load_checkpoint(file, device="cuda", dtype=dtype).vae
    z = torch.randn(5, 4, 8, 16, generator=torch.Generator().manual_seed(0)).to("cuda")
    with torch.inference_mode():
        one, other = (vae.decode(z, len(z), **each).float().cpu() for each in ({}, way))
    assert torch.equal(one, other), f"{relative(other, one):.1e} apart"


def test_attention_runs_beyond_the_launch_limit():
    """More rows times heads than a grid axis holds, as in the level-0 temporal layers (spec 1.5)."""
    q = torch.randn(3 * ROWS_PER_CALL // 5, 5, 14, 64, device="cuda", dtype=torch.float16)
    few = q[:8].float().cpu()
    assert relative(scaled_dot_product(q, q, q)[:8].float().cpu(), scaled_dot_product(few, few, few)) < 2e-3
