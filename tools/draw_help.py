"""Draw the pictures and clips of the help pages (web/docs/images) and the README with the demo model on the CPU.

    python -m tools.draw_help              all of them, about ten minutes
    python -m tools.draw_help seed sigmas  these

Each picture shows real output: clips by svd_core, fitted pictures by the nodes in a running ComfyUI.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import svd_core
from svd_core.config import VARIANTS
from svd_core.demo import DEMO_MODEL
from svd_core.motion import CameraMove, ObjectMove
from svd_core.sampling import (
    align_your_steps_sigmas,
    constant_guidance,
    edm_sigmas,
    linear_guidance,
    trapezoid_guidance,
    triangle_guidance,
)
from svd_core.settings import Settings
from tools.comfyui_server import prepare, running
from tools.fetch_comfyui import newest_comfyui
from tools.samples import DEMO_PICTURE, PICTURE

ROOT = Path(__file__).resolve().parents[1]

FOLDER = ROOT / "web" / "docs" / "images"
README_CLIP = "clip"

WIDTH, HEIGHT, FPS, SEED = 128, 64, 7, 42
LONG_TAKE = 40
SCALE = 2
LABEL, GAP, MARGIN = 24, 6, 6
QUALITY = 82
BACKGROUND, INK = (24, 24, 28), (235, 235, 240)
COLOURS = ((255, 179, 71), (105, 190, 255), (140, 220, 130), (240, 130, 190))

PLOT = (560, 260)
PLOT_EDGES = (54, 14, 140, 30)
"""Margins around a plot: left, top, right (for its legend), bottom."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Frames (T, H, W, 3) uint8 with a caption. A still has one frame."""

    words: str
    frames: np.ndarray


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot: its name and its values (n,)."""

    name: str
    values: Sequence[float]


# Clips by svd_core


@cache
def model() -> svd_core.StableVideo:
    torch.set_num_threads(1)  # the networks are too small for threads, and the output stays reproducible
    return svd_core.load_checkpoint(DEMO_MODEL)


@cache
def still() -> Image.Image:
    with Image.open(DEMO_PICTURE) as picture:
        return picture.convert("RGB")


@cache
def frames(**settings: Any) -> np.ndarray:
    """Clip of the demo picture, (14, 64, 128, 3) uint8."""
    chosen = {"width": WIDTH, "height": HEIGHT, "fps": FPS, "seed": SEED} | settings
    return _in_bytes(model().animate(still(), **chosen))


def _in_bytes(clip: np.ndarray) -> np.ndarray:
    return (clip * 255).round().astype(np.uint8)


def clips(name: str, values: Sequence[float], **settings: Any) -> list[Panel]:
    """One panel for each value of a setting."""
    return [Panel(f"{name} {value:g}", frames(**settings, **{name: value})) for value in values]


def guidance_panels() -> list[Panel]:
    """Clips from the same noise at three guidance weights, constant over frames."""
    return [
        Panel(f"guidance {weight:g}", frames(min_guidance=weight, max_guidance=weight)) for weight in (1.0, 2.0, 6.0)
    ]


def long_take_panels() -> list[Panel]:
    """A take of three windows, by both methods."""
    chosen = Settings(frames=LONG_TAKE, width=WIDTH, height=HEIGHT, fps=FPS, seed=SEED)
    made = {
        name: model().render(still(), chosen, svd_core.Controls(window=0, fused=fused)).frames
        for name, fused in (("in turns", False), ("fusion", True))
    }
    return [Panel(name, _in_bytes(clip)) for name, clip in made.items()]


def camera_panels() -> list[Panel]:
    """The same clip under three ways of the camera."""
    moves = {"pan_x 0.25": CameraMove(pan_x=0.25), "zoom 1.4": CameraMove(zoom=1.4), "roll 15": CameraMove(roll=15)}
    return [controlled(name, camera=move) for name, move in moves.items()]


def drag_panels() -> list[Panel]:
    """The demo picture's rocket sent three ways."""
    moves = {
        "right 0.4": ObjectMove(right=0.4),
        "down -0.25": ObjectMove(down=-0.25),
        "right 0.1, scale 1.8": ObjectMove(right=0.1, scale=1.8),
    }
    return [controlled(name, drag=_rocket(), drag_move=move) for name, move in moves.items()]


def controlled(words: str, **controls: Any) -> Panel:
    """The clip of the demo picture under controls."""
    chosen = Settings(width=WIDTH, height=HEIGHT, fps=FPS, seed=SEED)
    return Panel(words, _in_bytes(model().render(still(), chosen, svd_core.Controls(**controls)).frames))


def _rocket() -> np.ndarray:
    """Mask (64, 128) of the demo picture's rocket: what is not the sky's colour in its part of the picture."""
    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    part = (slice(24, 56), slice(18, 52))
    picture = np.asarray(still().resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), np.float32)[part] / 255
    mask[part] = np.abs(picture - np.median(picture.reshape(-1, 3), axis=0)).sum(axis=-1) > 0.35
    return mask


# Fitted pictures by the nodes


def fit_panels() -> list[Panel]:
    """The 1024x576 sample picture fitted into a square in all four modes."""
    modes = ("crop", "pad", "blurred pad", "stretch")
    prompt = {"1": _node("LoadImage", image=PICTURE.name)}
    for place, mode in enumerate(modes):
        prompt |= {f"fit{place}": _fit(mode), f"save{place}": _save([f"fit{place}", 0], mode)}
    return [
        Panel(mode, picture[None])
        for mode, picture in zip(modes, run_nodes(prompt, [f"save{place}" for place in range(4)]), strict=True)
    ]


def unfit_panels() -> list[Panel]:
    """A padded picture, and the result of Unfit."""
    prompt = {
        "1": _node("LoadImage", image=PICTURE.name),
        "fit": _fit("blurred pad"),
        "unfit": _node("StableVideoImageUnfit", images=["fit", 0], content=["fit", 3]),
        "save0": _save(["fit", 0], "fitted"),
        "save1": _save(["unfit", 0], "unfitted"),
    }
    before, after = run_nodes(prompt, ["save0", "save1"])
    return [Panel("before", before[None]), Panel("after", after[None])]


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def _fit(mode: str) -> dict[str, Any]:
    size = {"width": 192, "height": 192, "focus_x": 0.4, "focus_y": 0.5, "background": "#303038"}
    return _node("StableVideoImageFit", image=["1", 0], mode=mode, **size)


def _save(images: list[Any], prefix: str) -> dict[str, Any]:
    return _node("SaveImage", images=images, filename_prefix=prefix)


def run_nodes(prompt: Mapping[str, Mapping[str, Any]], savers: Sequence[str]) -> list[np.ndarray]:
    """Run a prompt in a new ComfyUI. Returns the picture (H, W, 3) uint8 written by each saving node."""
    with tempfile.TemporaryDirectory(prefix="help-") as folder:
        base = prepare(Path(folder))
        (base / "input" / PICTURE.name).write_bytes(PICTURE.read_bytes())
        with running(base, newest_comfyui()) as comfyui:
            run = comfyui.run(prompt)
            return [_picture(comfyui.fetch(run.files(saver)[0])) for saver in savers]


def _picture(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


# Rows of panels


def row(panels: Sequence[Panel], scale: int = SCALE) -> list[Image.Image]:
    """Frames of a picture that shows panels of equal height side by side, in sync."""
    length = max(len(panel.frames) for panel in panels)
    return [_row_at(panels, place, scale) for place in range(length)]


def _row_at(panels: Sequence[Panel], place: int, scale: int) -> Image.Image:
    widths = [panel.frames.shape[2] * scale for panel in panels]
    height = max(panel.frames.shape[1] for panel in panels) * scale
    canvas = Image.new("RGB", (sum(widths) + GAP * (len(panels) + 1), height + LABEL + GAP), BACKGROUND)
    pen, font, left = ImageDraw.Draw(canvas), ImageFont.load_default(14), GAP
    for panel, width in zip(panels, widths, strict=True):
        frame = Image.fromarray(panel.frames[min(place, len(panel.frames) - 1)])
        shown = frame.resize((width, frame.height * scale), Image.Resampling.BICUBIC)
        canvas.paste(shown, (left, GAP + (height - shown.height) // 2))
        pen.text((left + width // 2, height + GAP + LABEL // 2), panel.words, INK, font, anchor="mm")
        left += width + GAP
    return canvas


def save(name: str, pictures: Sequence[Image.Image]) -> Path:
    """Save an animation, or a still for a single frame, replacing the file."""
    path = FOLDER / f"{name}.webp"
    rest = {"save_all": True, "append_images": pictures[1:], "duration": 1000 // FPS, "loop": 0}
    pictures[0].save(path, quality=QUALITY, method=6, **(rest if len(pictures) > 1 else {}))
    return path


# Plots


def plot(curves: Sequence[Line], *, logarithmic: bool, across: str) -> Image.Image:
    """Line plot over equally spaced positions, with the curves' names at the right; `across` labels the x axis."""
    canvas = Image.new("RGB", PLOT, BACKGROUND)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    scale = math.log10 if logarithmic else float
    heights = [[scale(value) for value in curve.values] for curve in curves]
    low, high = min(map(min, heights)), max(map(max, heights))
    _draw_axes(pen, font, low, high, logarithmic, across)
    for place, (curve, line) in enumerate(zip(curves, heights, strict=True)):
        points = [_point(step / (len(line) - 1), (value - low) / (high - low)) for step, value in enumerate(line)]
        pen.line(points, COLOURS[place], 2)
        for x, y in points:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), COLOURS[place])
        pen.text((PLOT[0] - PLOT_EDGES[2] + 14, 30 + 22 * place), curve.name, COLOURS[place], font, anchor="lm")
    return canvas


def _point(along: float, up: float) -> tuple[float, float]:
    """Pixel coordinates of a position and a height, both 0 to 1, in the plot."""
    left, top, right, bottom = PLOT_EDGES
    return left + along * (PLOT[0] - left - right), top + (1 - up) * (PLOT[1] - top - bottom)


def _draw_axes(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, low: float, high: float, logarithmic: bool, across: str
) -> None:
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + part * (high - low)
        start, end = _point(0, part), _point(1, part)
        pen.line([start, end], (58, 58, 66))
        pen.text((start[0] - 6, start[1]), f"{10**value if logarithmic else value:.3g}", INK, font, anchor="rm")
    middle = _point(0.5, 0)
    pen.text((middle[0], PLOT[1] - 12), across, INK, font, anchor="mm")


def sigmas_plot() -> Image.Image:
    steps = 10
    curves = [
        Line("edm", edm_sigmas(steps)[:-1].tolist()),
        Line("align_your_steps", align_your_steps_sigmas(steps)[:-1].tolist()),
    ]
    return plot(curves, logarithmic=True, across="step 1 to 10; the last level, 0, is left out")


def guidance_plot() -> Image.Image:
    variant = VARIANTS["svd_xt"]
    length, ends = variant.frames, (variant.min_guidance, variant.max_guidance)
    curves = [
        Line("linear", linear_guidance(length, *ends).tolist()),
        Line("constant", constant_guidance(length, ends[1]).tolist()),
        Line("triangle", triangle_guidance(length, *ends).tolist()),
        Line("trapezoid", trapezoid_guidance(length, *ends).tolist()),
    ]
    return plot(curves, logarithmic=False, across=f"frame 1 to {length}: weights of SVD-XT")


PICTURES: dict[str, Callable[[], list[Image.Image]]] = {
    README_CLIP: lambda: row([Panel("a drawn still", np.asarray(still().resize((WIDTH, HEIGHT)))[None]), *_usual()]),
    "motion_bucket": lambda: row(clips("motion_bucket", (20, 127, 250))),
    "fps": lambda: row(clips("fps", (4, 7, 20))),
    "seed": lambda: row(clips("seed", (SEED, 1, 2))),
    "steps": lambda: row(clips("steps", (3, 8, 16))),
    "guidance": lambda: row(guidance_panels()),
    "camera": lambda: row(camera_panels()),
    "drag": lambda: row(drag_panels()),
    "long_take": lambda: row(long_take_panels()),
    "fit": lambda: row(fit_panels(), scale=1),
    "unfit": lambda: row(unfit_panels(), scale=1),
    "sigmas": lambda: [sigmas_plot()],
    "guidance_curves": lambda: [guidance_plot()],
}
"""All pictures by file name."""


def _usual() -> list[Panel]:
    return [Panel("the small demo model's clip", frames())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(PICTURES)}; default: all")
    names = parser.parse_args().names or list(PICTURES)
    if unknown := set(names) - set(PICTURES):
        parser.error(f"no picture is called {', '.join(sorted(unknown))}: choose from {', '.join(PICTURES)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = save(name, PICTURES[name]())
        print(path.relative_to(ROOT), path.stat().st_size // 1024, "KiB", flush=True)


if __name__ == "__main__":
    main()
