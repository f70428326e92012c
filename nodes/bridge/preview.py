"""Progress, and an animated preview of the whole clip, in place of ComfyUI's preview of the first frame."""

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
"""ComfyUI's callback: (step from 0, denoised latents in sampler units, noisy latents, total steps)."""

FRAMES_PER_SECOND = 8
COLOURS = 256
"""Colours of the palette shared by all frames, which cuts the bytes to a third: the browser is often remote."""

PALETTE_DETAIL = 4
"""The palette is chosen from a copy of the frames scaled down by this factor."""

PAUSE = 0.5
"""Minimum seconds between previews; with less, none would be watched."""

COST = 20
"""At most about 1 / COST of the time goes into previews, however slow the previewer is."""

_STILL = (latent_preview.TAESDPreviewerImpl, latent_preview.Latent2RGBPreviewer)
"""ComfyUI's own previewers, which show one frame. Others may support video and are used unchanged."""


class MovingPicture(Image.Image):
    """The first of several frames as an image; `save`, which ComfyUI's server calls, writes all as an animated PNG."""

    def __init__(self, frames: Sequence[Image.Image]) -> None:
        super().__init__()
        self.__setstate__(
            frames[0].__getstate__()
        )  # Pillow's pickling is the only public API that copies an image in place
        self._animation = animated_png(frames)

    def save(self, fp: IO[bytes], format: str | None = None, **_options: Any) -> None:
        """Write the animation, a PNG whatever the format. Encoded in the constructor, off the server's thread."""
        fp.write(self._animation)


class ProgressCallback:
    """Callback after each step of a batch of clips: checks for cancellation, updates progress bar and preview."""

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
        # Start at the frame that would be playing now, so that playback continues from one preview to the next.
        frames = rotated(self._frames(x0), int((start - self.began) * FRAMES_PER_SECOND))
        picture = MovingPicture(frames)
        end = time.perf_counter()
        self.due = end + max(PAUSE, COST * (end - start))
        return "PNG", picture, None

    def _frames(self, x0: Tensor) -> list[Image.Image]:
        """Latents (B * T, 4, h, w) -> T pictures with the clips of the batch side by side."""
        stills = [self.previewer.decode_latent_to_preview(x0[i : i + 1]) for i in range(x0.shape[0])]
        rows = [side_by_side(stills[i :: self.num_frames]) for i in range(self.num_frames)]
        side = latent_preview.MAX_PREVIEW_RESOLUTION
        return [ImageOps.contain(row, (side, side), Image.Resampling.BILINEAR) for row in rows]


def rotated(frames: list[Image.Image], start: int) -> list[Image.Image]:
    """The frames of a loop rotated to begin at index `start`, modulo its length."""
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
