"""Weights in eight bits: rounded within half a step of their channel's scale, small, and never taken for whole ones."""

import pytest
import torch
from synthetic import TINY, write_checkpoint
from test_unet import SMALL, inputs
from torch import nn
from weights import randomise, relative

import svd_core
from svd_core.errors import InputError
from svd_core.model.fused import own_weights
from svd_core.model.storage import STORES, Fp8Linear, store_in_eight_bits, stored_as
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


@pytest.fixture(scope="module", params=["int8", "fp8"])
def stored(request, whole):
    unet = VideoUNet(SMALL).requires_grad_(False).eval()
    unet.load_state_dict(whole.state_dict())
    STORES[request.param](unet)
    assert stored_as(unet) == request.param
    return unet


LARGEST = {"int8": 0.27, "fp8": 0.75}
"""Of the float32 weights' bytes. fp8 leaves convolutions as they are."""

FARTHEST = {"int8": 0.05, "fp8": 0.12}
"""Three digits after the point, of weights and of tokens, are 0.037 in every product."""


@torch.inference_mode()
def test_the_network_is_near_and_small(whole, stored):
    given = inputs(SMALL, 1, 3, 8, 16)
    assert 1e-4 < relative(stored(**given), whole(**given)) < FARTHEST[stored_as(stored)]
    assert stored_as(whole) == "whole"
    held, before = (sum(weight.nbytes for weight in unet.parameters()) for unet in (stored, whole))
    assert held < LARGEST[stored_as(stored)] * before


def test_norms_biases_and_blends_are_whole(whole, stored):
    kept = dict(stored.named_parameters())
    for name, weight in whole.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(kept[name], weight)


def test_the_wide_layers_of_all_transformers_multiply_in_fp8_and_no_others(whole):
    unet = VideoUNet(SMALL).requires_grad_(False)
    STORES["fp8"](unet)
    found = {name for name, layer in unet.named_modules() if isinstance(layer, Fp8Linear)}
    depth = sum(name.count("transformer_blocks.0.norm1") for name, _ in whole.named_modules())
    # proj_in; of a spatial block 4 + 2, of a temporal block 4 + 2 + 2
    assert depth > 1 and len(found) == depth * (1 + 6 + 8)
    assert not any(word in name for name in found for word in ("attn2", "emb", "proj_out"))


@torch.inference_mode()
def test_a_layer_of_fp8_is_the_product_of_what_it_rounds():
    layer = nn.Linear(48, 32).requires_grad_(False)
    tokens = torch.randn(3, 7, 48, generator=torch.Generator().manual_seed(0))
    given = tokens.clone()
    found, right = Fp8Linear(layer)(tokens), layer(tokens)
    assert torch.equal(tokens, given)
    assert 0.005 < relative(found, right) < 0.06
    grid = torch.tensor([1.0, -0.875, 0.5, 0.0625] * 12).expand(3, 7, 48)  # e4m3 holds these
    layer.weight.copy_(torch.tensor([0.25, 1.75, -3.0, 0.0] * 12).expand(32, 48))
    torch.testing.assert_close(Fp8Linear(layer)(grid), layer(grid), rtol=1e-6, atol=1e-6)


def test_no_kernel_reads_a_stored_weight(stored):
    layer = stored.middle_block[1].transformer_blocks[0].ff.net[0].proj
    with own_weights(layer, torch.zeros(1)) as found:
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
        for weights in STORES
    }
    for weights in ("int8", "fp8"):
        assert 0 < abs(frames[weights] - frames["whole"]).mean() < 0.05


def test_fp8_is_refused_where_there_are_no_such_numbers(tmp_path):
    path = write_checkpoint(tmp_path / "tiny.safetensors")
    with pytest.raises(InputError, match="weights fp8 on mps, which has no floats of 8 bits: choose int8 or whole"):
        svd_core.load_checkpoint(path, device="mps", weights="fp8")


def test_float64_is_refused_where_there_are_no_such_numbers(tmp_path):
    path = write_checkpoint(tmp_path / "tiny.safetensors")
    with pytest.raises(InputError, match=r"dtype torch.float64 on mps, which has no such floats: choose float32"):
        svd_core.load_checkpoint(path, device="mps", dtype=torch.float64)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda", "device 'cuda' is not on this machine: give cpu, or cuda or mps where there is one"),
        (torch.device("cuda", 1), "device 'cuda:1' is not on this machine"),
        ("mps", "device 'mps' is not on this machine"),
        ("meta", "device 'meta' is not on this machine"),
        ("abacus", "device 'abacus' is not known: give cpu, cuda, cuda:1 or mps"),
        (None, "device 'None' is not known"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_the_file_is_opened(device, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"^{said}"):
        svd_core.load_checkpoint("absent.safetensors", device=device)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, "float16"])
def test_a_dtype_that_the_networks_do_not_compute_in_is_refused(dtype):
    with pytest.raises(InputError, match=f"^dtype {dtype!r} is not one that the networks compute in: give one of"):
        svd_core.load_checkpoint("absent.safetensors", dtype=dtype)


def test_weights_of_another_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="weights 'int4' are not known: choose one of whole, int8, fp8"):
        svd_core.load_checkpoint(tmp_path / "tiny.safetensors", weights="int4")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_largest_numbers_of_a_dtype_stay_finite_in_fp8(dtype):
    layer = nn.Linear(16, 16, dtype=dtype).requires_grad_(False)
    layer.weight.fill_(0.01)
    tokens = torch.zeros(1, 16, dtype=dtype)
    tokens[0, 0] = torch.finfo(dtype).max
    assert Fp8Linear(layer)(tokens).isfinite().all()


def test_the_plan_knows_what_they_take():
    size = {"frames": 2, "width": 128, "height": 64, "dtype": torch.float16}
    plans = {weights: plan_render(Job(TINY, **size, weights=weights), 10 * GIB) for weights in STORES}
    assert plans["int8"].weight_bytes < plans["fp8"].weight_bytes < plans["whole"].weight_bytes
