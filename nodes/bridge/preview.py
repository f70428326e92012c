"""Progress, and a preview of the whole clip that moves, where ComfyUI shows the first frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import latent_preview
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor

Callback = Callable[[int, "Tensor", "Tensor", int], None]
"""ComfyUI's: (step from 0, denoised latents in sampler units, noisy latents, steps in all)."""

FRAMES_PER_SECOND = 8
COLOURS = 256
"""One palette for all frames: a third of the bytes, and the artist's window is often across a network."""

PALETTE_DETAIL = 4
"""One pixel in so many squared is enough to choose the palette from."""

PAUSE = 0.5
"""Seconds between two previews at least; shorter, and none would be watched."""

COST = 20
"""At most one part in so many of the time goes into previews, however slow the previewer is."""

_STILL = (latent_preview.TAESDPreviewerImpl, latent_preview.Latent2RGBPreviewer)
"""Previewers of ComfyUI's own, which show one frame. Others may know video and are left to it."""


class MovingPicture(Image.Image):
    """The first of several frames; saved, as ComfyUI's server saves what it sends, an animated PNG of all of them."""

    def __init__(self, frames: Sequence[Image.Image]) -> None:
        super().__init__()
        self.__setstate__(frames[0].__getstate__())  # Pillow's pickling: the one public way to become another picture
        self._animation = animated_png(frames)

    def save(self, fp: IO[bytes], format: str | None = None, **_options: Any) -> None:
        """Write the animation, a PNG whatever the format. It was compressed when made, off the server's thread."""
        fp.write(self._animation)


class ProgressCallback:
    """What ComfyUI calls after each step of a batch of clips: cancels, moves the progress bar, shows the clips."""

    def __init__(self, patcher: ModelPatcher, steps: int, num_frames: int) -> None:
        self.previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
        self.bar = comfy.utils.ProgressBar(steps)
        self.num_frames = num_frames
        self.began = time.perf_counter()
        self.due = self.began

    def __call__(self, step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(step + 1, total_steps, self._preview(x0))

    def _preview(self, x0: Tensor) -> tuple[str, Image.Image, int | None] | None:
        if self.previewer is None:
            return None
        if not isinstance(self.previewer, _STILL):
            return self.previewer.decode_latent_to_preview_image("JPEG", x0)
        start = time.perf_counter()
        if start < self.due:
            return None
        # Begins where the clip would be by now, so that it plays on from one preview to the next.
        frames = turned(self._frames(x0), int((start - self.began) * FRAMES_PER_SECOND))
        picture = MovingPicture(frames)
        end = time.perf_counter()
        self.due = end + max(PAUSE, COST * (end - start))
        return "PNG", picture, None

    def _frames(self, x0: Tensor) -> list[Image.Image]:
        """Latents (B * T, 4, h, w) -> T pictures, the clips of a batch side by side."""
        stills = [self.previewer.decode_latent_to_preview(x0[i : i + 1]) for i in range(x0.shape[0])]
        rows = [side_by_side(stills[i :: self.num_frames]) for i in range(self.num_frames)]
        side = latent_preview.MAX_PREVIEW_RESOLUTION
        return [ImageOps.contain(row, (side, side), Image.Resampling.BILINEAR) for row in rows]


def turned(frames: list[Image.Image], start: int) -> list[Image.Image]:
    """The same loop from another frame on."""
    start %= len(frames)
    return frames[start:] + frames[:start]


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a row."""
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for place, picture in enumerate(pictures):
        row.paste(picture, (place * width, 0))
    return row


def animated_png(frames: Sequence[Image.Image]) -> bytes:
    """RGB frames of one size as an endless animated PNG."""
    palette = side_by_side([frame.reduce(PALETTE_DETAIL) for frame in frames]).quantize(
        COLOURS, Image.Quantize.FASTOCTREE
    )
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    file = BytesIO()
    duration = 1000 // FRAMES_PER_SECOND
    first.save(file, "PNG", save_all=True, append_images=others, duration=duration, loop=0, compress_level=1)
    return file.getvalue()
