"""Triton's interpreter runs kernels on the CPU. Triton decides to use it when it is imported, hence a process of its
own (`make test-core`), and it must round bfloat16 as devices do."""

import os
import sys

import numpy as np
import pytest
import torch

if sys.platform != "linux":
    pytest.skip("Triton is made for Linux", allow_module_level=True)
if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("Triton was imported before its interpreter was asked for: run make test-core")
os.environ["TRITON_INTERPRET"] = "1"

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

PATTERNS = {tl.bfloat16: (torch.bfloat16, torch.int16), tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8)}
"""What the interpreter keeps as bit patterns: torch's dtype, and one of whole numbers of the same size."""


def as_float(handle):
    """Values of a handle."""
    if handle.dtype.scalar not in PATTERNS:
        return handle.data
    dtype, bits = PATTERNS[handle.dtype.scalar]
    return torch.from_numpy(np.ascontiguousarray(handle.data)).view(bits).view(dtype).float().numpy()


def as_pattern(data, kind):
    dtype, bits = PATTERNS[kind]
    pattern = torch.from_numpy(np.ascontiguousarray(data)).to(dtype).view(bits).numpy()
    return pattern.view(f"u{pattern.itemsize}")


@pytest.fixture(autouse=True)
def honest_patterns(monkeypatch):
    """Triton 3.6's interpreter truncates where devices round, and its dot product multiplies the bit patterns."""
    cast, to_eight_bits = InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp

    def cast_impl(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar in PATTERNS:
            return TensorHandle(as_pattern(src.data, dst_type.scalar), dst_type.scalar)
        return cast(self, src, dst_type)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        if src.dtype.scalar == tl.float32 and dst_type.scalar in PATTERNS:
            return cast_impl(self, src, dst_type)
        return to_eight_bits(self, src, dst_type, rounding_mode)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        return TensorHandle(np.matmul(as_float(a), as_float(b), dtype=d.data.dtype) + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_to_fp", create_fp_to_fp)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture
def sums_in_order(honest_patterns, monkeypatch):
    """Dot products whose terms are added one after the other, for tests of bits: the order of NumPy's own depends on
    the shape of a tile on some CPUs (AMD without AVX-512), which is the CPU's doing and not the kernel's."""

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        left, right = (as_float(each).astype(d.data.dtype) for each in (a, b))
        total = np.zeros_like(d.data)
        for i in range(left.shape[-1]):
            total += left[..., :, i, None] * right[..., i, None, :]
        return TensorHandle(total + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture(autouse=True)
def numbers_as_bounds(monkeypatch):
    """Triton 3.6's interpreter hands NumPy an array of one value for a number, which NumPy 2.4 takes no longer
    (triton-lang/triton#9171): it is in the way of loops that end at an argument."""
    patched = interpreter._patch_lang_tensor

    def patch(tensor, scope):
        patched(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch)
