"""Writing clips: mp4 and webm through PyAV, webp and gif through Pillow, or a folder of PNGs.

The same frames and recipe give the same bytes, and a file appears only when it is complete.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import OutputError, too_old
from ..recipe import MAX_PLAYBACK_FPS, Recipe
from .metadata import FRAME_NAME, MOVIE_KEY, exif, png_info
from .whole import is_empty, reason_of, replacing

GIF_MAX_FPS = 50
"""Browsers slow down GIF frames shorter than two hundredths of a second."""

WEBP_QUALITY = 95
BT709 = 1
"""ITU-T H.273 code of BT.709, the same for primaries, transfer and matrix."""

LIMITED_RANGE = 1
"""FFmpeg's code for luma of 16-235 and chroma of 16-240."""

_RED_LUMA, _GREEN_LUMA, _BLUE_LUMA = 0.2126, 0.7152, 0.0722
"""Luma coefficients (ITU-R BT.709-6, item 3.2)."""


@dataclass(frozen=True, slots=True)
class _Movie:
    container: str
    codec: str
    options: dict[str, str]
    container_options: dict[str, str]


_BITEXACT = {"fflags": "+bitexact"}
_MP4 = _Movie("mp4", "libx264", {"crf": "17", "preset": "medium"}, {"movflags": "+faststart", **_BITEXACT})
_WEBM = _Movie("webm", "libvpx-vp9", {"crf": "18", "b": "0", "deadline": "good", "cpu-used": "3"}, _BITEXACT)
_MOVIES = {".mp4": _MP4, ".webm": _WEBM}
_SUFFIXES = (*_MOVIES, ".webp", ".gif")


def check_output(path: str | Path, fps: float) -> None:
    """Raise OutputError if a clip played at `fps` could not be written to `path`; called before rendering.

    The suffix determines the format: .mp4, .webm, .webp, .gif; without a suffix, or ending in a slash, it is a folder
    of PNGs. The parent folder must exist. An existing file is replaced; an existing folder must be empty.
    """
    target, suffix = _target(path)
    if not suffix and not _names_folder(path) and target.name.lower() in _SUFFIXES:
        raise OutputError(f"output {target} has no name before {target.name}: give one, such as clip{target.name}")
    if suffix not in (*_SUFFIXES, ""):
        raise OutputError(f"output {target} ends in {suffix}: needed {', '.join(_SUFFIXES)}, or a folder ending in /")
    _check_fps(target, suffix, fps)
    if suffix in _MOVIES:
        _check_codec(target, _MOVIES[suffix])
    check_target(target, folder=not suffix)


def check_target(target: Path, *, folder: bool = False) -> None:
    """Raise OutputError if a file (or a folder) cannot be written at `target`. Links to folders are followed."""
    place = _folder(target) if folder else target
    parent, fills = place.parent, folder and place.is_dir()
    if not parent.is_dir():
        problem = "is not a folder" if parent.exists() else "does not exist"
        raise OutputError(f"output {target} cannot be written: {parent} {problem}, create the folder first")
    if folder and not fills and (place.exists() or place.is_symlink()):
        raise OutputError(f"output {target} is a file: PNG frames need a folder, choose a new name")
    if not folder and target.is_dir():
        raise OutputError(f"output {target} is a folder: give the name of a file, or end it in / for PNG frames")
    try:
        if fills and not is_empty(place):
            raise OutputError(f"output folder {target} is not empty: choose a new one, or empty it first")
        with tempfile.TemporaryFile(dir=place if fills else parent):
            pass
    except OSError as error:
        raise OutputError(f"output {target} cannot be written: {reason_of(error)}, choose another folder") from error


def write_clip(frames: np.ndarray, path: str | Path, fps: float, recipe: Recipe | None = None) -> Path:
    """Write frames (T, H, W, 3) in [0, 1] in the format given by the suffix of `path`, and return the path.

    `fps` is the playback speed in frames per second; the recipe is stored in the file's metadata (see `read_recipe`).
    The output is written to a scratch folder and moved into place when complete; on an exception nothing changes. mp4
    and webm are 8-bit 4:2:0 in BT.709 and need even sizes. Raises OutputError.
    """
    check_output(path, fps)
    target, suffix = _target(path)
    _check_frames(frames, even=suffix in _MOVIES)
    text = recipe.to_json() if recipe else ""
    with replacing(target if suffix else _folder(target)) as scratch:
        if suffix in _MOVIES:
            _write_movie(_MOVIES[suffix], frames, scratch, fps, text)
        elif suffix == ".webp":
            _write_webp(frames, scratch, fps, text)
        elif suffix == ".gif":
            _write_gif(frames, scratch, fps, text)
        else:
            _write_pngs(frames, scratch, text)
    return target


def to_yuv420(frame: np.ndarray) -> np.ndarray:
    """Convert (H, W, 3) in [0, 1] -> (3 H / 2, W) uint8: planar 4:2:0, BT.709, limited range.

    Converts directly from float, so that values are rounded once. Chroma is sited at the left of each pair of columns
    and between the rows, where H.264 and VP9 players expect it.
    """
    red, green, blue = np.moveaxis(frame.astype(np.float32), -1, 0)
    luma = _RED_LUMA * red + _GREEN_LUMA * green + _BLUE_LUMA * blue
    blueness = (blue - luma) / (2 * (1 - _BLUE_LUMA))  # [-0.5, 0.5]
    redness = (red - luma) / (2 * (1 - _RED_LUMA))
    planes = (16 + 219 * luma, 128 + 224 * _halved(blueness), 128 + 224 * _halved(redness))
    flat = np.concatenate([plane.ravel() for plane in planes])
    return np.rint(flat).astype(np.uint8).reshape(-1, frame.shape[1])


def _halved(plane: np.ndarray) -> np.ndarray:
    """Subsample (H, W) -> (H/2, W/2): [1 2 1] / 4 around even columns, mean of each pair of rows."""
    rows = (plane[0::2] + plane[1::2]) / 2
    padded = np.pad(rows, ((0, 0), (1, 0)), mode="edge")
    return (padded[:, 0:-1:2] + 2 * rows[:, 0::2] + rows[:, 1::2]) / 4


def _write_movie(movie: _Movie, frames: np.ndarray, path: Path, fps: float, text: str) -> None:
    import av

    rate = Fraction(fps).limit_denominator(1000)
    try:
        with av.open(str(path), "w", format=movie.container, options=movie.container_options) as file:
            file.metadata[MOVIE_KEY] = text
            stream = file.add_stream(movie.codec, rate=rate, options=movie.options)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            _set_colours_and_determinism(stream.codec_context)
            for index, frame in enumerate(frames):
                picture = av.VideoFrame.from_ndarray(to_yuv420(frame), format="yuv420p")
                picture.pts, picture.time_base = index, 1 / rate
                file.mux(stream.encode(picture))
            file.mux(stream.encode())
    except av.error.FFmpegError as error:
        raise OutputError(f"output {path.name} cannot be written: {error.strerror}, choose another place") from error


def _set_colours_and_determinism(codec: object) -> None:
    import av

    codec.colorspace = codec.color_primaries = codec.color_trc = BT709
    codec.color_range = LIMITED_RANGE
    codec.thread_count = 1  # the encoded bytes depend on the number of threads
    codec.flags |= av.codec.context.Flags.bitexact


def _write_webp(frames: np.ndarray, path: Path, fps: float, text: str) -> None:
    first, *rest = map(_picture, frames)
    durations = _durations(len(frames), fps, unit=1)
    first.save(
        path, save_all=True, append_images=rest, duration=durations, loop=0, quality=WEBP_QUALITY, exif=exif(text)
    )


def _write_gif(frames: np.ndarray, path: Path, fps: float, text: str) -> None:
    first, *rest = [_to_palette(_picture(frame)) for frame in frames]
    durations = _durations(len(frames), fps, unit=10)
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, comment=text.encode())


def _to_palette(picture: Image.Image) -> Image.Image:
    """Reduce to 256 colours chosen for this frame, dithered to avoid banding. An octree is 30 times as fast as Pillow's
    median cut and, dithered, as close to the frame."""
    return picture.quantize(palette=picture.quantize(256, method=Image.Quantize.FASTOCTREE))


def _write_pngs(frames: np.ndarray, folder: Path, text: str) -> None:
    folder.mkdir()
    for index, frame in enumerate(frames):
        _picture(frame).save(folder / FRAME_NAME.format(index), pnginfo=png_info(text))


def _picture(frame: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(frame * 255).astype(np.uint8))


def _durations(count: int, fps: float, unit: int) -> list[int]:
    """Durations of the frames in milliseconds, multiples of `unit`, rounded so that errors do not accumulate."""
    ends = [unit * round(1000 * index / (fps * unit)) for index in range(count + 1)]
    return [end - start for start, end in pairwise(ends)]


def _target(path: str | Path) -> tuple[Path, str]:
    """The path to write, and its lower-case suffix ("" for a folder of PNGs)."""
    target = Path(path)
    return target, "" if _names_folder(path) else target.suffix.lower()


def _names_folder(path: str | Path) -> bool:
    return str(path).endswith(("/", os.sep))


def _check_fps(target: Path, suffix: str, fps: float) -> None:
    limit = GIF_MAX_FPS if suffix == ".gif" else MAX_PLAYBACK_FPS
    if not 1 <= fps <= limit:
        raise OutputError(f"playback at {fps} frames per second is outside 1 to {limit} for {target}: 7 is usual")


def _check_codec(target: Path, movie: _Movie) -> None:
    try:
        import av

        av.Codec(movie.codec, "w")
    except (ImportError, ValueError) as error:
        raise OutputError(f"output {target} needs PyAV with {movie.codec}: pip install av, or write .webp") from error
    if old := too_old("av", av.__version__):
        raise OutputError(f"output {target} cannot be written: {old}, or write .webp")


def _folder(target: Path) -> Path:
    """The real path of a folder of PNGs. Unlike Path.resolve, this tolerates circular links."""
    return Path(os.path.realpath(target))


def _check_frames(frames: np.ndarray, *, even: bool) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise OutputError(f"frames of shape {frames.shape} are no clip: needed (frames, height, width, 3)")
    if not (frames.min() >= 0 and frames.max() <= 1):
        raise OutputError("frames hold NaN or values outside [0, 1]: render in float32 or bfloat16")
    height, width = frames.shape[1:3]
    if even and (height % 2 or width % 2):
        raise OutputError(f"frames of {width}x{height}: movies need even sides, choose another size or write PNGs")
