"""What one step and one decode ask of a device, counted on the meta device: a lost fusion turns these red."""

import pytest
import torch
from test_unet import FullAttention

from benchmarks.work import ATTENTION, CONVOLUTION, GEMM, NORM, OTHER, Work, fused_attention
from svd_core.config import UNetConfig, VAEConfig
from svd_core.model.backend import Backend
from svd_core.model.cpu.geglu import in_two_products
from svd_core.model.step import NO_HOOKS
from svd_core.model.unet import VideoUNet
from svd_core.model.vae import VideoVAE

META = Backend(attention=fused_attention, dtype=torch.float16, device="meta")

STEP_LAUNCHES = {GEMM: 610, CONVOLUTION: 110, ATTENTION: 32, NORM: 185, OTHER: 1201}
STEP_GIGABYTES, STEP_TERAFLOPS = 144.82, 43.09
DECODE_LAUNCHES, DECODE_GIGABYTES, DECODE_TERAFLOPS = 3644, 10.69, 0.848


def empty(*shape):
    return torch.empty(*shape, dtype=torch.float16, device="meta")


def step_work(hooks=NO_HOOKS):
    """14 frames at 576x1024, one guidance branch, in 16 bits."""
    unet = VideoUNet(UNetConfig(), backend=META)
    with torch.no_grad(), Work() as work:
        unet(empty(14, 8, 72, 128), empty(14), empty(14, 1, 1024), empty(14, 768), num_frames=14, hooks=hooks)
    return work


@pytest.fixture(scope="module")
def step():
    return step_work()


@pytest.mark.parametrize("kind", STEP_LAUNCHES)
def test_a_step_launches_no_more_than_it_did(step, kind):
    assert step.classes[kind].launches <= STEP_LAUNCHES[kind], dict(step.operations)


def test_a_step_moves_and_calculates_no_more_than_it_did(step):
    assert step.total.bytes <= STEP_GIGABYTES * 1e9
    assert step.total.flops <= STEP_TERAFLOPS * 1e12


def test_the_full_cross_attention_would_be_noticed(step):
    full = step_work(FullAttention()).total
    assert full.launches > sum(STEP_LAUNCHES.values())
    assert full.bytes > STEP_GIGABYTES * 1e9
    assert full.flops > STEP_TERAFLOPS * 1e12


def test_a_decode_asks_no_more_than_it_did():
    """3 frames at 128x192, in 16 bits."""
    vae = VideoVAE(VAEConfig(encoder_quant=False), backend=META)
    with torch.no_grad(), Work() as work:
        vae.decode(empty(3, 4, 16, 24), 3)
    assert work.total.launches <= DECODE_LAUNCHES, dict(work.operations)
    assert work.total.bytes <= DECODE_GIGABYTES * 1e9
    assert work.total.flops <= DECODE_TERAFLOPS * 1e12


def test_views_and_room_are_no_launches_and_an_update_writes_what_it_read():
    a = torch.empty(4, 8, device="meta")
    with Work() as work:
        a.t()
        torch.empty_like(a).add_(a)
    assert work.total.launches == 1
    assert work.total.bytes == 2 * a.numel() * 4


def test_attention_on_a_cpu_counts_both_products():
    q = torch.randn(2, 3, 8, 16)
    with torch.no_grad(), Work() as work:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert work.classes[ATTENTION].flops == 2 * 2 * (2 * 3 * 8 * 8 * 16)


def test_products_that_finish_their_results_are_counted_whole():
    """A step's on a CPU, which no count on the meta device sees."""
    tokens, weight, bias = (torch.zeros(shape) for shape in ((6, 8), (48, 8), (48,)))
    with torch.inference_mode(), Work() as work:
        in_two_products(tokens, weight, bias)
    assert work.classes[GEMM].flops == 2 * 6 * 8 * 48
