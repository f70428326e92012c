"""The watermark and the content filter on native IMAGE sockets."""

import sys
from importlib.metadata import EntryPoint

import pytest
import torch


@pytest.fixture
def images():
    """(2, 256, 256, 4): soft shapes, with an opacity that nothing should mind."""
    across = torch.linspace(0, 1, 256).expand(256, 256)
    still = torch.stack([across, across.t(), 0.5 + 0.4 * torch.sin(6 * across + 4 * across.t()), across * 0 + 1], -1)
    grain = 0.02 * torch.randn(2, 256, 256, 4, generator=torch.Generator().manual_seed(0))
    return (still + grain).clamp(0, 1)


def offer(part, monkeypatch, **checkers):
    """Let these functions be what installed packages offer."""
    hook = part("svd_core.media.content_filter")
    monkeypatch.setitem(sys.modules, "my_checkers", type(sys)("my_checkers"))
    vars(sys.modules["my_checkers"]).update(checkers)
    points = [EntryPoint(name, f"my_checkers:{name}", hook.GROUP) for name in checkers]
    monkeypatch.setattr(hook, "entry_points", lambda group: points)


def test_marked_images_are_recognised(call, images):
    marked = call("StableVideoWatermark", images=images)
    assert marked.shape == (2, 256, 256, 3)
    assert marked.dtype == torch.float32
    report, found = call("StableVideoWatermarkDetect", images=marked)
    assert found
    assert report.startswith("watermark found: ")
    report, found = call("StableVideoWatermarkDetect", images=images)
    assert not found
    assert report.startswith("no watermark found: ")


@pytest.mark.parametrize("node", ["StableVideoWatermark", "StableVideoWatermarkDetect"])
def test_without_the_library_the_node_says_what_to_install(call, images, input_error, monkeypatch, node):
    monkeypatch.setitem(sys.modules, "imwatermark", None)
    with pytest.raises(input_error, match="pip install invisible-watermark"):
        call(node, images=images)


def test_without_a_checker_images_pass_and_that_is_said(call, shown, part, images, monkeypatch):
    offer(part, monkeypatch)
    assert call("StableVideoContentFilter", on_page=True, images=images) is images
    assert shown == [part("nodes.provenance").NO_FILTER]


def test_a_checker_that_objects_stops_the_workflow(call, part, images, input_error, monkeypatch):
    offer(part, monkeypatch, gentle=lambda frames: [False] * len(frames), strict=lambda frames: [False, True])
    with pytest.raises(input_error, match="content filter strict refuses frames 1: make another clip"):
        call("StableVideoContentFilter", images=images)


def test_a_checker_s_blurred_frames_are_handed_on(call, part, images, monkeypatch):
    offer(part, monkeypatch, blurs=lambda frames: frames * 0.5, gentle=lambda frames: [False] * len(frames))
    torch.testing.assert_close(call("StableVideoContentFilter", images=images), images[..., :3] * 0.5)
