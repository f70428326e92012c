"""Conversion of files, PIL images and arrays to an image: (H, W, 3) float32 in [0, 1]."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError
from .profiles import grey_curve, srgb_transform
from .whole import reason_of

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)

MIN_SIDE = 16
"""Smallest side in pixels; smaller pictures are icons or mistakes."""

MAX_SIDE = 16384
MAX_PIXELS = 100_000_000
"""1.2 GB as float32: more than any camera produces, less than a decompression bomb unpacks to."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that Pillow decodes by itself. Others, such as EPS, would run external programs."""

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    AttributeError,
    struct.error,
)
"""What Pillow's decoders are known to raise on damaged files."""

_WITH_OPACITY = ("LA", "PA", "RGBA", "RGBa")
_GREY = ("1", "L", "LA")

_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
"""TIFF 6.0's PhotometricInterpretation tag, and its value for pictures in which 0 is white."""

_WHITEST = {"u1": 255.0, "u2": 65535.0}
"""The value that means 1.0, by array dtype."""


def load_image(path: str | Path, background: Colour = WHITE) -> np.ndarray:
    """Load a picture file -> (H, W, 3) float32 in [0, 1], upright.

    EXIF rotation is applied, transparency is composited on `background` (0-255 each), and an animated file gives its
    first frame. Grey 16-bit files keep their precision; Pillow reduces 16-bit colour to 8 bits per channel. An ICC
    profile is converted to sRGB; it is silently ignored if it is broken, if it is for other channels than the
    picture's, and for float pictures. Raises InputError for a file that is missing, empty, unreadable for this user,
    damaged, not a picture, or of a size out of range.
    """
    path = Path(path)
    name = f"picture {path}"
    with _allowed(path):
        _check_file(path)
        with _quiet(), _refusing(path), Image.open(path, formats=FORMATS) as picture:
            _check_size(name, *picture.size)
            return _image(name, _unpack(_upright(picture), name), background)


def as_image(picture: Image.Image | np.ndarray, background: Colour = WHITE) -> np.ndarray:
    """Convert a PIL image or an array -> (H, W, 3) float32 in [0, 1].

    A PIL image is treated like a file by `load_image`: its EXIF rotation and ICC profile are applied. Arrays are
    (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with the last channel opacity; uint8, uint16, or floats in [0, 1]
    (float32 is kept bit for bit). Raises InputError for anything else, such as NaN or what Pillow cannot decode.
    """
    array = _pixels(picture) if isinstance(picture, Image.Image) else _array(picture)
    return _image("image", array, background)


def _pixels(picture: Image.Image) -> np.ndarray:
    """`_unpack` a PIL image, whose file may not have been read yet."""
    _check_size("image", *picture.size)
    try:
        with _quiet():
            return _unpack(_upright(picture), "image")
    except InputError:
        raise
    except DECODE_ERRORS as error:
        raise InputError(
            f"image of mode {picture.mode} cannot be read ({error}): needed a whole and open PIL image, open it again, "
            "or convert it to RGB or RGBA first"
        ) from error


def _array(picture: object) -> np.ndarray:
    try:
        array = np.asarray(picture)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors on another device
        array = None
    if array is None or not array.ndim:
        raise InputError(
            f"image is a {type(picture).__name__}: needed a PIL image or an array (height, width, channels), open a "
            "file with PIL.Image.open or svd_core.media.load_image"
        )
    return array


def _image(name: str, array: np.ndarray, background: Colour) -> np.ndarray:
    """`as_image` for an array; `name` is what errors call it."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(f"{name} of shape {array.shape}: needed (height, width, 1, 3 or 4 channels)")
    _check_size(name, array.shape[1], array.shape[0])
    values = np.atleast_3d(_unit_range(name, array))
    colours = np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values[..., :3]
    if values.shape[2] == 4:
        opacity = values[..., 3:]
        colours = colours * opacity + unit_colour(background) * (1 - opacity)
    return np.ascontiguousarray(colours, dtype=np.float32)


def unit_colour(colour: Colour) -> np.ndarray:
    """(3,) float32 in [0, 1] from red, green and blue of 0 to 255. Raises InputError."""
    if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
        raise InputError(f"colour {tuple(colour)} is not red, green and blue of 0 to 255: white is (255, 255, 255)")
    return np.array(colour, dtype=np.float32) / 255


def _upright(picture: Image.Image) -> Image.Image:
    """The picture decoded, with its EXIF rotation applied and 0 as black. Raises one of DECODE_ERRORS."""
    white_is_zero = _counts_from_white(picture)
    picture.load()
    with suppress(*DECODE_ERRORS):  # damaged EXIF does not affect the pixels
        picture = ImageOps.exif_transpose(picture)
    if not white_is_zero:
        return picture
    turned = Image.fromarray(65535 - np.asarray(picture).astype(np.uint16))
    turned.info = picture.info
    return turned


def _counts_from_white(picture: Image.Image) -> bool:
    """Whether this is a 16-bit TIFF in which 0 is white. Pillow itself inverts those of up to 8 bits."""
    tags = getattr(picture, "tag_v2", {})
    return picture.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _unpack(picture: Image.Image, name: str) -> np.ndarray:
    """The picture as an array that `as_image` accepts, in sRGB, without losing precision."""
    if picture.mode.startswith("I;16"):
        grey = np.asarray(picture).astype(np.uint16)
        return _with_key(grey, picture.info.get("transparency"), grey_curve(picture))
    if picture.mode == "I":  # older Pillow opens 16-bit grey like this
        return _along(grey_curve(picture), _sixteen_bit(name, np.asarray(picture)))
    if picture.mode == "F":
        return np.asarray(picture)
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.mode == "CMYK" and (transform := srgb_transform(picture, "CMYK")):
        return np.asarray(transform(picture))
    opaque = picture.mode not in _WITH_OPACITY and "transparency" not in picture.info
    flat = picture.convert("RGB" if opaque else "RGBA")
    if picture.mode in _GREY:
        return _along(grey_curve(picture), np.asarray(flat))
    transform = srgb_transform(picture, flat.mode)
    return np.asarray(transform(flat) if transform else flat)


def _along(curve: np.ndarray | None, array: np.ndarray) -> np.ndarray:
    """Apply a `grey_curve` to 8- or 16-bit greys, not to opacity -> uint16; without a curve, the array itself."""
    if curve is None:
        return array
    deep = np.atleast_3d(array).astype(np.uint16) * np.uint16(257 if array.dtype == np.uint8 else 1)
    return np.concatenate([curve[deep[..., :3]], deep[..., 3:]], axis=-1)


def _with_key(grey: np.ndarray, key: int | None, curve: np.ndarray | None) -> np.ndarray:
    """Apply the curve, if any, to greys (H, W) uint16 -> (H, W) or (H, W, 1) uint16; or (H, W, 4) if the grey value
    `key` means transparent."""
    if key is None:
        return _along(curve, grey)
    opacity = np.where(grey == key, 0, 65535).astype(np.uint16)
    return _along(curve, np.stack([grey, grey, grey, opacity], axis=-1))


def _sixteen_bit(name: str, grey: np.ndarray) -> np.ndarray:
    if grey.min() < 0 or grey.max() > 65535:
        raise InputError(
            f"{name} has grey values of {grey.min()} to {grey.max()}: needed 0 to 65535, save it as 16-bit"
        )
    return grey.astype(np.uint16)


def _unit_range(name: str, array: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] from uint8, uint16, or floats already in that range."""
    whitest = _WHITEST.get(array.dtype.str[1:])
    if whitest:
        return array.astype(np.float32) / np.float32(whitest)
    if array.dtype.kind != "f":
        raise InputError(f"{name} of dtype {array.dtype}: needed uint8, uint16 or floats in [0, 1], convert it first")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinity: needed numbers in [0, 1], repair it first")
    if array.min() < 0 or array.max() > 1:
        raise InputError(f"{name} has values of {array.min():g} to {array.max():g}: needed [0, 1], rescale or clip it")
    return array.astype(np.float32)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"picture {path} is a folder: give one picture file in it")
    if not path.exists():
        raise InputError(f"picture {path} does not exist: check the path")
    if not path.is_file():
        raise InputError(f"picture {path} is not a regular file: give a picture file")
    if path.stat().st_size == 0:
        raise InputError(f"picture {path} has 0 bytes: the file is empty, save or download it again")


def _check_size(name: str, width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{name} is {width}x{height}: needed at least {MIN_SIDE} pixels a side, give a larger picture")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"{name} is {width}x{height}: at most {MAX_SIDE} pixels a side and {MAX_PIXELS // 10**6} million in all, "
            "scale it down first"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings about odd metadata, and about sizes, which are checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _allowed(path: Path) -> Iterator[None]:
    """Turn a system error on opening a file into an InputError."""
    try:
        yield
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(
            f"picture {path} cannot be opened: {reason_of(error)}, give this user the right to read it"
        ) from error


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn Pillow's errors on a bad file into an InputError."""
    try:
        yield
    except (InputError, PermissionError, IsADirectoryError):  # handled by `_allowed`
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a picture: needed one of {', '.join(FORMATS)}, export it again") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"picture {path} has over {MAX_PIXELS // 10**6} million pixels: scale it down first"
        ) from error
    except DECODE_ERRORS as error:
        raise InputError(f"picture {path} is damaged or cut short ({error}): save or download it again") from error
