"""Storing and reading a recipe in a clip's file, for each container format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

from ..errors import InputError, StableVideoError
from ..recipe import Recipe
from ..strict_json import MAX_CHARACTERS
from .pictures import DECODE_ERRORS
from .reading import opened_as

TEXT_KEY = "svd_core.recipe"
"""Name of a PNG's text chunk and of a latents file's metadata entry that hold the recipe."""

MOVIE_KEY = "comment"
FRAME_NAME = "frame_{:04d}.png"


def read_recipe(path: str | Path) -> Recipe:
    """Read the recipe of a clip from an mp4, webm, webp, gif or PNG file, a folder of PNG frames, a latents file
    (.safetensors), or a .json recipe.

    Raises InputError for a file that is missing or unreadable, and for a missing or damaged recipe.
    """
    path = Path(path)
    path = path / FRAME_NAME.format(0) if path.is_dir() else path
    if not path.is_file():
        why = "is not a regular file" if path.exists() else "does not exist"
        raise InputError(f"recipe {path} {why}: give a clip made by svd_core, or a .json recipe")
    try:
        text = _reader_of(path)(path)
    except StableVideoError:
        raise
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise InputError(f"recipe {path} cannot be read ({error}): give a clip made by svd_core") from error
    if not text:
        raise InputError(f"{path} carries no recipe: give the clip as svd_core wrote it, not a converted copy")
    return Recipe.from_json(text)


def png_info(text: str) -> PngInfo:
    """The text chunk that holds a recipe's JSON in a PNG."""
    info = PngInfo()
    info.add_text(TEXT_KEY, text)
    return info


def exif(text: str) -> Image.Exif:
    """The EXIF block that holds a recipe's JSON in a WebP."""
    block = Image.Exif()
    block[Base.ImageDescription] = text
    return block


def _reader_of(path: Path) -> Callable[[Path], str]:
    readers = {
        ".json": _read_json,
        ".mp4": _read_mp4,
        ".webm": _read_webm,
        ".webp": _read_webp,
        ".gif": _read_gif,
        ".png": _read_png,
        ".safetensors": _read_latents,
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"{path} cannot carry a recipe: needed a folder of PNGs or one of {', '.join(readers)}")
    return readers[path.suffix.lower()]


def _read_json(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MAX_CHARACTERS + 1).decode("utf-8")


def _read_mp4(path: Path) -> str:
    return _read_movie(path, "mp4")


def _read_webm(path: Path) -> str:
    return _read_movie(path, "matroska")


def _read_movie(path: Path, container: str) -> str:
    import av

    try:
        with opened_as(path, container) as movie:
            found = {key.lower(): value for key, value in movie.metadata.items()}
    except av.error.FFmpegError as error:
        reason = f"is not a readable {container} file ({error.strerror})"
        raise InputError(f"recipe {path} {reason}: give the clip as svd_core wrote it") from error
    return found.get(MOVIE_KEY, "")


def _read_webp(path: Path) -> str:
    with Image.open(path, formats=["WEBP"]) as picture:
        return str(picture.getexif().get(Base.ImageDescription, ""))


def _read_gif(path: Path) -> str:
    with Image.open(path, formats=["GIF"]) as picture:
        return bytes(picture.info.get("comment", b"")).decode("utf-8")


def _read_png(path: Path) -> str:
    with Image.open(path, formats=["PNG"]) as picture:
        return str(picture.info.get(TEXT_KEY, ""))


def _read_latents(path: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get(TEXT_KEY, "")
    except SafetensorError as error:
        raise InputError(f"latents {path} cannot be read ({error}): give a file made by --save-latents") from error
