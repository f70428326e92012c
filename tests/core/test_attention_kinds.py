"""Which attention runs: torch's, in an order for the device, or a package's that was asked for by name."""

import sys
from types import ModuleType

import pytest
import torch
from torch.nn.attention import SDPBackend

from svd_core.errors import InputError
from svd_core.model import attention_kinds
from svd_core.model.attention_kinds import SHORTEST, attention_named, order

CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
EFFICIENT, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH


def usual(q, k, v):
    return "usual"


class OnDevice(torch.Tensor):
    """A tensor that says it is on a CUDA device."""

    is_cuda = True


def tokens(count, dtype=torch.float16, width=64):
    return torch.randn(2, 3, count, width).to(dtype).as_subclass(OnDevice)


@pytest.fixture
def package(monkeypatch):
    """Stands in for a package; returns what its function was called with."""
    calls = []

    def install(name, function):
        module = ModuleType(name)

        def run(*args, **options):
            calls.append((args, options))
            return torch.zeros_like(args[0])

        setattr(module, function, run)
        module.__spec__ = object()
        monkeypatch.setitem(sys.modules, name, module)
        return calls

    attention_kinds._sage_function.cache_clear()
    attention_kinds._flash3_function.cache_clear()
    yield install
    attention_kinds._sage_function.cache_clear()
    attention_kinds._flash3_function.cache_clear()


def test_cudnn_is_first_on_hopper_and_flash_elsewhere():
    assert order((9, 0)) == [CUDNN, FLASH, EFFICIENT, MATH]
    assert order((8, 0)) == order((8, 9)) == order((10, 0)) == [FLASH, CUDNN, EFFICIENT, MATH]


def test_what_the_user_switched_off_stays_off(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "mem_efficient_sdp_enabled", lambda: False)
    assert order((9, 0)) == [FLASH, MATH]


@pytest.fixture
def on_hopper(monkeypatch):
    """What torch's context is asked for on an H200: the device is told that it is one."""
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    attention_kinds._takes_order.cache_clear()
    yield asked
    attention_kinds._takes_order.cache_clear()


def test_torch_is_given_the_order(monkeypatch, on_hopper):
    monkeypatch.setattr(attention_kinds, "sdpa_kernel", lambda kinds, set_priority=False: on_hopper.append(kinds))
    attention_kinds.preferred(torch.device("cuda"))
    assert on_hopper == [order((9, 0))]


def test_torch_before_2_6_keeps_its_own_order(monkeypatch, on_hopper):
    """Its context takes backends, and no word about their order."""
    monkeypatch.setattr(attention_kinds, "sdpa_kernel", lambda kinds: on_hopper.append(kinds))
    with attention_kinds.preferred(torch.device("cuda")):
        assert not on_hopper


def test_auto_is_the_usual_attention():
    assert attention_named("auto", usual) is usual


@pytest.mark.parametrize("name", ["sage", "flash3"])
def test_a_package_that_is_not_installed_is_one_clear_line(monkeypatch, name):
    monkeypatch.setattr(attention_kinds.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=rf"attention {name} needs the package .*not installed: choose auto"):
        attention_named(name, usual)


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="attention 'fast' is not known: choose auto, sage or flash3"):
        attention_named("fast", usual)


def test_sage_gets_heads_before_tokens(package):
    calls = package("sageattention", "sageattn")
    q = tokens(SHORTEST)
    assert attention_named("sage", usual)(q, q, q).shape == q.shape
    assert [part.shape for part in calls[0][0]] == [q.shape] * 3
    assert calls[0][1] == {"tensor_layout": "HND", "is_causal": False}


def test_flash3_gets_tokens_before_heads(package):
    calls = package("flash_attn_interface", "flash_attn_func")
    q = tokens(SHORTEST)
    assert attention_named("flash3", usual)(q, q, q).shape == q.shape
    assert [tuple(part.shape) for part in calls[0][0]] == [(2, SHORTEST, 3, 64)] * 3


@pytest.mark.parametrize(
    "q",
    [tokens(SHORTEST - 1), tokens(SHORTEST, torch.float32), tokens(SHORTEST, width=512), torch.randn(1, 1, 200, 64)],
)
def test_what_a_package_does_not_serve_goes_the_usual_way(package, q):
    package("sageattention", "sageattn")
    assert attention_named("sage", usual)(q, q, q) == "usual"
