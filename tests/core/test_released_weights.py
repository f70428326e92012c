"""On a released file, where one is at hand: `SVD_CHECKPOINT=file make test-weights`."""

import os

import numpy as np
import pytest

import svd_core

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def path():
    return os.environ["SVD_CHECKPOINT"]


def test_the_file_is_whole_and_known(path):
    inspection = svd_core.inspect_checkpoint(path)
    assert inspection.loadable
    assert not inspection.missing
    assert not inspection.unknown


def test_the_first_frame_looks_like_the_still(path):
    """A smooth picture at a small size: a working model keeps it, broken numbers do not."""
    ramp = np.linspace(0.2, 0.8, 256, dtype=np.float32)
    image = np.stack(
        [np.broadcast_to(ramp, (128, 256)), np.full((128, 256), 0.5, np.float32), ramp[::2, None] + 0 * ramp], -1
    )
    svd = svd_core.load_checkpoint(path)
    frames = svd.animate(image, frames=4, steps=8, width=256, height=128)
    error = float(np.mean((frames[0] - image) ** 2))
    assert 10 * np.log10(1 / error) > 15
