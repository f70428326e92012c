"""GEGLU as two products that oneDNN finishes: the same numbers, only where it may be, with the weights of the layer."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from svd_core.kernels.geglu import reference
from svd_core.model.backend import TORCH, Backend
from svd_core.model.cpu import geglu as cpu_geglu
from svd_core.model.cpu import onednn, probe, wide
from svd_core.model.transformer import GEGLU

needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN multiplies no bf16 numbers on this CPU"
)
BOTH = pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])


@pytest.fixture
def products(monkeypatch):
    """The probe says yes; counts the calls."""
    calls = []
    in_two_products = cpu_geglu.in_two_products

    def counted(*args):
        calls.append(args)
        return in_two_products(*args)

    monkeypatch.setattr(wide, "chosen", lambda *_: False)
    monkeypatch.setattr(cpu_geglu, "chosen", lambda dtype: True)
    monkeypatch.setattr(cpu_geglu, "linear_by_onednn", lambda: True)
    monkeypatch.setattr(onednn, "linear_by_onednn", lambda: False)  # of the layers that are compared with torch's
    monkeypatch.setattr(cpu_geglu, "in_two_products", counted)
    return calls


def layer(channels=16, hidden=24, dtype=torch.float32, **backend):
    return GEGLU(channels, hidden, backend=Backend(dtype=dtype, **backend)).requires_grad_(False)


def of_torch(geglu, tokens):
    return reference(tokens, geglu.proj.weight, geglu.proj.bias)


@torch.inference_mode()
@BOTH
@pytest.mark.parametrize("shape", [(1, 8), (7, 33), (2, 5, 24), (2, 3, 4, 64)])
def test_error_is_at_most_twice_that_of_torchs_own(products, dtype, shape):
    geglu, tokens = layer(shape[-1], 40, dtype), torch.randn(shape).to(dtype)
    exact = reference(tokens.double(), geglu.proj.weight.double(), geglu.proj.bias.double())
    ours = geglu(tokens)
    assert len(products) == 1
    assert ours.dtype == dtype and ours.shape == (*shape[:-1], 40) and ours.is_contiguous()
    assert (ours - exact).norm() <= 2 * (of_torch(geglu, tokens) - exact).norm()


@torch.inference_mode()
def test_the_weights_are_those_that_the_layer_computes_with(products):
    """A host's may be patched on the way to the layer."""

    @contextmanager
    def doubled(proj, _like):
        yield proj.weight * 2, proj.bias

    geglu, tokens = layer(weights=doubled), torch.randn(3, 16)
    expected = reference(tokens, geglu.proj.weight * 2, geglu.proj.bias)
    torch.testing.assert_close(geglu(tokens), expected)
    assert len(products) == 1


@torch.inference_mode()
def test_layers_and_tensors_of_another_kind_keep_torchs_operations(products):
    hooked, unbiased, gappy = layer(), layer(), layer()
    hooked.proj.register_forward_hook(lambda *_: None)
    unbiased.proj.bias = None
    gappy.proj.weight = nn.Parameter(torch.randn(48, 32)[:, :16], requires_grad=False)
    tokens = torch.randn(3, 16)
    for geglu in (hooked, unbiased, gappy):
        assert torch.equal(geglu(tokens), of_torch(geglu, tokens))
    layer()(tokens.as_subclass(type("Quantised", (torch.Tensor,), {})))
    layer()(tokens[:0])
    layer(dtype=torch.float64)(tokens.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer()(tokens)
    assert not products


def test_gradients_keep_torchs_operations(products):
    geglu = GEGLU(16, 24, backend=TORCH)
    geglu(torch.randn(3, 16)).sum().backward()
    assert geglu.proj.weight.grad is not None and not products


@needs_bf16
@torch.inference_mode()
def test_float32_takes_it_only_where_onednn_computes_linear_layers(products, monkeypatch):
    monkeypatch.setattr(cpu_geglu, "linear_by_onednn", lambda: False)
    layer()(torch.randn(3, 16))
    assert not products
    layer(dtype=torch.bfloat16)(torch.randn(3, 16).bfloat16())
    assert len(products) == 1


def test_a_compiled_layer_has_no_graph_break(products):
    geglu, tokens = layer(), torch.randn(3, 16)
    compiled = torch.compile(geglu, backend="eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(tokens), of_torch(geglu, tokens))
    assert not products


@pytest.fixture
def small_probe(monkeypatch):
    monkeypatch.setattr(cpu_geglu, "PROBE_SHAPE", (8, 16))


@pytest.mark.parametrize(("slower", "taken"), [(1.0, True), (1.4, True), (2.0, False)])
def test_the_probe_refuses_what_is_slower(small_probe, monkeypatch, slower, taken):
    monkeypatch.setattr(probe, "least_seconds", lambda *_: [slower, 1.0])
    assert cpu_geglu.chosen.ask(torch.float32) is taken


@BOTH
def test_the_probe_refuses_other_numbers(small_probe, monkeypatch, dtype):
    monkeypatch.setattr(probe, "least_seconds", lambda *_: [0.5, 1.0])
    assert cpu_geglu.chosen.ask(dtype)
    monkeypatch.setattr(cpu_geglu, "in_two_products", lambda *args: 1.1 * reference(*args))
    assert not cpu_geglu.chosen.ask(dtype)


def test_the_probe_refuses_where_the_operation_is_missing(small_probe, monkeypatch):
    def missing(*_):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(cpu_geglu, "in_two_products", missing)
    assert not cpu_geglu.chosen.ask(torch.bfloat16)
