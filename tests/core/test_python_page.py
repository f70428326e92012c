"""docs/python.md runs as it stands, block after block."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import svd_core
from svd_core.demo import DEMO_MODEL

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The names that the page's code leaves behind, and the folder that it ran in."""
    folder, names = tmp_path_factory.mktemp("page"), {}
    Image.open(ROOT / "workflows/assets/demo_rocket.png").save(folder / "still.png")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks:
            exec(block, names)
    return names, folder


def test_the_page_makes_a_clip(ran):
    names, folder = ran
    assert (folder / "clip.mp4").stat().st_size > 1000
    assert names["clip"].frames.shape == (14, 64, 128, 3)
    assert names["frames"].shape == (14, 64, 128, 3)


def test_controls_give_the_lengths_that_the_page_says(ran):
    names, _ = ran
    assert len(names["loop"]) == 13
    assert len(names["longer"]) == 30
    assert len(names["livelier"]) == 14


def test_a_limit_changes_no_pixel(ran):
    names, _ = ran
    again = svd_core.load_checkpoint(DEMO_MODEL).animate(names["still"], seed=7, steps=2)
    np.testing.assert_array_equal(names["frames"], again)
