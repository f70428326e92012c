"""Conditioning of the network: the still, and three numbers that say how the clip should move (spec 4)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import VARIANTS, Variant
from .errors import InputError
from .settings import is_number, is_whole
from .sinusoid import sinusoid

MAX_FPS = 1024
MAX_MOTION_BUCKET = 1023
MAX_AUGMENTATION = 10.0

TRAINED_MOTION_BUCKET = 255
"""The highest motion bucket seen in training (spec 8.1)."""

TRAINED_FPS = (6, 31)
"""Slowest and fastest playback that the reference accepts without a warning: fps_id 5 to 30 (spec 6)."""


@dataclass(frozen=True, slots=True)
class MicroConditioning:
    """Three numbers about the clip: fps, frames per second as played (at least 1); motion_bucket, 0 to 1023, higher
    moves more; augmentation, standard deviation (0 to 10) of the noise on the still, on the [-1, 1] scale.

    Raises InputError for a value that is not a number or is out of range.
    """

    fps: float = 7
    motion_bucket: float = 127
    augmentation: float = 0.02

    def __post_init__(self) -> None:
        for name, usual in (("fps", 7), ("motion_bucket", 127), ("augmentation", 0.02)):
            value = getattr(self, name)
            if not is_number(value):
                raise InputError(f"{name.replace('_', ' ')} {value!r} is not a number: {usual} is usual")
        if not 1 <= self.fps <= MAX_FPS:
            raise InputError(f"fps {self.fps} is outside 1 to {MAX_FPS}: give frames per second, such as 7")
        if not 0 <= self.motion_bucket <= MAX_MOTION_BUCKET:
            raise InputError(
                f"motion bucket {self.motion_bucket} is outside 0 to {MAX_MOTION_BUCKET}: "
                "127 is usual, higher moves more"
            )
        if not 0 <= self.augmentation <= MAX_AUGMENTATION:
            raise InputError(
                f"augmentation {self.augmentation} is outside 0 to {MAX_AUGMENTATION:g}: "
                "0.02 is usual, higher departs more from the still"
            )

    def vector(self, width: int = 768) -> Tensor:
        """(1, width) float32: the sinusoids of (fps - 1, motion_bucket, augmentation), a third of the width each.

        The network was trained on fps - 1; the subtraction happens only here. Raises InputError unless the width is a
        multiple of 3.
        """
        if width < 1 or width % 3:
            raise InputError(f"a vector of width {width} has no room for three equal parts: use a multiple of 3")
        numbers = (self.fps - 1, self.motion_bucket, self.augmentation)
        numbers = torch.tensor(numbers, dtype=torch.float32, device="cpu")
        return sinusoid(numbers, width // 3).flatten()[None]


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """Conditioning of one forward pass, one row for each of B clips (or of N frames, after `repeat_frames`).

    context (B, L, D) is the still's embedding, L = 1 in released models; first (B, 4, h, w) the still's latent,
    unscaled (without the factor 0.18215), or (B, T, 4, h, w) if each frame is shown its own; vector (B, V) the embedded
    micro-conditioning, or (B, T, V) if it changes from frame to frame. Raises InputError if ranks or rows disagree.
    """

    context: Tensor
    first: Tensor
    vector: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(tensor.shape) for tensor in (self.context, self.first, self.vector)]
        context, first, vector = (len(shape) for shape in shapes)
        if context != 3 or first not in (4, 5) or vector not in (2, 3) or len({shape[0] for shape in shapes}) != 1:
            given = "conditioning of shapes {}, {}, {}".format(*shapes)
            raise InputError(f"{given}: give context (B, L, D), first (B, 4, h, w), vector (B, V) or (B, T, V)")

    @property
    def rows(self) -> int:
        return self.first.shape[0]

    def unconditional(self) -> Conditioning:
        """The conditioning without the still: context and first are zero, the vector is kept (spec 4)."""
        return Conditioning(torch.zeros_like(self.context), torch.zeros_like(self.first), self.vector)

    def followed_by(self, other: Conditioning) -> Conditioning:
        """This conditioning's rows followed by the other's."""
        pairs = ((self.context, other.context), (self.first, other.first), (self.vector, other.vector))
        return Conditioning(*(torch.cat(pair) for pair in pairs))

    def repeat_frames(self, num_frames: int) -> Conditioning:
        """B rows -> N = B * T rows, frame-major: all frames of the first clip, then those of the next.

        Raises InputError if first or vector has one row per frame and their number is not num_frames.
        """
        context = self.context.repeat_interleave(num_frames, dim=0)
        first = _by_frame(self.first, 4, num_frames, "views of the still")
        return Conditioning(context, first, _by_frame(self.vector, 2, num_frames, "motion settings"))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """All three tensors moved to a device, converted to a dtype, or both."""
        tensors = (self.context, self.first, self.vector)
        return Conditioning(*(tensor.to(device=device, dtype=dtype) for tensor in tensors))


def _by_frame(rows: Tensor, rank: int, num_frames: int, name: str) -> Tensor:
    """Rows of a clip each, of this rank, repeated for its frames; or rows of each frame (B, T, ...), flattened."""
    if rows.ndim == rank:
        return rows.repeat_interleave(num_frames, dim=0)
    if rows.shape[1] != num_frames:
        raise InputError(f"{name} for {rows.shape[1]} frames and a clip of {num_frames}: give one for each frame")
    return rows.flatten(0, 1)


def seeded_generator(seed: int) -> torch.Generator:
    """A CPU generator. Raises InputError for a seed that is not an integer from -2**63 to 2**64 - 1."""
    if not is_whole(seed):
        raise InputError(f"seed {seed!r} is not a whole number: choose one from 0 to {2**64 - 1}")
    seed = operator.index(seed)
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed {seed} does not fit in 64 bits: choose one from 0 to {2**64 - 1}")
    return torch.Generator("cpu").manual_seed(seed)


def draw_noise(shape: Sequence[int], source: int | torch.Generator) -> Tensor:
    """Unit normal noise, float32, from a seed (-2**63 to 2**64 - 1) or the next draw of a generator.

    Always drawn on the CPU, so that a seed gives the same clip on every device. Raises InputError for a generator of
    another device and for a seed out of range.
    """
    generator = source if isinstance(source, torch.Generator) else seeded_generator(source)
    if generator.device.type != "cpu":
        raise InputError(f"a generator on {generator.device} draws other noise on every device: make it on the CPU")
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


def augment(pixels: Tensor, amount: float, noise: Tensor) -> Tensor:
    """pixels (n, 3, H, W) in [-1, 1] plus `amount` standard deviations of unit noise of the same shape; not clamped.

    Raises InputError if the shapes differ.
    """
    if noise.shape != pixels.shape:
        given = f"noise of shape {tuple(noise.shape)} for pixels of shape {tuple(pixels.shape)}"
        raise InputError(f"{given}: draw it in the shape of the pixels")
    return pixels + amount * noise.to(pixels)


def warnings_for(micro: MicroConditioning, height: int, width: int, trained: Variant = VARIANTS["svd"]) -> list[str]:
    """Warnings, one sentence each, about settings outside what the models were trained on (spec 6); may be empty.

    height and width are in pixels; the size in `trained` is accepted in portrait and in landscape orientation.
    """
    slowest, fastest = TRAINED_FPS
    advice = {
        f"The size {width}x{height} is not {trained.width}x{trained.height}, which the model was trained on.": (
            sorted((height, width)) != sorted((trained.height, trained.width))
        ),
        f"Motion bucket {micro.motion_bucket} is above {TRAINED_MOTION_BUCKET}, the most seen in training.": (
            micro.motion_bucket > TRAINED_MOTION_BUCKET
        ),
        f"At {micro.fps} frames per second, below {slowest}, the clip may move unnaturally.": micro.fps < slowest,
        f"At {micro.fps} frames per second, above {fastest}, the clip may move unnaturally.": micro.fps > fastest,
    }
    return [sentence for sentence, holds in advice.items() if holds]
