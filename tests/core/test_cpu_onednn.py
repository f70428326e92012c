"""float32 linear layers by oneDNN: the same numbers, only where they may be, and through a host's own layers."""

import pytest
import torch
from torch import nn

from svd_core.model.backend import Backend
from svd_core.model.cpu import onednn as library
from svd_core.model.cpu import probe


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN is chosen, whatever this CPU is; counts its calls."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN linear layer")
    calls = []
    plain = library.onednn_linear
    monkeypatch.setattr(library, "linear_by_onednn", lambda: True)
    monkeypatch.setattr(library, "onednn_linear", lambda *args: calls.append(args) or plain(*args))
    return calls


class Casting(nn.Linear):
    """A host's layer, which keeps its weights in another dtype and casts them for each call."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


HOST = type("Operations", (), {"Linear": Casting})


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_error_is_at_most_twice_that_of_torchs_own(onednn, bias):
    layer = Backend().linear(320, 640, bias=bias)
    x = torch.randn(2, 77, 320)
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    assert (layer(x) - exact).norm() <= 2 * (plain - exact).norm()
    assert len(onednn) == 1


@torch.inference_mode()
def test_a_hosts_layer_casts_first(onednn):
    layer = Backend(HOST, dtype=torch.bfloat16).linear(32, 64)
    assert isinstance(layer, Casting)
    x = torch.randn(5, 32)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight.float(), layer.bias.float()))
    assert onednn[0][1].dtype == torch.float32


def test_gradients_keep_torchs_own(onednn):
    layer = Backend().linear(32, 64)
    layer(torch.randn(5, 32)).sum().backward()
    assert layer.weight.grad is not None and not onednn


@torch.inference_mode()
def test_other_dtypes_and_tensor_classes_keep_torchs_own(onednn):
    Backend(dtype=torch.float64).linear(32, 64)(torch.randn(5, 32, dtype=torch.float64))
    layer = Backend().linear(32, 64)
    layer(torch.randn(5, 32).as_subclass(type("Quantised", (torch.Tensor,), {})))
    assert not onednn


@torch.inference_mode()
def test_weights_with_gaps_keep_torchs_own(onednn):
    """oneDNN would take minutes for them."""
    layer = Backend().linear(32, 64)
    layer.weight = nn.Parameter(torch.randn(64, 64)[:, :32], requires_grad=False)
    layer(torch.randn(5, 32))
    assert not onednn


@torch.inference_mode()
def test_torchs_own_stays_where_the_probe_says_so(monkeypatch):
    monkeypatch.setattr(library, "linear_by_onednn", lambda: False)
    monkeypatch.setattr(library, "onednn_linear", lambda *_: pytest.fail("the probe said no"))
    Backend().linear(32, 64)(torch.randn(5, 32))


@pytest.mark.parametrize(("slower", "taken"), [(1.0, True), (1.4, True), (2.0, False)])
def test_the_probe_refuses_what_is_slower(monkeypatch, slower, taken):
    monkeypatch.setattr(library, "onednn_linear", nn.functional.linear)
    monkeypatch.setattr(probe, "least_seconds", lambda *_: [slower, 1.0])
    assert library._probe_agrees() is taken


def test_the_probe_refuses_other_numbers(monkeypatch):
    monkeypatch.setattr(library, "onednn_linear", lambda *args: nn.functional.linear(*args) + 1)
    monkeypatch.setattr(probe, "least_seconds", lambda *_: [0.5, 1.0])
    assert not library._probe_agrees()


def test_what_was_chosen_can_be_said():
    assert library.in_words() in ("oneDNN", "torch's own (MKL where there is one)")


def test_a_compiled_layer_has_no_graph_break(onednn):
    layer = Backend().linear(32, 64)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.inference_mode():
        x = torch.randn(5, 32)
        torch.testing.assert_close(compiled(x), nn.functional.linear(x, layer.weight, layer.bias))
