"""The two-layer perceptron that turns a sinusoid into the embedding for residual and temporal blocks (spec 1.2)."""

from __future__ import annotations

from torch import nn

from .backend import Backend


def embedding_mlp(inputs: int, hidden: int, outputs: int, backend: Backend) -> nn.Sequential:
    """Linear, SiLU, Linear; its parameters are called 0.* and 2.*, as in the released files."""
    return nn.Sequential(backend.linear(inputs, hidden), nn.SiLU(), backend.linear(hidden, outputs))
