"""Fitting a picture of any size to the size of the clip."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..config import Variant
from ..errors import InputError
from ..settings import SIZE_MULTIPLE, Fit
from .pictures import WHITE, Colour, unit_colour

_NOTICEABLE = 1e-3
"""Fraction of a side below which a difference in proportions is rounding and not reported."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted picture: image (H, W, 3) float32 in [0, 1]; report, one sentence on what was done; box (left, top,
    right, bottom), the pixels that show the picture, not background."""

    image: np.ndarray
    report: str
    box: tuple[int, int, int, int]


def fit_image(
    image: np.ndarray,
    width: int,
    height: int,
    fit: Fit = "crop",
    background: Colour = WHITE,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> Fitted:
    """Resize an image (H, W, 3) in [0, 1] to width x height with an antialiased filter in float32.

    "crop" fills the size and cuts the overhang evenly; "pad" shows all of the picture, centred on `background` (0-255
    each); "stretch" ignores proportions. An image of the right size is returned unchanged. Raises InputError for an
    unknown fit.
    """
    if image.shape[:2] == (height, width):
        return Fitted(image, f"{width}x{height} kept as it is", (0, 0, width, height))
    match fit:
        case "crop":
            return _crop(image, width, height, resampling)
        case "pad":
            return _pad(image, width, height, background, resampling)
        case "stretch":
            return _stretch(image, width, height, resampling)
    raise InputError(f"fit {fit!r} is not known: choose one of crop, pad, stretch")


def default_size(image: np.ndarray, variant: Variant) -> tuple[int, int]:
    """Default (width, height) of the clip for an image (H, W, 3): the size the variant was trained on, in the picture's
    orientation, or a square of about as many pixels if that is closer to the picture's proportions."""
    rows, columns = image.shape[:2]
    long, short = max(variant.width, variant.height), min(variant.width, variant.height)
    if max(rows, columns) / min(rows, columns) < math.sqrt(long / short):
        side = math.sqrt(long * short)
        return round_size(side, side)
    return (long, short) if columns > rows else (short, long)


def round_size(width: float, height: float) -> tuple[int, int]:
    """Round both sides to the nearest multiples of 64 pixels, at least 64."""
    return _nearest(width), _nearest(height)


def _nearest(side: float) -> int:
    return max(1, math.floor(side / SIZE_MULTIPLE + 0.5)) * SIZE_MULTIPLE


def crop_report(image: np.ndarray, width: int, height: int) -> str:
    """The report of cropping an image (H, W, C) to width x height, which does not depend on what part is kept."""
    rows, columns = image.shape[:2]
    kept = _kept(image, width, height)
    lost = {"width": 1 - kept[0] / columns, "height": 1 - kept[1] / rows}
    notes = [f"{_percent(share)} of the {side} lost" for side, share in lost.items() if share > _NOTICEABLE]
    return _report(image, "cropped", width, height, notes)


def _kept(image: np.ndarray, width: int, height: int) -> tuple[float, float]:
    """Width and height of the part that a crop keeps, in the image's pixels."""
    rows, columns = image.shape[:2]
    scale = max(width / columns, height / rows)
    return min(columns, width / scale), min(rows, height / scale)


def _crop(image: np.ndarray, width: int, height: int, resampling: Image.Resampling) -> Fitted:
    rows, columns = image.shape[:2]
    kept = _kept(image, width, height)
    left, top = (columns - kept[0]) / 2, (rows - kept[1]) / 2
    resized = _resize(image, width, height, resampling, (left, top, left + kept[0], top + kept[1]))
    return Fitted(resized, crop_report(image, width, height), (0, 0, width, height))


def _pad(image: np.ndarray, width: int, height: int, background: Colour, resampling: Image.Resampling) -> Fitted:
    rows, columns = image.shape[:2]
    scale = min(width / columns, height / rows)
    inner = (min(width, max(1, round(columns * scale))), min(height, max(1, round(rows * scale))))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas = np.broadcast_to(unit_colour(background), (height, width, 3)).copy()
    canvas[top : top + inner[1], left : left + inner[0]] = _resize(image, *inner, resampling)
    bars = {"width": 1 - inner[0] / width, "height": 1 - inner[1] / height}
    notes = [f"bars on {_percent(share)} of the {side}" for side, share in bars.items() if share]
    return Fitted(canvas, _report(image, "padded", width, height, notes), (left, top, left + inner[0], top + inner[1]))


def _stretch(image: np.ndarray, width: int, height: int, resampling: Image.Resampling) -> Fitted:
    rows, columns = image.shape[:2]
    wider = (width / columns) / (height / rows)
    gain = {"wider": wider - 1, "taller": 1 / wider - 1}
    notes = [f"{_percent(share)} {way} than it was" for way, share in gain.items() if share > _NOTICEABLE]
    report = _report(image, "stretched", width, height, notes)
    return Fitted(_resize(image, width, height, resampling), report, (0, 0, width, height))


def _report(image: np.ndarray, verb: str, width: int, height: int, notes: list[str]) -> str:
    size = f"{image.shape[1]}x{image.shape[0]}"
    return ", ".join([f"{size} {verb if notes else 'resized'} to {width}x{height}", *notes])


def _percent(share: float) -> str:
    """A fraction as whole percent; never 0 %, and 100 % only if exact."""
    if 0.995 <= share < 1 - 1e-9:
        return "over 99 %"
    return f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"


def _resize(
    image: np.ndarray,
    width: int,
    height: int,
    resampling: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resize the part of the image within `box` (left, top, right, bottom, may be fractional). Clipped to [0, 1],
    because Lanczos overshoots."""
    channels = (Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, -1, 0))
    resized = [np.asarray(each.resize((width, height), resampling, box=box)) for each in channels]
    return np.stack(resized, axis=-1).clip(0, 1)
