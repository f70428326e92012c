"""Clips whose motion is known by construction: (T, H, W, 3) float32 in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

HEIGHT, WIDTH = 64, 128
Y, X = np.mgrid[:HEIGHT, :WIDTH] + 0.5


def texture(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A smooth pattern with slopes in every direction, between 0 and 1."""
    waves = ((0.31, 0.17), (-0.22, 0.36), (0.45, -0.28), (0.11, 0.52))
    return 0.5 + 0.12 * sum(np.sin(a * x + b * y + 1.7 * k) for k, (a, b) in enumerate(waves))


def clip(draw: Callable[[int], np.ndarray], frames: int = 4) -> np.ndarray:
    """Grey frames from a function of their number to luma (H, W)."""
    return np.repeat(np.stack([draw(t) for t in range(frames)])[..., None], 3, axis=-1).astype(np.float32)


def moving(velocity: tuple[float, float], frames: int = 3, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """The texture travelling as a whole, `velocity` (x, y) pixels a frame; size is (height, width)."""
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    return clip(lambda t: texture(x - velocity[0] * t, y - velocity[1] * t), frames)


def pan(x: float, y: float = 0.0, frames: int = 4) -> np.ndarray:
    return clip(lambda t: texture(X - x * t, Y - y * t), frames)


def zoom(percent: float, frames: int = 4) -> np.ndarray:
    """Grows about the middle by so many percent a frame."""

    def draw(t: int) -> np.ndarray:
        scale = (1 + percent / 100) ** t
        return texture((X - WIDTH / 2) / scale, (Y - HEIGHT / 2) / scale)

    return clip(draw, frames)


def roll(degrees: float, frames: int = 4) -> np.ndarray:
    """Turns clockwise about the middle."""

    def draw(t: int) -> np.ndarray:
        cos, sin = np.cos(np.radians(degrees * t)), np.sin(np.radians(degrees * t))
        x, y = X - WIDTH / 2, Y - HEIGHT / 2
        return texture(x * cos + y * sin, y * cos - x * sin)

    return clip(draw, frames)


def disc(speed: float, ground_speed: float = 0.0, frames: int = 4) -> np.ndarray:
    """A disc of radius 12 that travels right over a ground that may travel too: 5.5 % of the picture."""

    def draw(t: int) -> np.ndarray:
        inside = np.hypot(X - 50 - speed * t, Y - 32) < 12
        return np.where(inside, texture(1.3 * (X - speed * t) + 50, 1.3 * Y), texture(X - ground_speed * t, Y))

    return clip(draw, frames)
