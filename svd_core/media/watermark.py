"""The reference's invisible watermark: 48 fixed bits in every frame, through the library that the reference uses.

The library (invisible-watermark, imported as imwatermark) is optional, and imported only when a frame is marked or
read. Its method "dwtDct" shifts the largest coefficient of each 4 x 4 block of the blue chroma's Haar average to a
value that encodes 0 or 1; the bits repeat over the blocks. Frames are passed as 8-bit BGR, as the library documents, so
that 8-bit files are read as they were written. (The reference passes floats, which its own detector, reading 8-bit
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
"""Smallest frame in pixels; the library rejects smaller ones."""

CERTAIN = 1e-6
"""The p-value below which a watermark counts as found."""

INSTALL = "pip install invisible-watermark"
_PARTS = ("invisible-watermark", "opencv-python", "opencv-python-headless", "PyWavelets")


@dataclass(frozen=True, slots=True)
class WatermarkMatch:
    """The result of a search: matched is how many of the message's 48 bits the library reads in the clearest frame,
    p_value the probability that a random message would agree with the frames as well."""

    matched: int
    p_value: float

    @property
    def found(self) -> bool:
        return self.p_value < CERTAIN

    def __str__(self) -> str:
        verdict = "watermark found" if self.found else "no watermark found"
        return f"{verdict}: {self.matched} of {len(MESSAGE)} bits match, p = {self.p_value:.1g}"


def library() -> str:
    """The library and its versions, such as "invisible-watermark 0.2.0, PyWavelets 1.9.0"; empty if not installed."""
    if find_spec("imwatermark") is None:
        return ""
    return ", ".join(f"{name} {metadata.version(name)}" for name in _PARTS if _is_installed(name))


def obstacle(width: int, height: int) -> str:
    """Why frames of this size cannot be marked here, with a remedy; empty if they can."""
    if width * height < LEAST_AREA:
        return f"frames of {width}x{height} are too small for a watermark: it takes 256x256, or as many pixels"
    return "" if library() else f"a watermark needs the package invisible-watermark: {INSTALL}"


def embed(frames: np.ndarray) -> np.ndarray:
    """Embed the message in each of frames (T, H, W, 3) in [0, 1] -> the same shape, float32 in steps of 1/255.

    Raises InputError if `obstacle` gives a reason, or the library cannot be imported.
    """
    _require(frames)
    encoder = _imported().WatermarkEncoder()
    encoder.set_watermark("bits", MESSAGE)
    marked = [encoder.encode(bgr, METHOD)[..., ::-1] for bgr in _as_bgr(frames)]
    return np.stack(marked).astype(np.float32) / 255


def detect(frames: np.ndarray) -> WatermarkMatch:
    """Look for the message in frames (T, H, W, 3) in [0, 1]: in each, and in all together.

    In flat colour the library's reading of all bits is biased the same way, so counting matches misses marked frames.
    Instead, the votes for the message's ones are compared with those for its zeros, which no common bias affects: an
    exact rank-sum test (Wilcoxon 1945), with its p-value multiplied by the number of readings tried.
    Raises InputError as `embed` does.
    """
    _require(frames)
    votes = np.array([_votes(bgr) for bgr in _as_bgr(frames)])  # (T, 48) in [0, 1]
    chances = [rank_sum_chance(each) for each in (*votes, votes.mean(0))]
    clearest = votes[int(np.argmin(chances[:-1]))]
    matched = int(((clearest > 0.5) == np.array(MESSAGE, bool)).sum())
    return WatermarkMatch(matched, min(1.0, len(chances) * min(chances)))


def rank_sum_chance(votes: Sequence[float] | np.ndarray) -> float:
    """The probability, in (0, 1], that the ones of a random message with as many ones have votes (48,) that rank at
    least as high.

    Exact, ties included: counts the subsets of that size of the doubled mid-ranks by their sum.
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
    """The fraction of blocks in which the library reads each bit as 1, (48,). It has no public access to them, hence
    the subclass."""
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
    except ImportError as error:  # for example if OpenCV's shared libraries are missing
        raise InputError(f"the package invisible-watermark does not load ({error}): {INSTALL}") from error
    return imwatermark


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
