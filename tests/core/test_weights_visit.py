"""Weights that visit the device layer by layer: the same bits, in the memory of two layers."""

import pytest
import torch
from synthetic import TINY
from weights import randomise

import svd_core.model.transformer
from svd_core.config import UNetConfig
from svd_core.model.backend import TORCH
from svd_core.model.unet import VideoUNet
from svd_core.model.weights import visiting

CPU = torch.device("cpu")


def inputs(config: UNetConfig, frames: int, height: int, width: int, **where: object) -> tuple[torch.Tensor, ...]:
    shapes = (frames, 8, height, width), (frames,), (frames, 1, config.context_dim), (frames, config.vector_dim)
    return tuple(torch.ones(shape, **where) * 0.5 for shape in shapes)


@pytest.fixture(scope="module")
def unet():
    return randomise(VideoUNet(TINY.unet))


@torch.inference_mode()
def test_every_layer_is_named_once_and_in_order(unet):
    ran = []
    hooks = [layer.register_forward_pre_hook(lambda layer, _: ran.append(layer)) for layer in unet.layers()]
    unet(*inputs(TINY.unet, 2, 8, 8), num_frames=2)
    for hook in hooks:
        hook.remove()
    assert ran == unet.layers()
    named = {id(parameter) for layer in unet.layers() for parameter in layer.parameters()}
    assert named == {id(parameter) for parameter in unet.parameters()}


@torch.inference_mode()
def test_visiting_weights_give_the_same_bits_and_go_home(unet):
    given = inputs(TINY.unet, 2, 8, 8)
    expected = unet(*given, num_frames=2)
    homes = [parameter.data_ptr() for parameter in unet.parameters()]
    with visiting(unet.layers(), CPU):
        assert all(torch.equal(unet(*given, num_frames=2), expected) for _ in range(2))
    assert homes == [parameter.data_ptr() for parameter in unet.parameters()]
    assert torch.equal(unet(*given, num_frames=2), expected)


@torch.no_grad()
def test_a_layer_runs_on_copies(unet):
    seen = []
    layer = unet.layers()[3]
    home = next(layer.parameters()).data_ptr()
    with visiting(unet.layers(), CPU):
        hook = layer.register_forward_pre_hook(lambda layer, _: seen.append(next(layer.parameters()).data_ptr()))
        unet(*inputs(TINY.unet, 2, 8, 8), num_frames=2)
    hook.remove()
    assert seen != [home]


@torch.no_grad()
def test_weights_go_home_after_an_error(unet):
    homes = [parameter.data_ptr() for parameter in unet.parameters()]

    def fails(*_):
        raise RuntimeError("in the middle of the network")

    hook = unet.middle_block.register_forward_pre_hook(fails)
    try:
        with pytest.raises(RuntimeError, match="in the middle"), visiting(unet.layers(), CPU):
            unet(*inputs(TINY.unet, 2, 8, 8), num_frames=2)
    finally:
        hook.remove()
    assert homes == [parameter.data_ptr() for parameter in unet.parameters()]


@torch.no_grad()
@pytest.mark.parametrize("limit", ["HIDDEN_VALUES", "CPU_HIDDEN_VALUES"])
def test_a_feed_forward_in_groups_is_the_whole_one(unet, monkeypatch, limit):
    given = inputs(TINY.unet, 2, 8, 8)
    whole = unet(*given, num_frames=2)
    monkeypatch.setattr(svd_core.model.transformer, limit, 2**12)
    torch.testing.assert_close(unet(*given, num_frames=2), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("tokens", "groups"), [(0, [0]), (1, [1]), (16, [16]), (17, [9, 8]), (49, [13, 13, 13, 10])])
def test_groups_of_a_feed_forward_are_as_equal_as_can_be(monkeypatch, tokens, groups):
    """The last one would else be a few tokens, for which all weights are read once more."""
    monkeypatch.setattr(svd_core.model.transformer, "CPU_HIDDEN_VALUES", 16 * 256)
    layer, seen = svd_core.model.transformer.FeedForward(32, backend=TORCH), []
    layer.net[0].register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    layer.added(torch.zeros(tokens, 32), torch.ones(tokens, 32))
    assert seen == groups


def test_a_feed_forward_that_would_go_in_groups_trains_all_the_same(unet, monkeypatch):
    monkeypatch.setattr(svd_core.model.transformer, "HIDDEN_VALUES", 2**12)
    tokens = torch.randn(2, 64, 32, requires_grad=True)
    feed_forward = next(each for each in unet.modules() if isinstance(each, svd_core.model.transformer.FeedForward))
    feed_forward.added(torch.zeros(2, 64, 32), tokens).sum().backward()
    assert tokens.grad.abs().sum() > 0
