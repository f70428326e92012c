"""Draw the sample picture, a rocket over hills at dusk: `python -m tools.draw_rocket workflows/assets/rocket.jpg`.

The shipped file was made by this script, so it has the licence of the code. Everything is drawn large and scaled down.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 1024, 576
SCALE = 3
SEED = 7
QUALITY = 93

Colour = tuple[int, int, int]
Point = tuple[float, float]

SKY: tuple[tuple[float, Colour], ...] = (
    (0.0, (18, 22, 66)),
    (0.38, (74, 52, 128)),
    (0.62, (214, 96, 118)),
    (0.82, (250, 172, 108)),
    (1.0, (255, 214, 150)),
)
SUN: Point = (700, 372)
SUN_RADIUS = 46
STARS = 90
STAR_FLOOR = 230

HILLS: tuple[tuple[float, float, float, Colour], ...] = (
    (386, 26, 2.1, (178, 92, 132)),
    (424, 34, 3.4, (124, 68, 122)),
    (468, 36, 4.3, (76, 48, 104)),
    (520, 30, 5.7, (38, 30, 72)),
)
"""Hills from back to front: mean height, amplitude, waves over the width, colour."""

ROCKET: Point = (446, 172)
ROCKET_SIZE = 1.3
LEAN = 24.0
"""Tilt of the rocket to the right, in degrees."""


def draw() -> Image.Image:
    """The picture, (1024, 576) RGB."""
    noise = np.random.default_rng(SEED)
    picture = Image.fromarray(_sky())
    _stars(picture, noise)
    _glow(picture, SUN, 210, (255, 214, 150), 150)
    _disc(picture, SUN, SUN_RADIUS, (255, 240, 206))
    for place, (mean, height, waves, colour) in enumerate(HILLS):
        line = _ridge(noise, mean, height, waves)
        _hill(picture, line, colour)
        if place == len(HILLS) - 1:
            _trees(picture, line, noise, (26, 22, 56))
    _trail(picture, noise)
    _rocket(picture)
    small = picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return small.convert("RGB")


def _sky() -> np.ndarray:
    rows = np.linspace(0, 1, HEIGHT * SCALE) * HEIGHT / 440
    places = [place for place, _ in SKY]
    bands = [np.interp(rows, places, [colour[channel] for _, colour in SKY]) for channel in range(3)]
    column = np.stack(bands, axis=-1).round().astype(np.uint8)
    return np.repeat(column[:, None], WIDTH * SCALE, axis=1)


def _stars(picture: Image.Image, noise: np.random.Generator) -> None:
    pen = ImageDraw.Draw(picture, "RGBA")
    for _ in range(STARS):
        x, y = noise.uniform(0, WIDTH), noise.uniform(0, 1) ** 1.6 * STAR_FLOOR
        radius, strength = noise.uniform(0.5, 1.5), int(noise.uniform(120, 255) * (1 - y / STAR_FLOOR * 0.8))
        pen.ellipse(_box((x, y), radius), fill=(255, 250, 235, strength))


def _glow(picture: Image.Image, centre: Point, radius: float, colour: Colour, strength: int) -> None:
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).ellipse(_box(centre, radius * 0.55), fill=strength)
    picture.paste(colour, mask=mask.filter(ImageFilter.GaussianBlur(radius * 0.3 * SCALE)))


def _disc(picture: Image.Image, centre: Point, radius: float, colour: Colour) -> None:
    ImageDraw.Draw(picture).ellipse(_box(centre, radius), fill=colour)


def _ridge(noise: np.random.Generator, mean: float, height: float, waves: float) -> np.ndarray:
    """Height of a hill's outline per column: a sum of sines with random phases."""
    x = np.linspace(0, 1, WIDTH)
    line = np.full(WIDTH, float(mean))
    for octave in range(4):
        phase = noise.uniform(0, 2 * np.pi)
        line += height / 2.1**octave * np.sin(2 * np.pi * waves * 0.5 * 1.9**octave * x + phase)
    return line


def _hill(picture: Image.Image, line: np.ndarray, colour: Colour) -> None:
    pen = ImageDraw.Draw(picture)
    outline = [(x * SCALE, y * SCALE) for x, y in enumerate(line)]
    right, floor = WIDTH * SCALE, HEIGHT * SCALE
    pen.polygon([*outline, (right, outline[-1][1]), (right, floor), (0, floor)], fill=colour)


def _trees(picture: Image.Image, line: np.ndarray, noise: np.random.Generator, colour: Colour) -> None:
    pen = ImageDraw.Draw(picture)
    for x in np.sort(noise.uniform(0, WIDTH - 1, 46)):
        foot, height = line[int(x)] + 6, noise.uniform(16, 40)
        for tier in range(3):
            top = foot - height + tier * height * 0.24
            half = height * (0.13 + 0.06 * tier)
            _polygon(pen, [(x, top), (x - half, top + height * 0.42), (x + half, top + height * 0.42)], colour)


def _trail(picture: Image.Image, noise: np.random.Generator) -> None:
    """Draw smoke from the rocket down to the horizon, wider and thinner with age."""
    layer = Image.new("L", picture.size)
    pen = ImageDraw.Draw(layer)
    start = np.array(_turned((0, 118)))
    end = np.array((212.0, 470.0))
    bend = np.array((316.0, 400.0))
    for age in np.linspace(0, 1, 150):
        centre = (1 - age) ** 2 * start + 2 * age * (1 - age) * bend + age**2 * end
        jitter = noise.normal(0, 2 + 9 * age, 2)
        pen.ellipse(_box(tuple(centre + jitter), 7 + 19 * age), fill=int(205 * (1 - age) ** 0.8 + 18))
    picture.paste((255, 226, 206), mask=layer.filter(ImageFilter.GaussianBlur(5 * SCALE)))


def _rocket(picture: Image.Image) -> None:
    _glow(picture, _turned((0, 104)), 92, (255, 196, 110), 190)
    pen = ImageDraw.Draw(picture)

    def shape(points: Sequence[Point], colour: Colour) -> None:
        _polygon(pen, [_turned(point) for point in points], colour)

    shape(_drop(17, 62, 92), (255, 132, 54))
    shape(_drop(11, 62, 70), (255, 206, 92))
    shape(_drop(5.5, 62, 46), (255, 250, 226))
    for side in (-1, 1):
        shape([(side * 20, 14), (side * 46, 58), (side * 43, 78), (side * 16, 56)], (196, 52, 72))
    shape([(-14, 54), (14, 54), (18, 66), (-18, 66)], (72, 70, 92))
    shape(_hull(-1.0, 1.0), (236, 234, 240))
    shape(_hull(0.28, 1.0), (200, 196, 214))
    shape(_hull(0.68, 1.0), (164, 158, 186))
    shape(_nose(-1.0), (222, 66, 82))
    shape(_nose(0.28), (184, 46, 68))
    shape([(-4, 30), (4, 30), (4, 80), (-4, 80)], (222, 66, 82))
    for radius, colour in ((15, (96, 92, 118)), (11, (84, 176, 214)), (11, (84, 176, 214))):
        pen.ellipse(_box(_turned((0, -16)), ROCKET_SIZE * radius), fill=colour)
    pen.ellipse(_box(_turned((-4, -20)), ROCKET_SIZE * 3.6), fill=(214, 240, 250))


def _half_width(y: float) -> float:
    """Half width of the hull at height y: pointed at -92, widest near the middle, narrower at the engine."""
    place = (y + 92) / 152
    return 27 * np.sin(np.pi * min(place * 0.78 + 0.02, 1.0)) ** 0.72


def _hull(left: float, right: float, top: float = -92, bottom: float = 58) -> list[Point]:
    """The part of the hull between two fractions of its half width."""
    heights = np.linspace(top, bottom, 60)
    edge = [(left * _half_width(y), y) for y in heights]
    return [*edge, *((right * _half_width(y), y) for y in heights[::-1])]


def _nose(left: float) -> list[Point]:
    return _hull(left, 1.0, bottom=-46)


def _drop(half: float, top: float, length: float) -> list[Point]:
    """Outline of a flame: round at the top, pointed at the bottom."""
    along = np.linspace(0, 1, 40)
    right = [(half * np.sin(np.pi * t**0.6) + 0.6 * half * (1 - t) ** 3, top + length * t) for t in along]
    return [*right, *((-x, y) for x, y in reversed(right))]


def _turned(point: Point) -> Point:
    """Map a point from the rocket's upright coordinates to the picture's."""
    angle = np.deg2rad(LEAN)
    x, y = ROCKET_SIZE * point[0], ROCKET_SIZE * point[1]
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return ROCKET[0] + x * cos - y * sin, ROCKET[1] + x * sin + y * cos


def _polygon(pen: ImageDraw.ImageDraw, points: Sequence[Point], colour: Colour) -> None:
    pen.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=colour)


def _box(centre: Point, radius: float) -> list[float]:
    return [(value + sign * radius) * SCALE for sign in (-1, 1) for value in centre]


def main() -> None:
    draw().save(Path(sys.argv[1]), quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
