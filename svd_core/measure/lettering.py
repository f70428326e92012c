"""Text on pictures in Pillow's own font, shrunk or shortened to fit."""

from __future__ import annotations

from PIL import ImageDraw, ImageFont

SMALLEST = 8
"""Smallest legible letter size in pixels; text that is still too long is shortened with dots."""

Colour = tuple[int, int, int]


def write(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, size: int, ink: Colour, anchor: str = "lm"
) -> None:
    """Write one line at `place`, in letters of at most `size` pixels, small enough to fit `width` pixels. `anchor` is
    Pillow's: the point of the text that is at `place`, by default the middle of its left edge."""
    while size > SMALLEST and text_width(pen, text, size) > width:
        size -= 1
    whole = text
    while len(text) > 1 and text_width(pen, text, size) > width:
        whole = whole[:-1]
        text = whole + "..."
    pen.text(place, text, fill=ink, font=ImageFont.load_default(size), anchor=anchor)


def text_width(pen: ImageDraw.ImageDraw, text: str, size: int) -> int:
    """Width of a text in pixels, rounded up."""
    return int(pen.textlength(text, font=ImageFont.load_default(size))) + 1
