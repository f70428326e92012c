"""Weights in eight bits: rounded within half a step of their channel's scale, small, and never taken for whole ones."""

import pytest
import torch
from synthetic import TINY, write_checkpoint
from test_unet import SMALL, inputs
from torch import nn
from weights import randomise, relative

import svd_core
from svd_core.model.fused import own_weights
from svd_core.model.storage import in_eight_bits, store_in_eight_bits
from svd_core.model.unet import VideoUNet
from svd_core.model.weights import visiting
from svd_core.planning import Job, plan_render

GIB = 2**30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(24, 10), lambda: nn.Conv2d(6, 10, 3), lambda: nn.Conv3d(6, 10, (3, 1, 1))]
)
def test_each_weight_is_within_half_a_step_of_its_channel(make, dtype):
    layer = make().to(dtype)
    with torch.no_grad():
        layer.weight[0] *= 100
        layer.weight[1] = 0
    whole, bias = layer.weight.detach().double(), layer.bias.detach().clone()
    store_in_eight_bits(layer)
    step = whole.flatten(1).abs().amax(1) / 127
    rounding = 127 * torch.finfo(dtype).eps * step  # of the scale and of the product
    off = (layer.weight.double() - whole).flatten(1).abs().amax(1)
    assert layer.weight.dtype == dtype and (off <= 0.5 * step + 2 * rounding + 1e-7).all()
    assert torch.equal(layer.bias, bias)
    assert layer.parametrizations.weight.original.dtype == torch.int8


@pytest.fixture(scope="module")
def whole():
    return randomise(VideoUNet(SMALL)).requires_grad_(False)


@pytest.fixture(scope="module")
def stored(whole):
    unet = VideoUNet(SMALL).requires_grad_(False).eval()
    unet.load_state_dict(whole.state_dict())
    store_in_eight_bits(unet)
    return unet


@torch.inference_mode()
def test_the_network_is_near_and_small(whole, stored):
    given = inputs(SMALL, 1, 3, 8, 16)
    assert 1e-4 < relative(stored(**given), whole(**given)) < 0.05
    assert in_eight_bits(stored) and not in_eight_bits(whole)
    held, before = (sum(weight.nbytes for weight in unet.parameters()) for unet in (stored, whole))
    assert held < 0.27 * before  # of float32


def test_norms_biases_and_blends_are_whole(whole, stored):
    kept = dict(stored.named_parameters())
    for name, weight in whole.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(kept[name], weight)


def test_no_kernel_reads_a_stored_weight(stored):
    with own_weights(stored.time_embed[0], torch.zeros(1)) as found:
        assert found is None


@torch.inference_mode()
def test_they_visit_the_device_as_whole_ones_do(stored):
    given = inputs(SMALL, 1, 3, 8, 8)
    there = stored(**given)
    with visiting(stored.layers(), torch.device("cpu")):
        assert torch.equal(stored(**given), there)


def test_a_checkpoint_opens_in_eight_bits(tmp_path):
    path = write_checkpoint(tmp_path / "tiny.safetensors")
    frames = {
        weights: svd_core.load_checkpoint(path, weights=weights).animate(
            torch.rand(64, 128, 3, generator=torch.Generator().manual_seed(0)).numpy(), frames=2, steps=2
        )
        for weights in ("whole", "int8")
    }
    off = abs(frames["int8"] - frames["whole"])
    assert 0 < off.mean() < 0.05


def test_the_plan_knows_what_they_take():
    size = {"frames": 2, "width": 128, "height": 64, "dtype": torch.float16}
    plans = [plan_render(Job(TINY, **size, eight_bits=eight_bits), 10 * GIB) for eight_bits in (False, True)]
    assert plans[1].weight_bytes < plans[0].weight_bytes
