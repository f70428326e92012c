"""Text on pictures: Pillow's own font, never cut off."""

from __future__ import annotations

from PIL import ImageDraw, ImageFont

SMALLEST = 8
"""Pixels below which letters are no longer read; longer text ends in dots instead."""

Colour = tuple[int, int, int]


def write(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, size: int, ink: Colour, anchor: str = "lm"
) -> None:
    """Write one line at `place`, in letters of at most `size` pixels that let it fit in `width` pixels. `anchor` is
    Pillow's: which point of the text lies there, by default its left end and half its height."""
    while size > SMALLEST and text_width(pen, text, size) > width:
        size -= 1
    whole = text
    while len(text) > 1 and text_width(pen, text, size) > width:
        whole = whole[:-1]
        text = whole + "..."
    pen.text(place, text, fill=ink, font=ImageFont.load_default(size), anchor=anchor)


def text_width(pen: ImageDraw.ImageDraw, text: str, size: int) -> int:
    """Pixels, rounded up."""
    return int(pen.textlength(text, font=ImageFont.load_default(size))) + 1
