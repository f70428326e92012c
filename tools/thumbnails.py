"""Cards for ComfyUI's list of workflows: the sample picture, a play sign and a few words. They show no result, because
output of the released models may not be shipped."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tools.samples import PICTURE

SIDE = 480
SCALE = 2
LEFT, UPRIGHT_LEFT = 240, 166
"""Left edge of the square cut from the sample picture, for normal and upright cards."""

MARGIN = 24
LETTERS = 40
SIGN = 46
"""Radius of the play sign."""


@dataclass(frozen=True, slots=True)
class Card:
    """Content of one thumbnail; `upright` shows the picture as a portrait between blurred bars."""

    words: str
    upright: bool = False


def draw_card(card: Card) -> Image.Image:
    """The thumbnail, a square RGB picture."""
    side = SIDE * SCALE
    with Image.open(PICTURE) as picture:
        still = picture.convert("RGB")
    left, height = UPRIGHT_LEFT if card.upright else LEFT, still.height
    middle = still.crop((left, 0, left + height, height)).resize((side, side), Image.Resampling.LANCZOS)
    if card.upright:
        middle = _upright(middle)
    pen = ImageDraw.Draw(middle, "RGBA")
    play_sign(pen, side)
    _words(pen, card.words, side)
    return middle.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _upright(square: Image.Image) -> Image.Image:
    side = square.width
    width = side * 9 // 16
    around = square.filter(ImageFilter.GaussianBlur(24)).point(lambda value: value // 2)
    left = (side - width) // 2
    around.paste(square.crop((left, 0, left + width, side)), (left, 0))
    return around


def play_sign(pen: ImageDraw.ImageDraw, side: int) -> None:
    """Draw a play sign in the lower right corner of a square with sides of `side` pixels."""
    radius = SIGN * SCALE
    centre = side - MARGIN * SCALE - radius
    box = (centre - radius, centre - radius, centre + radius, centre + radius)
    pen.ellipse(box, fill=(255, 255, 255, 226))
    left, reach = centre - radius * 0.3, radius * 0.52
    corners = [(left, centre - reach), (left, centre + reach), (left + reach * 1.7, centre)]
    pen.polygon(corners, fill=(38, 30, 72, 255))


def _words(pen: ImageDraw.ImageDraw, words: str, side: int) -> None:
    font = ImageFont.load_default(LETTERS * SCALE)
    foot = side - (MARGIN + SIGN) * SCALE
    box = pen.multiline_textbbox((MARGIN * SCALE, foot), words, font=font, anchor="lm", spacing=12)
    pad = 14 * SCALE
    pen.rounded_rectangle((box[0] - pad, box[1] - pad, box[2] + pad, box[3] + pad), radius=pad, fill=(20, 16, 44, 208))
    pen.multiline_text((MARGIN * SCALE, foot), words, font=font, anchor="lm", fill=(255, 255, 255), spacing=12)
