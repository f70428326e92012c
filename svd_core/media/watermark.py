"""The reference's invisible watermark: 48 fixed bits in every frame, through the library that the reference uses.

The library (invisible-watermark, imported as imwatermark) is optional, and imported only when a frame is marked or
read. Its method "dwtDct" moves the largest coefficient of each 4 x 4 block of the blue chroma's Haar average to a place
that says 0 or 1; the bits repeat over the blocks. Frames go in as 8-bit BGR, as the library documents: what a file of 8
bits holds is then read as it was written. (The reference hands over floats, which its own detector, reading 8-bit
files, often misses; see docs/LOG.md.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from math import comb

import numpy as np

from ..errors import InputError

MESSAGE = tuple(int(bit) for bit in f"{0xB3EC907BB19E:048b}")
"""The bits that the reference embeds (spec 6)."""

METHOD = "dwtDct"
LEAST_AREA = 256 * 256
"""In pixels; the library refuses smaller frames."""

CERTAIN = 1e-6
"""A watermark is called found where chance alone would match as well less often than this."""

INSTALL = "pip install invisible-watermark"
_PARTS = ("invisible-watermark", "opencv-python", "opencv-python-headless", "PyWavelets")


@dataclass(frozen=True, slots=True)
class Detection:
    """matched is how many of the message's 48 bits the library reads in the clearest frame; p_value is how often a
    message drawn at random would agree with the frames as well."""

    matched: int
    p_value: float

    @property
    def found(self) -> bool:
        return self.p_value < CERTAIN

    def __str__(self) -> str:
        verdict = "watermark found" if self.found else "no watermark found"
        return f"{verdict}: {self.matched} of {len(MESSAGE)} bits match, p = {self.p_value:.1g}"


def library() -> str:
    """What would embed it, such as "invisible-watermark 0.2.0, PyWavelets 1.9.0"; empty where it is not installed."""
    if find_spec("imwatermark") is None:
        return ""
    return ", ".join(f"{name} {metadata.version(name)}" for name in _PARTS if _is_installed(name))


def obstacle(width: int, height: int) -> str:
    """Why frames of this size cannot be marked here, with what to do about it; empty where they can."""
    if width * height < LEAST_AREA:
        return f"frames of {width}x{height} are too small for a watermark: it takes 256x256, or as many pixels"
    return "" if library() else f"a watermark needs the package invisible-watermark: {INSTALL}"


def embed(frames: np.ndarray) -> np.ndarray:
    """frames (T, H, W, 3) in [0, 1] -> the same with the message in each, float32 in steps of 1/255.

    Raises InputError where `obstacle` says so, or the library does not work.
    """
    _require(frames)
    encoder = _imported().WatermarkEncoder()
    encoder.set_watermark("bits", MESSAGE)
    marked = [encoder.encode(bgr, METHOD)[..., ::-1] for bgr in _as_bgr(frames)]
    return np.stack(marked).astype(np.float32) / 255


def detect(frames: np.ndarray) -> Detection:
    """Look for the message in frames (T, H, W, 3) in [0, 1]: in each, and in all together.

    The library's reading of a bit leans the same way everywhere in flat colour, so counting matches alone misses marked
    frames. Compared are instead the votes for the message's ones with those for its zeros, which no lean changes: a
    rank-sum test (Wilcoxon 1945), exact, with its p-value multiplied by the number of readings tried.
    Raises InputError as `embed` does.
    """
    _require(frames)
    votes = np.array([_votes(bgr) for bgr in _as_bgr(frames)])  # (T, 48) in [0, 1]
    chances = [rank_sum_chance(each) for each in (*votes, votes.mean(0))]
    clearest = votes[int(np.argmin(chances[:-1]))]
    matched = int(((clearest > 0.5) == np.array(MESSAGE, bool)).sum())
    return Detection(matched, min(1.0, len(chances) * min(chances)))


def rank_sum_chance(votes: Sequence[float] | np.ndarray) -> float:
    """How often a random message with as many ones would have ones whose votes (48,) rank as high: in (0, 1].

    Exact, ties included: counts the ways of choosing that many of the doubled mid-ranks, by their sum.
    """
    _, place, counts = np.unique(votes, return_inverse=True, return_counts=True)
    doubled = (2 * counts.cumsum() - counts + 1)[place]
    ones = sum(MESSAGE)
    ways = np.zeros((ones + 1, doubled.sum() + 1))
    ways[0, 0] = 1
    for rank in doubled:
        ways[1:, rank:] += ways[:-1, :-rank].copy()
    return float(ways[ones, doubled[np.array(MESSAGE, bool)].sum() :].sum() / comb(len(MESSAGE), ones))


def _votes(bgr: np.ndarray) -> np.ndarray:
    """(48,): the part of its blocks in which the library reads each bit as 1. It keeps them to itself but for this."""
    base = _imported().watermark.EmbedMaxDct
    kept: list[np.ndarray] = []

    class Reader(base):
        def decode_frame(self, *args: object) -> list[list[int]]:
            scores = super().decode_frame(*args)
            kept.append(np.array([np.mean(each) for each in scores]))
            return scores

    Reader(wmLen=len(MESSAGE)).decode(bgr)
    return kept[-1]


def _as_bgr(frames: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(np.rint(frame * 255).astype(np.uint8)[..., ::-1]) for frame in frames]


def _require(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise InputError(f"frames of shape {frames.shape} are no clip: needed (frames, height, width, 3)")
    if reason := obstacle(frames.shape[2], frames.shape[1]):
        raise InputError(reason)


def _imported() -> object:
    try:
        import imwatermark
        import imwatermark.watermark
    except ImportError as error:  # OpenCV's own libraries may be what is missing
        raise InputError(f"the package invisible-watermark does not load ({error}): {INSTALL}") from error
    return imwatermark


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
