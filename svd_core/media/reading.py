"""Reading frames from clips: movies, animations, folders of PNGs, single pictures."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from ..errors import InputError, too_old
from .pictures import DECODE_ERRORS

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

MOVIES = {".mp4": "mp4", ".mov": "mp4", ".webm": "matroska", ".mkv": "matroska"}
"""Suffix -> FFmpeg's container; see `opened_as`."""

ANIMATIONS = (".gif", ".webp")
PICTURE = ".png"

LONGEST_NAME = 255
"""Most characters of a file's name on usual systems."""

_BT601, _BT709, _FULL_RANGE = 5, 1, 2
"""FFmpeg's codes for two matrices and for luma of 0-255."""

DAMAGE = (*DECODE_ERRORS, Image.DecompressionBombError)
"""What Pillow, and PyAV through `opened`, raise on files that they cannot read."""


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """The frames of a clip, (H, W, 3) uint8 each. Raises one of `DAMAGE` if they cannot be read."""
    if path.is_dir():
        return map(_picture, pictures_in(path))
    return _reader(path)(path)


def pictures_in(folder: Path) -> list[Path]:
    """The PNG files in a folder, sorted by name with numbers as numbers, so that 10.png follows 9.png. Regular files
    only: opening a pipe would block forever. Hidden ones, such as macOS leaves beside others, are no frames."""
    found = [path for path in folder.glob("[!.]*") if path.suffix.lower() == PICTURE and path.is_file()]
    return sorted(found, key=_with_numbers_aligned)


def _with_numbers_aligned(path: Path) -> tuple[str, str]:
    """A key for sorting. Names that differ only in numbers of equal width keep the order of plain text."""
    aligned = re.sub("[0-9]+", lambda digits: digits[0].zfill(LONGEST_NAME), path.name)
    return aligned, path.name


@contextmanager
def opened_as(path: Path, container: str) -> Iterator[InputContainer]:
    """Open a movie with a fixed container format and from an open file, so that its contents cannot make FFmpeg use
    another demuxer or address. Raises FFmpeg's own errors."""
    import av

    with path.open("rb") as file, av.open(file, format=container) as movie:
        yield movie


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """Open a movie with the container of its suffix; FFmpeg's errors become OSErrors, and an old PyAV is one."""
    import av

    if old := too_old("av", av.__version__):
        raise OSError(old)
    try:
        with opened_as(path, MOVIES[path.suffix.lower()]) as movie:
            yield movie
    except av.error.FFmpegError as error:  # some are neither OSError nor ValueError
        raise OSError(f"{error.strerror or error}") from error


def read_frames(path: str | Path, most_values: int) -> np.ndarray:
    """Read the first frames of a clip, as many as fit in `most_values` values but at least one -> (T, H, W, 3) float32
    in [0, 1].

    Raises InputError if it is not a clip, is damaged within those frames, or has frames of different sizes.
    """
    kept: list[np.ndarray] = []
    values = 0
    for frame in _frames(Path(path)):
        kept.append(frame)
        values += frame.size
        if values + frame.size > most_values:
            break
    return _stacked(Path(path), kept)


def read_last_frames(path: str | Path, count: int) -> np.ndarray:
    """Read the last `count` frames of a clip, or all of a shorter one: returns and raises as `read_frames`."""
    return _stacked(Path(path), deque(_frames(Path(path)), maxlen=count))


def _frames(path: Path) -> Iterator[np.ndarray]:
    """`frames_of` a path that may be no clip. Raises InputError."""
    _require_clip(path)
    count = 0
    try:
        for frame in frames_of(path):
            yield frame
            count += 1
    except DAMAGE as error:
        bad = next(iter(pictures_in(path)[count:]), path)  # in a folder, the next picture
        raise InputError(f"{bad} cannot be read ({_reason(error)}): save the clip again") from error


def _stacked(path: Path, kept: Collection[np.ndarray]) -> np.ndarray:
    if len({frame.shape for frame in kept}) != 1:
        why = "frames of several sizes" if kept else "no frames"
        raise InputError(f"{path} holds {why}: give a clip as svd_core wrote it")
    frames = np.stack(kept).astype(np.float32)
    frames /= 255
    return frames


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message would repeat the file's name
        return "it is damaged, or not what its name says"
    return shorten(str(error), 80, placeholder=" ...")


def _require_clip(path: Path) -> None:
    kinds = (*MOVIES, *ANIMATIONS, PICTURE)
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path")
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() in kinds):
        raise InputError(f"{path} is no clip: give a folder of PNGs or a file of {', '.join(kinds)}")


def _reader(path: Path) -> Callable[[Path], Iterator[np.ndarray]]:
    if path.suffix.lower() == PICTURE:
        return lambda path: iter([_picture(path)])
    return _animation if path.suffix.lower() in ANIMATIONS else _movie


def _picture(path: Path) -> np.ndarray:
    with Image.open(path, formats=("PNG",)) as picture:
        if picture.mode.startswith("I"):
            return _from_sixteen_bits(np.asarray(picture))
        return np.asarray(picture.convert("RGB"))


def _from_sixteen_bits(grey: np.ndarray) -> np.ndarray:
    """Greys of 0 to 65535 (H, W) -> (H, W, 3) uint8, rounded. Pillow's own conversion clips them at 255, to white."""
    eight = ((grey.astype(np.int32) + 128) // 257).astype(np.uint8)
    return np.repeat(eight[..., None], 3, axis=2)


def _animation(path: Path) -> Iterator[np.ndarray]:
    with Image.open(path, formats=("GIF", "WEBP")) as animation:
        for picture in ImageSequence.Iterator(animation):
            yield np.asarray(picture.convert("RGB"))


def _movie(path: Path) -> Iterator[np.ndarray]:
    with opened(path) as movie:
        for frame in movie.decode(video=0):
            turns = round(getattr(frame, "rotation", 0) / 90)  # counterclockwise, from the phone's orientation
            yield np.ascontiguousarray(np.rot90(_in_rgb(frame), turns))


def _in_rgb(frame: VideoFrame) -> np.ndarray:
    """A movie's frame by the matrix and range of its tags -> (H, W, 3) uint8.

    Before 17, PyAV heeds the tags only where matrix or range change. RGB has full range and no matrix, so that any
    other one will do.
    """
    other = _BT709 if frame.colorspace == _BT601 else _BT601
    tagged = {"src_colorspace": frame.colorspace, "src_color_range": frame.color_range}
    return frame.reformat(format="rgb24", **tagged, dst_colorspace=other, dst_color_range=_FULL_RANGE).to_ndarray()
