"""Nodes that add and detect the watermark of generated frames, and run content filters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io

from ..svd_core.errors import InputError
from ..svd_core.media.content_filter import Checked, ContentFilter, installed_filters
from ..svd_core.media.watermark import detect, embed
from .checks import show
from .inputs import checked

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

NO_FILTER = "No content filter is installed, so the images pass through unchecked."


class StableVideoWatermark(io.ComfyNode):
    """Marks frames as generated, invisibly."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoWatermark",
            display_name="Stable Video Watermark",
            category="video/stable video",
            description=(
                "Puts Stability AI's invisible watermark into every frame, so that tools can tell that a clip was "
                "generated. Last before saving. Needs the package invisible-watermark and frames of at least 256x256."
            ),
            search_aliases=["svd watermark", "invisible watermark", "provenance", "mark generated"],
            inputs=[io.Image.Input("images", tooltip="The finished frames. They come out in steps of 1/255.")],
            outputs=[io.Image.Output(display_name="images", tooltip="The same frames, marked.")],
        )

    @classmethod
    @checked
    def execute(cls, images: Tensor) -> io.NodeOutput:
        return io.NodeOutput(torch.from_numpy(embed(as_frames(images))))


class StableVideoWatermarkDetect(io.ComfyNode):
    """Looks for the watermark."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoWatermarkDetect",
            display_name="Detect Stable Video Watermark",
            category="video/stable video",
            description=(
                "Says whether frames carry Stability AI's invisible watermark. Resizing, cropping and strong "
                "compression remove it, and flat colours hold none, so its absence proves nothing."
            ),
            search_aliases=["svd watermark detect", "invisible watermark", "provenance", "is it generated"],
            inputs=[io.Image.Input("images", tooltip="One picture or the frames of a clip, at their original size.")],
            outputs=[
                io.String.Output(display_name="report", tooltip="How many of 48 bits match, and the odds of chance."),
                io.Boolean.Output(display_name="found", tooltip="True where chance is below one in a million."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(cls, images: Tensor) -> io.NodeOutput:
        detection = detect(as_frames(images))
        show(cls, str(detection))
        return io.NodeOutput(str(detection), detection.found)


class StableVideoContentFilter(io.ComfyNode):
    """Runs the content filters that the user has installed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoContentFilter",
            display_name="Stable Video Content Filter",
            category="video/stable video",
            description=(
                "Asks every content checker that other packages have installed (Python entry points "
                "stable_video.content_filter). One that objects stops the workflow, or hands on its blurred frames. "
                "Where none is installed it says so and changes nothing."
            ),
            search_aliases=["svd safety", "nsfw filter", "safety checker", "content checker"],
            inputs=[io.Image.Input("images", tooltip="The input picture, or the finished frames.")],
            outputs=[io.Image.Output(display_name="images", tooltip="What the checkers let through.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(cls, images: Tensor) -> io.NodeOutput:
        filters = installed_filters()
        if not filters:
            show(cls, NO_FILTER)
            return io.NodeOutput(images)
        frames = as_frames(images)
        reports = []
        for each in filters:
            checked = each.check(frames)
            reports.append(verdict_in_words(each, checked))
            frames = checked.frames
        show(cls, *reports)
        return io.NodeOutput(torch.from_numpy(frames))


def as_frames(images: Tensor) -> np.ndarray:
    """Images (N, H, W, 3 or 4) as frames (N, H, W, 3) in [0, 1]; alpha is dropped, as when clips are saved."""
    return images[..., :3].detach().float().cpu().clamp(0, 1).numpy()


def verdict_in_words(content_filter: ContentFilter, checked: Checked) -> str:
    """The verdict as one sentence. Raises InputError if the filter flags frames without blurring them."""
    if not checked.flagged:
        return f"{content_filter.name}: nothing to object to"
    which = ", ".join(map(str, checked.flagged))
    if checked.blurred:
        return f"{content_filter.name}: frames {which} were changed"
    raise InputError(f"the content filter {content_filter.name} refuses frames {which}: make another clip")
