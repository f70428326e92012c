"""The arithmetic of `benchmarks.shortcuts`: everything is compared with the exact clip of the same round."""

import math

import numpy as np
import pytest
import torch

from benchmarks.shortcuts import EXACT, WAYS, markdown, rows_of
from svd_core.clip import Clip
from svd_core.settings import Settings


def clip(value, report=""):
    frames, latents = np.full((1, 2, 2, 3), value, np.float32), torch.full((1, 4, 2, 2), 2.0 * value + 1)
    return Clip(frames, latents, Settings(), (1.0, 0.0), "", report)


def test_rows_are_of_the_same_round():
    said = "reuse 0.02 (approximate): {} of 50 UNet calls took the deep features of an earlier step"
    rounds = [
        {EXACT.name: (clip(0.5), 4.0), WAYS[1].name: (clip(0.6, said.format(10)), 2.0)},
        {EXACT.name: (clip(0.5), 9.0), WAYS[1].name: (clip(0.4, said.format(20)), 3.0)},
    ]
    exact, other = rows_of(rounds)
    assert (exact.seconds, exact.time_ratio, exact.latents, exact.decibels, exact.served) == (6.5, 1, 0, math.inf, "")
    assert (other.time_ratio, other.time_ratio_range) == (2.5, (2.0, 3.0))
    assert other.latents == pytest.approx(0.1) and other.decibels == pytest.approx(20, abs=1e-4)
    assert other.served == "10 of 50; 20 of 50"
    assert "| 10 of 50; 20 of 50 |" in markdown([exact, other]).splitlines()[-1]
