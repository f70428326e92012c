"""Transforms from a picture's ICC profile to sRGB. Without a usable profile, values are taken as sRGB."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

INTENT = 1
FLAGS = 0x2000
"""LittleCMS's relative colorimetric intent and black point compensation: colours within sRGB are preserved, and black
stays black. As numbers, because older Pillow has no names for them."""

AS_GOOD_AS_SRGB = 2
"""Largest difference, of 255, at which a profile counts as sRGB and values are kept: that of sRGB profiles' tables from
the formula."""

EXACT = FLAGS | 0x0100
"""FLAGS without optimisation, for greys: LittleCMS's optimised 16-bit path is wrong by up to 4 % in the darks."""

PROFILE_ERRORS = (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError, OverflowError, AttributeError)
"""What Pillow raises on profiles that are broken or unsuitable, and when it was built without LittleCMS."""

_SPACES = {"CMYK": "CMYK", "LAB": "LAB", "1": "GRAY", "L": "GRAY", "LA": "GRAY", "I": "GRAY"}
"""Picture mode -> ICC's name for the colour space; GRAY for modes that begin with I;16, RGB for all others."""


def srgb_transform(picture: Image.Image, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """A function that converts an image of `mode` (RGB, RGBA or CMYK) from the profile of `picture` to sRGB (RGB, or
    RGBA with opacity unchanged). None if there is no profile or it is sRGB, broken, or for other channels."""
    target = mode if mode == "RGBA" else "RGB"
    try:
        if (profile := _profile(picture)) is None:
            return None
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(profile, srgb, mode, target, INTENT, flags=FLAGS)
    except PROFILE_ERRORS:
        return None
    return None if mode != "CMYK" and _keeps(transform, mode) else transform.apply


def grey_curve(picture: Image.Image) -> np.ndarray | None:
    """A table (65536,) uint16 from the 16-bit greys of a picture's profile to sRGB. None as in `srgb_transform`."""
    greys = np.arange(65536, dtype=np.uint16)
    try:
        if (profile := _profile(picture)) is None:
            return None
        srgb = ImageCms.ImageCmsProfile(io.BytesIO(_srgb_grey()))
        transform = ImageCms.ImageCmsTransform(profile, srgb, "I;16", "I;16", INTENT, flags=EXACT)
        curve = np.asarray(transform.apply(Image.fromarray(greys.reshape(256, 256)))).ravel().astype(np.uint16)
    except PROFILE_ERRORS:
        return None
    steps = np.diff(curve.astype(np.int32))
    moved = np.abs(curve.astype(np.int32) - greys).max()
    # A falling curve means that this Pillow does not support 16-bit greys here and misread them.
    return None if (steps < 0).any() or moved <= AS_GOOD_AS_SRGB * 257 else curve


def _profile(picture: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """The picture's profile, or None if it has none or one for other channels. Raises one of PROFILE_ERRORS for a
    broken one."""
    data = picture.info.get("icc_profile")
    if not data:
        return None
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    space = "GRAY" if picture.mode.startswith("I;16") else _SPACES.get(picture.mode, "RGB")
    return profile if profile.profile.xcolor_space.strip() == space else None


def _keeps(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform leaves all greys and a sample of the colour cube unchanged, within AS_GOOD_AS_SRGB."""
    steps = np.linspace(0, 255, 16).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 16, 3)
    greys = np.arange(256, dtype=np.uint8).reshape(-1, 16, 1).repeat(3, axis=2)
    given = np.concatenate([cube, greys])
    found = np.asarray(transform.apply(Image.fromarray(given).convert(mode)))[..., :3]
    return int(np.abs(found.astype(int) - given).max()) <= AS_GOOD_AS_SRGB


def _srgb_grey() -> bytes:
    """A grey profile with sRGB's curve (IEC 61966-2-1), which LittleCMS only provides for colours. Laid out as in
    ICC.1:2010: a header of 128 bytes, a table of two tags, the white point and the curve."""
    numbers = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    curve = struct.pack(">4sIHH5i", b"para", 0, 3, 0, *(round(number * 65536) for number in numbers))
    white = struct.pack(">3i", *(round(number * 65536) for number in (0.9642, 1, 0.8249)))  # D50
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, len(curve))
    tags = table + struct.pack(">4sI", b"XYZ ", 0) + white + curve
    header = struct.pack(">II", 128 + len(tags), 0) + struct.pack(">I4s4s4s", 0x04200000, b"mntr", b"GRAY", b"XYZ ")
    header += struct.pack(">6H4s", 2010, 1, 1, 0, 0, 0, b"acsp").ljust(44, b"\0") + white
    return header.ljust(128, b"\0") + tags
