"""Draw the icon (a square of 400 pixels) and the banner (21:9) for the Comfy Registry from the sample picture.

python -m tools.draw_registry
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tools.samples import PICTURE
from tools.thumbnails import SCALE, SIDE, play_sign

ROOT = Path(__file__).resolve().parents[1]

FOLDER = ROOT / "docs" / "registry"

ICON = 400
ICON_CUT = (210, 0, 786, 576)
CORNER = 96
"""Radius of the icon's corners in pixels, at the size at which it is drawn."""

BANNER = (1260, 540)
BANNER_CUT = (0, 40, 1024, 479)
NAME, LINE = "Stable Video", "A still picture in motion"
NAME_PLACE, LINE_PLACE = (700, 150), (704, 228)


def icon() -> Image.Image:
    """The rocket with a play sign and rounded corners, (400, 400) with transparency."""
    side = SIDE * SCALE
    square = still().crop(ICON_CUT).resize((side, side), Image.Resampling.LANCZOS)
    play_sign(ImageDraw.Draw(square, "RGBA"), side)
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), CORNER, 255)
    square.putalpha(mask)
    return square.resize((ICON, ICON), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """The picture with the name next to the rocket."""
    picture = still().crop(BANNER_CUT).resize(BANNER, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    pen.text(NAME_PLACE, NAME, (255, 255, 255), ImageFont.load_default(84), anchor="ls")
    pen.text(LINE_PLACE, LINE, (255, 232, 214), ImageFont.load_default(40), anchor="ls")
    return picture


def still() -> Image.Image:
    with Image.open(PICTURE) as picture:
        return picture.convert("RGB")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, picture in {"icon": icon(), "banner": banner()}.items():
        path = FOLDER / f"{name}.png"
        picture.save(path, optimize=True)
        print(path.relative_to(ROOT), picture.size, path.stat().st_size // 1024, "KiB")


if __name__ == "__main__":
    main()
