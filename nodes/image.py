"""Fit pictures of any size to the size of a clip, and crop clips back to the part that shows the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from comfy_api.latest import io
from PIL import ImageColor

from ..svd_core.config import VARIANTS
from ..svd_core.errors import InputError
from ..svd_core.media import Fitted, as_image, crop_report, default_size, fit_image, round_size
from ..svd_core.settings import MAX_SIDE, SIZE_MULTIPLE
from .checks import show
from .inputs import checked

if TYPE_CHECKING:
    from torch import Tensor

BLUR = 32
"""Downscaling factor of the blurred background: large enough to remove shapes, while light and colour stay."""

FULL_SIZE = ("image_width", "image_height")
"""Keys added to ComfyUI's bounding box: the full picture's size, so that the box still fits after an upscaler."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The size to fit a picture into, in pixels; focus is the point (x, y), each in [0, 1], that a crop keeps in view;
    background is red, green and blue, each 0 to 255."""

    width: int
    height: int
    focus: tuple[float, float]
    background: tuple[int, int, int]


class StableVideoImageFit(io.ComfyNode):
    """Fits pictures to the size of a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoImageFit",
            display_name="Fit Picture for Stable Video",
            category="video/stable video",
            description=(
                "Brings a picture of any size from 16 pixels a side to one that the model handles well, by default "
                "1024x576, 576x1024 or 768x768, whichever is nearest to the picture's shape."
            ),
            search_aliases=["svd resize", "svd crop", "stable video size", "aspect ratio", "letterbox", "blur pad"],
            inputs=[
                io.Image.Input(
                    "image", tooltip="At least 16 pixels a side. Transparent parts show the background colour."
                ),
                io.Combo.Input(
                    "mode",
                    options=list(FITS),
                    default="crop",
                    tooltip=(
                        "crop fills the frame and cuts what stands out; pad shows the whole picture between bars of "
                        "the background colour; blurred pad between blurred bars; stretch distorts it."
                    ),
                ),
                *_size_inputs(),
                *_focus_inputs(),
                io.Color.Input(
                    "background",
                    default="#ffffff",
                    advanced=True,
                    tooltip="Colour under transparent parts and, with pad, of the bars.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture at the size of the clip."),
                io.Int.Output(display_name="width", tooltip="Of the clip, in pixels."),
                io.Int.Output(display_name="height", tooltip="Of the clip, in pixels."),
                io.BoundingBox.Output(
                    display_name="content",
                    tooltip="Which part shows the picture and not bars: for Unfit, or Crop Image.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        image: Tensor,
        mode: str,
        width: int,
        height: int,
        focus_x: float,
        focus_y: float,
        background: str,
    ) -> io.NodeOutput:
        colour = parse_colour(background)
        pictures = [as_image(picture.numpy(), colour) for picture in image.detach().float().cpu().clamp(0, 1)]
        size = chosen_size(pictures[0], width, height)
        frame = Frame(*size, (focus_x, focus_y), colour)
        fitted = [FITS[mode](picture, frame) for picture in pictures]
        show(cls, fitted[0].report)
        images = torch.from_numpy(np.stack([each.image for each in fitted]))
        return io.NodeOutput(images, *size, bounding_box(fitted[0]))


class StableVideoImageUnfit(io.ComfyNode):
    """Cuts away the bars that fitting added."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoImageUnfit",
            display_name="Unfit Frames from Stable Video",
            category="video/stable video",
            description=(
                "Cuts away the bars that Fit Picture added, in every frame. Works after an upscaler too. Frames of a "
                "picture that was cropped or stretched pass through as they are."
            ),
            search_aliases=["svd uncrop", "remove padding", "remove letterbox", "crop bars"],
            inputs=[
                io.Image.Input("images", tooltip="The decoded frames, upscaled or not."),
                io.BoundingBox.Input("content", force_input=True, tooltip="From Fit Picture for Stable Video."),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The frames without bars.")],
        )

    @classmethod
    @checked
    def execute(cls, images: Tensor, content: dict[str, int]) -> io.NodeOutput:
        left, top, right, bottom = content_edges(content, images.shape[2], images.shape[1])
        return io.NodeOutput(images[:, top:bottom, left:right])


# Widgets


def _size_inputs() -> list[io.Input]:
    """Widgets for the clip's width and height."""
    return [
        io.Int.Input(
            "width",
            default=0,
            min=0,
            max=MAX_SIDE,
            step=SIZE_MULTIPLE,
            tooltip=(
                "Of the clip, in pixels, rounded to a multiple of 64. 0 chooses: near the trained size, or by "
                "the picture's shape when only the height is given. Far from the trained size clips look worse."
            ),
        ),
        io.Int.Input(
            "height",
            default=0,
            min=0,
            max=MAX_SIDE,
            step=SIZE_MULTIPLE,
            tooltip="Of the clip, in pixels, rounded to a multiple of 64. 0 chooses, as for the width.",
        ),
    ]


def _focus_inputs() -> list[io.Input]:
    """Widgets for the point that a crop keeps in view."""
    return [
        io.Float.Input(
            "focus_x",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where the subject is, from 0 at the left edge to 1 at the right. A crop keeps it in view.",
        ),
        io.Float.Input(
            "focus_y",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where the subject is, from 0 at the top to 1 at the bottom. A crop keeps it in view.",
        ),
    ]


# Sizes and colours


def chosen_size(picture: np.ndarray, width: int, height: int) -> tuple[int, int]:
    """(width, height) in multiples of 64; a given 0 is derived from the picture (H, W, 3). Raises InputError."""
    rows, columns = picture.shape[:2]
    if not width and not height:
        return default_size(picture, VARIANTS["svd"])
    chosen = round_size(width or height * columns / rows, height or width * rows / columns)
    if max(chosen) > MAX_SIDE:
        raise InputError(
            f"a picture of {columns}x{rows} would be fitted into {chosen[0]}x{chosen[1]}, above {MAX_SIDE} pixels a "
            "side: give both width and height"
        )
    return chosen


def parse_colour(text: str) -> tuple[int, int, int]:
    """Red, green and blue, each 0 to 255, from #rrggbb or a colour's name. Raises InputError."""
    try:
        return ImageColor.getrgb(text)[:3]
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"colour {text!r} is not known: write it as #rrggbb, such as #ffffff for white") from error


# Fitting


def crop(picture: np.ndarray, frame: Frame) -> Fitted:
    """Fill the frame, keeping the focus as near to its middle as the picture's edges allow."""
    rows, columns = picture.shape[:2]
    scale = max(frame.width / columns, frame.height / rows)
    around = picture[
        _centred(rows, frame.height / scale, frame.focus[1]), _centred(columns, frame.width / scale, frame.focus[0])
    ]
    fitted = fit_image(around, frame.width, frame.height, "crop")
    if around.shape == picture.shape:
        return fitted
    return replace(fitted, report=crop_report(picture, frame.width, frame.height))


def pad(picture: np.ndarray, frame: Frame) -> Fitted:
    return fit_image(picture, frame.width, frame.height, "pad", frame.background)


def blurred_pad(picture: np.ndarray, frame: Frame) -> Fitted:
    """Pad with a blurred copy of the picture: its light and colour continue into the bars, which stay calm while the
    clip moves."""
    fitted = pad(picture, frame)
    left, top, right, bottom = fitted.box
    canvas = _blurred(crop(picture, frame).image)
    canvas[top:bottom, left:right] = fitted.image[top:bottom, left:right]
    return Fitted(canvas, fitted.report, fitted.box)


def stretch(picture: np.ndarray, frame: Frame) -> Fitted:
    return fit_image(picture, frame.width, frame.height, "stretch")


FITS: dict[str, Callable[[np.ndarray, Frame], Fitted]] = {
    "crop": crop,
    "pad": pad,
    "blurred pad": blurred_pad,
    "stretch": stretch,
}
"""User-facing names of the functions (picture (H, W, 3) in [0, 1], frame) -> fitted."""


def _centred(length: int, kept: float, focus: float) -> slice:
    """The longest slice of an axis whose central crop of `kept` pixels is centred on the focus, as far as the
    picture's edges allow; a focus in the middle keeps the whole axis."""
    spare = length - kept
    before = min(max(focus * length - kept / 2, 0.0), max(spare, 0.0))
    shift = round(2 * before - spare)
    return slice(max(shift, 0), length + min(shift, 0))


def _blurred(image: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) in [0, 1], blurred by scaling it down and up again."""
    height, width = image.shape[:2]
    small = fit_image(image, max(1, width // BLUR), max(1, height // BLUR), "stretch").image
    pixels = torch.from_numpy(small).permute(2, 0, 1)[None]
    smooth = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", align_corners=False)
    return smooth[0].permute(1, 2, 0).clamp(0, 1).contiguous().numpy()


# The content box


def bounding_box(fitted: Fitted) -> dict[str, int]:
    """ComfyUI's bounding box of the part that shows the picture, plus the size of the whole image."""
    left, top, right, bottom = fitted.box
    height, width = fitted.image.shape[:2]
    box = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return box | dict(zip(FULL_SIZE, (width, height), strict=True))


def content_edges(box: dict[str, Any], width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the box in frames of width x height. Raises InputError for a box outside them."""
    full = [box.get(name, size) for name, size in zip(FULL_SIZE, (width, height), strict=True)]
    across, down = width / full[0], height / full[1]
    left, right = round(box["x"] * across), round((box["x"] + box["width"]) * across)
    top, bottom = round(box["y"] * down), round((box["y"] + box["height"]) * down)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InputError(
            f"the content box from {left},{top} to {right},{bottom} does not lie in frames of {width}x{height}: "
            "connect the content output of the node that fitted this picture"
        )
    return left, top, right, bottom
