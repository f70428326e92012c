"""Pictures arrive as they look, clips leave as they were rendered, and no failure leaves anything behind."""

import builtins
import io
import os
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin
from profiles import PROFILES
from recipes import a_recipe

from svd_core.config import VARIANTS
from svd_core.errors import InputError, OutputError
from svd_core.media import (
    as_image,
    check_output,
    default_size,
    fit_image,
    load_image,
    read_recipe,
    round_size,
    video,
    write_clip,
)
from svd_core.media.pictures import MAX_SIDE, MIN_SIDE
from svd_core.media.reading import read_frames, read_last_frames
from svd_core.media.video import to_yuv420

WIDTH, HEIGHT = 48, 32
CONTAINERS = ("clip.mp4", "clip.webm", "clip.webp", "clip.gif", "clip/")


def photo(width=WIDTH, height=HEIGHT):
    """A picture whose four corners differ: (H, W, 3) uint8."""
    down, across = np.mgrid[0:height, 0:width]
    return np.stack([255 * down // height, 255 * across // width, np.full_like(down, 90)], axis=-1).astype(np.uint8)


def smooth_clip(frames=4, width=128, height=64):
    """A coloured ramp that drifts: (T, H, W, 3) float32."""
    time, down, across = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    phases = (across / 40 + time / 5, down / 30 - time / 5, (across + down) / 60 + time / 3)
    return np.stack([0.5 + 0.45 * np.sin(phase) for phase in phases], axis=-1).astype(np.float32)


def flat_clip(colour, frames=3):
    """One colour but for a corner that changes, so that no writer merges the frames."""
    clip = np.broadcast_to(np.array(colour, np.float32) / 255, (frames, 64, 64, 3)).copy()
    clip[:, :8, :8] = np.linspace(0.2, 0.8, frames)[:, None, None, None]
    return clip


def frames_in(path):
    """(T, H, W, 3) uint8 of a written clip, read by PyAV or Pillow."""
    if path.is_dir():
        return np.stack([np.asarray(Image.open(file)) for file in sorted(path.iterdir())])
    if path.suffix in (".mp4", ".webm"):
        with av.open(str(path)) as movie:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in movie.decode(video=0)])
    with Image.open(path) as picture:
        found = []
        for index in range(picture.n_frames):
            picture.seek(index)
            found.append(np.asarray(picture.convert("RGB")))
        return np.stack(found)


def psnr(found, expected):
    return -10 * np.log10(np.mean((found / 255 - expected) ** 2))


def bytes_of(path):
    return [file.read_bytes() for file in sorted(path.iterdir())] if path.is_dir() else path.read_bytes()


def png(array, colour_type, bits=8, before_data=b""):
    """A PNG of any bit depth, which Pillow cannot write. array (H, W, channels)."""
    rows = array.astype(f">u{bits // 8}")

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before_data + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# Pictures


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("webp", {"lossless": True}), ("bmp", {}), ("tiff", {})])
def test_a_lossless_picture_is_its_numbers_over_255(tmp_path, suffix, options):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(photo()).save(path, **options)
    image = load_image(path)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, photo().astype(np.float32) / 255)


def both_ways(picture, path, **options):
    """Saved, and read by `load_image` and by `as_image`, which agree."""
    picture.save(path, **options)
    image = load_image(path)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(as_image(opened), image)
    return image


def test_colours_of_a_wide_profile_become_srgb(tmp_path):
    """sRGB's red, green and white in Display P3, rounded to bytes, by the matrices of CSS Color 4."""
    for given, meant in (((234, 51, 35), (255, 0, 0)), ((117, 251, 76), (0, 255, 0)), ((255, 255, 255),) * 2):
        picture = Image.new("RGB", (WIDTH, HEIGHT), given)
        image = both_ways(picture, tmp_path / "wide.png", icc_profile=PROFILES["display p3"])
        np.testing.assert_allclose(image[3, 3] * 255, meant, atol=3)


def test_opacity_and_palettes_keep_their_meaning_under_a_profile(tmp_path):
    wide = {"icc_profile": PROFILES["display p3"]}
    picture = Image.new("RGBA", (WIDTH, HEIGHT), (234, 51, 35, 51))
    image = both_ways(picture, tmp_path / "clear.png", **wide)
    np.testing.assert_allclose(image[3, 3], (1, 0.8, 0.8), atol=2 / 255)
    picture = Image.new("P", (WIDTH, HEIGHT), 1)
    picture.putpalette([0, 0, 0, 234, 51, 35])
    np.testing.assert_allclose(both_ways(picture, tmp_path / "p.png", **wide)[3, 3], (1, 0, 0), atol=2 / 255)


def test_greys_follow_their_profile_in_all_their_bits(tmp_path):
    """Linear light by its profile, against the formula of IEC 61966-2-1."""
    deep = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    light = deep[..., None] / 65535
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055).repeat(3, axis=-1)
    linear = {"icc_profile": PROFILES["linear grey"]}
    found = both_ways(Image.fromarray(deep), tmp_path / "deep.tiff", **linear)
    np.testing.assert_allclose(found, expected, atol=3e-4)
    assert len(np.unique(found)) > 1500
    eight = Image.new("LA", (WIDTH, HEIGHT), (55, 255))
    np.testing.assert_allclose(both_ways(eight, tmp_path / "8.png", **linear)[3, 3] * 255, 128, atol=0.6)
    half = Image.new("LA", (WIDTH, HEIGHT), (55, 51))
    np.testing.assert_allclose(both_ways(half, tmp_path / "half.png", **linear)[3, 3] * 255, 229.6, atol=0.6)


def test_a_transparent_grey_is_told_by_the_value_in_the_file(tmp_path):
    key = b"\x01\x01"
    info = struct.pack(">I", 2) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    packed = b"linear\0\0" + zlib.compress(PROFILES["linear grey"])
    profile = struct.pack(">I", len(packed)) + b"iCCP" + packed + struct.pack(">I", zlib.crc32(b"iCCP" + packed))
    grey = np.full((HEIGHT, WIDTH, 1), 14029, np.uint16)
    grey[0, 0] = 257
    (tmp_path / "key.png").write_bytes(png(grey, 0, 16, profile + info))
    image = load_image(tmp_path / "key.png", (255, 0, 0))
    np.testing.assert_array_equal(image[0, 0], (1, 0, 0))
    np.testing.assert_allclose(image[1, 1], 0.5, atol=1e-3)


def test_inks_follow_their_profile(tmp_path):
    """A press whose cyan is a blue: without the profile, cyan would have as much green as blue."""
    cyan = Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0))
    image = both_ways(cyan, tmp_path / "ink.tiff", icc_profile=PROFILES["press"])
    np.testing.assert_allclose(image[3, 3] * 255, (0, 0, 255), atol=6)
    white = Image.new("CMYK", (WIDTH, HEIGHT), 0)
    image = both_ways(white, tmp_path / "paper.tiff", icc_profile=PROFILES["press"])
    np.testing.assert_allclose(image[3, 3], 1, atol=2 / 255)


@pytest.mark.parametrize("name", ["srgb of tables", "srgb of LittleCMS"])
def test_srgb_keeps_its_values_bit_for_bit(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    for channels in (3, 4):
        plain = Image.fromarray(noise[..., :channels])
        expected = both_ways(plain, tmp_path / "plain.png")
        np.testing.assert_array_equal(both_ways(plain, tmp_path / "s.png", icc_profile=PROFILES[name]), expected)


OWN_CHANNELS = {"linear grey": ("L", "LA", "1", "I;16"), "display p3": ("RGB", "RGBA", "P"), "press": ("CMYK",)}
UNFIT = [
    (mode, name)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK")
    for name in ("junk", "cut", "linear grey", "display p3", "press", "lab")
    if mode not in OWN_CHANNELS.get(name, ())
]


@pytest.mark.parametrize(("mode", "name"), UNFIT)
def test_a_profile_that_is_broken_or_of_other_channels_changes_nothing(tmp_path, mode, name):
    whole = Image.fromarray(photo())
    picture = Image.fromarray(photo()[..., 0].astype(np.uint16) * 200) if mode == "I;16" else whole.convert(mode)
    picture.info = {}
    expected = as_image(picture)
    np.testing.assert_array_equal(both_ways(picture, tmp_path / "odd.tiff", icc_profile=PROFILES[name]), expected)
    picture.info["icc_profile"] = PROFILES[name]
    np.testing.assert_array_equal(as_image(picture), expected)


def test_what_is_no_bytes_is_no_profile():
    picture = Image.fromarray(photo())
    picture.info["icc_profile"] = "Display P3"
    np.testing.assert_array_equal(as_image(picture) * 255, photo())


def test_without_littlecms_values_are_taken_as_srgb(monkeypatch):
    def missing(*_):
        raise ImportError("built without it")

    monkeypatch.setattr(ImageCms, "ImageCmsProfile", missing)
    for picture in (Image.fromarray(photo()), Image.fromarray(photo()[..., 0])):
        expected = as_image(picture)
        picture.info["icc_profile"] = PROFILES["display p3" if picture.mode == "RGB" else "linear grey"]
        np.testing.assert_array_equal(as_image(picture), expected)


@pytest.mark.parametrize("name", ["photo.jpg", "photo.mpo", "photo.webp"])
def test_a_lossy_picture_is_close(tmp_path, name):
    Image.fromarray(photo()).save(tmp_path / name, quality=95)
    assert np.abs(load_image(tmp_path / name) - photo() / 255).mean() < 0.02


def test_the_name_of_a_file_does_not_decide_its_format(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "photo.jpg", format="png")
    np.testing.assert_array_equal(load_image(tmp_path / "photo.jpg") * 255, photo())


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (6, lambda x: np.rot90(x, -1)),
        (8, lambda x: np.rot90(x, 1)),
    ],
)
def test_exif_rotation_is_applied(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo()).save(tmp_path / "photo.png", exif=exif)
    expected = turned(photo()).astype(np.float32) / 255
    np.testing.assert_array_equal(load_image(tmp_path / "photo.png"), expected)
    with Image.open(tmp_path / "photo.png") as picture:
        np.testing.assert_array_equal(as_image(picture), expected)


def test_exif_that_is_damaged_turns_nothing(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "photo.png", exif=b"Exif\0\0garbage in place of a header")
    np.testing.assert_array_equal(load_image(tmp_path / "photo.png") * 255, photo())


def test_opacity_is_composited_on_the_background(tmp_path):
    opacity = np.linspace(0, 255, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH, 1).astype(np.uint8)
    Image.fromarray(np.concatenate([photo(), opacity], axis=-1)).save(tmp_path / "cut.png")
    share = opacity / 255
    for background in ((255, 255, 255), (0, 128, 64)):
        expected = photo() / 255 * share + np.array(background) / 255 * (1 - share)
        np.testing.assert_allclose(load_image(tmp_path / "cut.png", background), expected, atol=1e-6)


def test_grey_with_opacity_is_composited(tmp_path):
    grey, opacity = photo()[..., 0], photo()[..., 1]
    Image.merge("LA", (Image.fromarray(grey), Image.fromarray(opacity))).save(tmp_path / "grey.png")
    share = opacity / 255
    expected = np.repeat((grey / 255 * share + 1 - share)[..., None], 3, axis=-1)
    np.testing.assert_allclose(load_image(tmp_path / "grey.png"), expected, atol=1e-6)


def test_a_transparent_palette_colour_shows_the_background(tmp_path):
    picture = Image.fromarray((photo()[..., 0] > 127).astype(np.uint8))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "palette.png", transparency=1)
    image = load_image(tmp_path / "palette.png", (0, 255, 0))
    np.testing.assert_array_equal(image[0, 0], (1, 0, 0))
    np.testing.assert_array_equal(image[-1, 0], (0, 1, 0))


def test_grey_palette_and_bilevel_pictures_become_three_channels(tmp_path):
    for mode in ("L", "P", "1"):
        Image.fromarray(photo()).convert(mode).save(tmp_path / "picture.png")
        expected = np.asarray(Image.fromarray(photo()).convert(mode).convert("RGB")) / np.float32(255)
        np.testing.assert_array_equal(load_image(tmp_path / "picture.png"), expected)


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    np.testing.assert_allclose(load_image(tmp_path / "print.jpg")[5, 5], (1, 0, 0), atol=0.02)


def test_grey_of_sixteen_bits_keeps_its_precision(tmp_path):
    grey = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    expected = np.repeat((grey / np.float32(65535))[..., None], 3, axis=-1)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png"), expected)
    Image.fromarray(grey).save(tmp_path / "grey.tiff")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.tiff"), expected)
    np.testing.assert_array_equal(
        as_image(Image.fromarray(grey.astype(np.int32))), expected
    )  # mode "I" of older Pillow


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_that_counts_from_white_is_no_negative(tmp_path, compression):
    grey = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0  # WhiteIsZero; Pillow writes the numbers as they are
    Image.fromarray(65535 - grey).save(tmp_path / "white.tiff", tiffinfo=info, compression=compression)
    expected = np.repeat((grey / np.float32(65535))[..., None], 3, axis=-1)
    np.testing.assert_array_equal(load_image(tmp_path / "white.tiff"), expected)
    with Image.open(tmp_path / "white.tiff") as picture:
        np.testing.assert_array_equal(as_image(picture), expected)


def test_a_transparent_grey_of_sixteen_bits_shows_the_background(tmp_path):
    grey = np.full((HEIGHT, WIDTH, 1), 1000, np.uint16)
    grey[0, 0] = 257
    key = struct.pack(">I", 2) + b"tRNS" + b"\x01\x01" + struct.pack(">I", zlib.crc32(b"tRNS\x01\x01"))
    (tmp_path / "key.png").write_bytes(png(grey, 0, 16, key))
    image = load_image(tmp_path / "key.png", (255, 0, 0))
    np.testing.assert_array_equal(image[0, 0], (1, 0, 0))
    np.testing.assert_allclose(image[1, 1], 1000 / 65535)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colour_and_opacity_of_sixteen_bits_are_read_to_eight(tmp_path, colour_type, channels):
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels))
    (tmp_path / "deep.png").write_bytes(png(values, colour_type, 16))
    unit = values / 65535
    colours = unit[..., :3] if channels > 2 else unit[..., :1].repeat(3, axis=-1)
    opacity = unit[..., -1:] if channels in (2, 4) else 1
    np.testing.assert_allclose(load_image(tmp_path / "deep.png"), colours * opacity + 1 - opacity, atol=2.5 / 255)


def test_an_animated_file_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:], lossless=True)
    for name in ("film.gif", "film.webp"):
        np.testing.assert_array_equal(load_image(tmp_path / name)[3, 3], (1, 0, 0))


def test_arrays_and_pillow_images_mean_the_same():
    expected = photo().astype(np.float32) / 255
    np.testing.assert_array_equal(as_image(Image.fromarray(photo())), expected)
    np.testing.assert_array_equal(as_image(photo()), expected)
    np.testing.assert_array_equal(as_image(photo().astype(np.uint16) * 257), expected)
    np.testing.assert_array_equal(as_image(expected), expected)
    np.testing.assert_array_equal(as_image(photo()[..., 0]), expected[..., :1].repeat(3, axis=-1))
    np.testing.assert_array_equal(as_image(photo()[..., :1]), expected[..., :1].repeat(3, axis=-1))
    clear = np.concatenate([expected, np.zeros_like(expected[..., :1])], axis=-1)
    np.testing.assert_array_equal(as_image(clear, (255, 0, 0)), np.broadcast_to((1, 0, 0), expected.shape))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((32, 32, 3), np.nan), "NaN or infinity"),
        (np.full((32, 32, 3), np.inf), "NaN or infinity"),
        (np.full((32, 32, 3), 1.5), r"values of 1\.5 to 1\.5: needed \[0, 1\]"),
        (np.full((32, 32, 3), -0.5), r"values of -0\.5"),
        (np.zeros((32, 32, 3), np.int64), "dtype int64: needed uint8"),
        (np.zeros((32, 32, 2)), r"shape \(32, 32, 2\)"),
        (np.zeros((1, 32, 32, 3)), r"shape \(1, 32, 32, 3\)"),
        (np.zeros((32,)), r"shape \(32,\)"),
        (np.zeros((1, 1, 3)), f"image is 1x1: needed at least {MIN_SIDE} pixels"),
        (np.zeros((32, MAX_SIDE + 1, 3), np.uint8), f"at most {MAX_SIDE} pixels"),
    ],
)
def test_an_array_that_is_no_image_is_refused(array, message):
    with pytest.raises(InputError, match=message):
        as_image(array)


@pytest.mark.parametrize("value", ["picture.png", None, Path("picture.png"), b"png", 3, [[1], [1, 2]]])
def test_what_is_no_picture_at_all_is_refused_by_its_class(value):
    words = f"image is a {type(value).__name__}: needed a PIL image or an array .* PIL.Image.open or svd_core.media.l"
    with pytest.raises(InputError, match=words):
        as_image(value)


def test_grey_beyond_sixteen_bits_is_refused():
    with pytest.raises(InputError, match="grey values of 0 to 70000: needed 0 to 65535"):
        as_image(Image.fromarray(np.pad(np.full((32, 32), 70000, np.int32), 1)))


def test_a_colour_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"colour \(300, 0, 0\) is not red, green and blue of 0 to 255"):
        as_image(np.zeros((32, 32, 4), np.uint8), (300, 0, 0))


def encoded(format="png"):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, format)
    return buffer.getvalue()


def promise(width, height):
    """A header that promises many pixels over almost no data."""
    whole = png(np.zeros((1, 1, 3)), 2)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return whole[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + whole[33:]


BAD_FILES = {
    "empty.png": (b"", "has 0 bytes"),
    "text.png": (b"Dear diary, today I renamed a file.\n", "is not a picture: needed one of PNG, JPEG"),
    "cut.png": (encoded()[:3000], "is damaged or cut short"),
    "cut.jpg": (encoded("jpeg")[:1500], "is damaged or cut short"),
    "cut.mpo": (encoded("mpo")[:1500], "is damaged or cut short"),
    "cut.webp": (encoded("webp")[:1500], "is damaged or cut short|is not a picture"),
    "flipped.png": (encoded()[:60] + b"\xff\xff" + encoded()[62:], "is damaged or cut short"),
    "bomb.png": (promise(60000, 60000), "has over 100 million pixels: scale it down first"),
    "wide.png": (promise(20000, 20), f"is 20000x20: at most {MAX_SIDE} pixels a side"),
    "large.png": (promise(16000, 8000), "is 16000x8000: at most .* and 100 million in all, scale it down first"),
    "dot.png": (png(np.zeros((1, 1, 3)), 2), f"is 1x1: needed at least {MIN_SIDE} pixels a side"),
    "line.png": (png(np.zeros((8, 500, 3)), 2), "is 500x8: needed at least"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\nshowpage\n", "is not a picture"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_picture_is_refused_in_one_line(tmp_path, name):
    data, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as refused:
        load_image(tmp_path / name)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "flipped.png"])
def test_an_image_whose_file_is_damaged_is_refused_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(BAD_FILES[name][0])
    with Image.open(tmp_path / name) as picture, pytest.raises(InputError) as refused:
        as_image(picture)
    assert "image of mode RGB cannot be read (" in str(refused.value) and "open it again" in str(refused.value)


def test_a_closed_image_and_one_that_cannot_be_rgb_are_refused_in_one_line():
    closed = Image.fromarray(photo())
    closed.close()
    with pytest.raises(
        InputError, match=r"^image of mode RGB cannot be read \(.*\): needed a whole and open PIL image"
    ):
        as_image(closed)


def test_grey_premultiplied_by_its_opacity_is_composited():
    picture = Image.new("LA", (WIDTH, HEIGHT), (100, 51))
    np.testing.assert_allclose(as_image(picture.convert("La")), as_image(picture), atol=2 / 255)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), IsADirectoryError(21, "Is a directory")])
def test_a_picture_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch, error):
    """Tests may run as root, whom no permission stops, so the system's answer is put in its mouth."""
    Image.fromarray(photo()).save(tmp_path / "mine.png")

    def refuse(*_, **__):
        raise error

    for name in ("open", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(builtins if name == "open" else os, name, refuse)
            with pytest.raises(
                InputError, match=f"mine.png cannot be opened: {error.strerror.lower()}, give this user"
            ):
                load_image(tmp_path / "mine.png")


def test_a_missing_picture_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.png does not exist: check the path"):
        load_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder: give one picture file"):
        load_image(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((32, 32), np.nan, np.float32), "holds NaN or infinity: needed"),
        (np.pad(np.full((32, 32), 2, np.float32), 1), r"has values of 0 to 2: needed \[0, 1\]"),
        (np.full((32, 32), -70000, np.int32), "has grey values of -70000 to -70000: needed"),
    ],
)
def test_a_file_with_bad_values_is_named(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "bad.tif")
    with pytest.raises(InputError, match=f"^picture .*/bad.tif {message}"):
        load_image(tmp_path / "bad.tif")


def test_odd_metadata_raise_no_warning(tmp_path):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[0x0112] = 9  # no such orientation
    Image.fromarray(photo()).save(tmp_path / "odd.tiff", tiffinfo=info)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(load_image(tmp_path / "odd.tiff") * 255, photo())


# Fitting


def ramp(width, height):
    """An image whose red is the share of the way across and green of the way down, at pixel centres."""
    across = (np.arange(width) + 0.5) / width
    down = (np.arange(height) + 0.5) / height
    red, green = np.meshgrid(across, down)
    return np.stack([red, green, np.full_like(red, 0.25)], axis=-1).astype(np.float32)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_picture_of_the_right_size_is_untouched(fit):
    image = ramp(128, 64)
    fitted = fit_image(image, 128, 64, fit)
    np.testing.assert_array_equal(fitted.image, image)
    assert fitted.report == "128x64 kept as it is"
    assert fitted.box == (0, 0, 128, 64)


def test_crop_keeps_the_middle_and_says_what_is_lost():
    fitted = fit_image(ramp(800, 600), 1024, 576, "crop")
    assert fitted.report == "800x600 cropped to 1024x576, 25 % of the height lost"
    assert fitted.image.shape == (576, 1024, 3)
    inner = np.s_[20:-20, 20:-20]
    expected = ramp(1024, 576)
    np.testing.assert_allclose(fitted.image[inner][..., 0], expected[inner][..., 0], atol=1e-4)
    np.testing.assert_allclose(fitted.image[inner][..., 1], 0.125 + 0.75 * expected[inner][..., 1], atol=1e-4)


def test_crop_of_a_wide_picture_loses_width():
    fitted = fit_image(ramp(2000, 500), 512, 512, "crop")
    assert fitted.report == "2000x500 cropped to 512x512, 75 % of the width lost"
    np.testing.assert_allclose(fitted.image[256, 256, :2], (0.5, 0.5), atol=1e-2)


def test_a_crop_never_says_that_all_is_lost():
    assert fit_image(ramp(10000, 20), 128, 64).report == "10000x20 cropped to 128x64, over 99 % of the width lost"


def test_pad_shows_the_whole_picture_on_the_background():
    fitted = fit_image(ramp(800, 600), 1024, 576, "pad", (255, 0, 0))
    assert fitted.report == "800x600 padded to 1024x576, bars on 25 % of the width"
    assert fitted.box == (128, 0, 896, 576)
    np.testing.assert_array_equal(fitted.image[:, :128], np.broadcast_to((1, 0, 0), (576, 128, 3)))
    np.testing.assert_array_equal(fitted.image[:, 896:], np.broadcast_to((1, 0, 0), (576, 128, 3)))
    np.testing.assert_allclose(fitted.image[20:-20, 148:876], ramp(768, 576)[20:-20, 20:-20], atol=1e-4)


def test_stretch_uses_all_of_the_picture():
    fitted = fit_image(ramp(800, 600), 1024, 576, "stretch")
    assert fitted.report == "800x600 stretched to 1024x576, 33 % wider than it was"
    np.testing.assert_allclose(fitted.image[20:-20, 20:-20], ramp(1024, 576)[20:-20, 20:-20], atol=1e-4)
    assert fit_image(ramp(100, 100), 64, 128, "stretch").report.endswith("100 % taller than it was")


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_same_proportions_are_only_resized(fit):
    assert fit_image(ramp(512, 288), 1024, 576, fit).report == "512x288 resized to 1024x576"


def test_scaling_down_does_not_alias():
    """A chessboard of single pixels is grey from afar."""
    board = np.indices((512, 512)).sum(0) % 2
    fitted = fit_image(np.repeat(board[..., None], 3, axis=-1).astype(np.float32), 64, 64)
    assert np.abs(fitted.image[4:-4, 4:-4] - 0.5).max() < 0.01


def test_overshoot_of_the_filter_is_clipped():
    edge = np.zeros((32, 32, 3), np.float32)
    edge[:, 16:] = 1
    fitted = fit_image(edge, 128, 128)
    assert (fitted.image.min(), fitted.image.max()) == (0, 1)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_bilinear_filter_spreads_an_edge_no_further_than_one_pixel(fit):
    edge = np.zeros((96, 96, 3), np.float32)
    edge[:, 48:] = 1
    fitted = fit_image(edge, 64, 64, fit, resampling=Image.Resampling.BILINEAR)
    assert not fitted.image[:, :31].any()
    assert (fitted.image[:, 33:] == 1).all()
    assert fit_image(edge, 64, 64, fit).image[:, :31].any()  # which Lanczos does


def test_extreme_proportions_still_fit():
    thin = ramp(16, 4000)
    assert fit_image(thin, 1024, 576, "pad").image.shape == (576, 1024, 3)
    assert fit_image(thin, 1024, 576, "crop").image.shape == (576, 1024, 3)


def test_an_unknown_fit_is_refused():
    with pytest.raises(InputError, match="fit 'zoom' is not known: choose one of crop, pad, stretch"):
        fit_image(ramp(32, 32), 64, 64, "zoom")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1920, 1080), (1024, 576)),
        ((1080, 1920), (576, 1024)),
        ((800, 600), (1024, 576)),
        ((600, 800), (576, 1024)),
        ((500, 500), (768, 768)),
        ((500, 450), (768, 768)),
        ((4000, 100), (1024, 576)),
    ],
)
def test_the_default_size_is_the_trained_one_turned_to_the_picture(size, expected):
    width, height = size
    assert default_size(np.zeros((height, width, 3), np.float32), VARIANTS["svd"]) == expected


def test_sizes_round_to_multiples_of_64():
    assert round_size(1000, 560) == (1024, 576)
    assert round_size(1, 95) == (64, 64)
    assert round_size(96, 159) == (128, 128)


# Clips


@pytest.mark.parametrize(("name", "least"), [("clip.mp4", 38), ("clip.webm", 38), ("clip.webp", 36), ("clip/", 55)])
def test_a_clip_comes_back_from_its_file(tmp_path, name, least):
    clip = smooth_clip()
    found = frames_in(write_clip(clip, f"{tmp_path}/{name}", 7))
    assert found.shape == clip.shape
    assert psnr(found, clip) > least


def test_the_dots_of_a_gif_blend_to_the_clip(tmp_path):
    clip = smooth_clip()
    found = frames_in(write_clip(clip, tmp_path / "clip.gif", 7))
    assert found.shape == clip.shape
    blended = [x.reshape(4, 16, 4, 32, 4, 3).mean(axis=(2, 4)) for x in (found, clip)]
    assert psnr(*blended) > 30


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 30, 60), (255, 255, 255), (0, 0, 0)])
def test_flat_colours_come_back(tmp_path, name, colour):
    """BT.601 in place of BT.709, or full range in place of limited, is off by 10 and more."""
    path = write_clip(flat_clip(colour), f"{tmp_path}/{name}", 7)
    found = frames_in(path)[:, 16:48, 16:48].astype(int)
    assert np.abs(found - np.array(colour)).max() <= 3


@pytest.mark.parametrize("colour", [(200, 30, 60), (255, 0, 0), (0, 0, 255)])
@pytest.mark.parametrize(("matrix", "codec_range"), [(1, 1), (1, 2), (5, 1), (5, 2), (6, 1)])
def test_a_movie_is_read_by_the_matrix_and_range_of_its_tags(tmp_path, matrix, codec_range, colour):
    """PyAV before 17 takes every movie for BT.601 in limited range, unless it is asked to change matrix or range."""
    path = tmp_path / "clip.mp4"
    luma = {1: (0.2126, 0.7152, 0.0722), 5: (0.299, 0.587, 0.114), 6: (0.299, 0.587, 0.114)}[matrix]
    with av.open(str(path), "w") as movie:
        stream = movie.add_stream("libx264", rate=7, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, codec_range
        planes = planes_of(np.array(colour) / 255, luma, limited=codec_range == 1)
        movie.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        movie.mux(stream.encode())
    assert np.abs(read_frames(path, 64 * 64 * 3)[0, 32, 32] * 255 - colour).max() <= 3


def planes_of(colour, luma, *, limited):
    """(96, 64) uint8: a flat 4:2:0 frame of one colour in [0, 1], by the luma coefficients of a matrix."""
    y = colour @ np.array(luma)
    chroma = [(colour[channel] - y) / (2 * (1 - luma[channel])) for channel in (2, 0)]
    levels = [16 + 219 * y, *(128 + 224 * part for part in chroma)]
    levels = levels if limited else [255 * y, *(128 + 255 * part for part in chroma)]
    return np.repeat(np.rint(np.clip(levels, 0, 255)), (64, 16, 16)).astype(np.uint8)[:, None].repeat(64, axis=1)


@pytest.mark.parametrize(("name", "codec"), [("clip.mp4", "h264"), ("clip.webm", "vp9")])
def test_movies_are_tagged_and_timed(tmp_path, name, codec):
    path = write_clip(smooth_clip(), tmp_path / name, 12)
    with av.open(str(path)) as movie:
        stream = movie.streams.video[0]
        context, rate = stream.codec_context, stream.average_rate
        frames = list(movie.decode(stream))
    assert (context.codec.canonical_name, context.pix_fmt, rate) == (codec, "yuv420p", 12)
    assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
    times = [float(frame.pts * frame.time_base) for frame in frames]
    np.testing.assert_allclose(times, np.arange(4) / 12, atol=1e-3)


def test_an_mp4_can_be_played_before_it_has_arrived(tmp_path):
    data = write_clip(smooth_clip(), tmp_path / "clip.mp4", 7).read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("name", ["clip.webp", "clip.gif"])
def test_pillow_clips_loop_and_keep_time(tmp_path, name):
    path = write_clip(smooth_clip(7), tmp_path / name, 7)
    with Image.open(path) as picture:
        durations = []
        for index in range(picture.n_frames):
            picture.seek(index)
            picture.load()
            durations.append(picture.info["duration"])
        assert picture.info["loop"] == 0
    assert sum(durations) == 1000


def test_chroma_sits_left_of_each_pair_of_columns():
    """Along a horizontal ramp of blue, each chroma sample is the colour at its own even column."""
    blue = np.zeros((4, 16, 3), np.float32)
    blue[..., 2] = np.linspace(0, 1, 16)
    chroma = to_yuv420(blue).ravel()[64 : 64 + 16].reshape(2, 8).astype(float)
    np.testing.assert_allclose(chroma[0, 1:], 128 + 224 * 0.5 * blue[0, 2::2, 2], atol=0.51)


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_same_clip_gives_the_same_bytes(tmp_path, name):
    first = write_clip(smooth_clip(), f"{tmp_path}/a-{name}", 7, a_recipe())
    again = write_clip(smooth_clip(), f"{tmp_path}/b-{name}", 7, a_recipe())
    assert bytes_of(first) == bytes_of(again)


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_recipe_comes_back_from_its_file(tmp_path, name):
    path = write_clip(smooth_clip(), f"{tmp_path}/{name}", 7, a_recipe())
    assert read_recipe(path) == a_recipe()


def test_a_recipe_comes_back_from_one_frame_and_from_json(tmp_path):
    folder = write_clip(smooth_clip(), tmp_path / "clip", 7, a_recipe())
    assert read_recipe(folder / "frame_0002.png") == a_recipe()
    (tmp_path / "recipe.json").write_text(a_recipe().to_json())
    assert read_recipe(tmp_path / "recipe.json") == a_recipe()


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_clip_without_a_recipe_says_so(tmp_path, name):
    path = write_clip(smooth_clip(), f"{tmp_path}/{name}", 7)
    with pytest.raises(InputError, match="carries no recipe"):
        read_recipe(path)


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.webp", "x.gif", "x.png", "x.json", "x.safetensors"])
@pytest.mark.parametrize("data", [b"", b"not at all\n", b"\xff\xfe\x00" * 50])
def test_a_damaged_recipe_file_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as refused:
        read_recipe(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_a_missing_or_unfit_recipe_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_recipe(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="does not exist"):
        read_recipe(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"cannot carry a recipe: needed a folder of PNGs or one of \.json, \.mp4"):
        read_recipe(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip.avi", r"ends in \.avi: needed \.mp4, \.webm, \.webp, \.gif, or a folder ending in /"),
        ("none/clip.mp4", "none does not exist, create the folder first"),
        ("file/clip.mp4", "file is not a folder"),
        ("file/", "is a file: PNG frames need a folder"),
        ("folder.mp4", "is a folder: give the name of a file"),
        ("full/", "is not empty: choose a new one"),
        (".mp4", r"has no name before \.mp4: give one, such as clip\.mp4"),
        (".GIF", r"has no name before \.GIF: give one"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_and_while_writing(tmp_path, name, message):
    (tmp_path / "file").write_text("keep me")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("keep me")
    before = sorted(tmp_path.rglob("*"))
    for refused in (lambda path: check_output(path, 7), lambda path: write_clip(smooth_clip(), path, 7)):
        with pytest.raises(OutputError, match=message):
            refused(f"{tmp_path}/{name}")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "full" / "kept.txt").read_text() == "keep me"


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    """Tests may run as root, whom no permission stops, so the system's answer is put in its mouth."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"clip\.mp4 cannot be written: permission denied, choose another folder"):
        check_output(tmp_path / "clip.mp4", 7)


@pytest.mark.parametrize(("name", "fps"), [("clip.mp4", 0), ("clip.webp", 1000), ("clip.gif", 60), ("clip", -1)])
def test_a_playback_speed_that_cannot_be_is_refused(tmp_path, name, fps):
    with pytest.raises(OutputError, match=f"playback at {fps} frames per second is outside 1 to"):
        check_output(tmp_path / name, fps)


def test_a_movie_needs_its_encoder(tmp_path, monkeypatch):
    def missing(name, mode):
        raise ValueError(name, mode)

    monkeypatch.setattr(av, "Codec", missing)
    with pytest.raises(OutputError, match="needs PyAV with libx264: pip install av"):
        check_output(tmp_path / "clip.mp4", 7)


def test_a_pyav_that_is_too_old_is_refused_before_a_movie_is_rendered(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "__version__", "13.1.0")
    with pytest.raises(OutputError, match=r"av 13.1.0 is too old, install 14.2 or newer, or write .webp"):
        check_output(tmp_path / "clip.mp4", 7)
    check_output(tmp_path / "clip.webp", 7)


def test_a_pyav_that_is_too_old_reads_no_movie(tmp_path, monkeypatch):
    path = write_clip(flat_clip((200, 30, 60)), tmp_path / "clip.mp4", 7)
    monkeypatch.setattr(av, "__version__", "14.1.0")
    with pytest.raises(InputError, match=r"av 14.1.0 is too old, install 14.2 or newer"):
        read_frames(path, 10**6)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((0, 64, 64, 3)), np.zeros((64, 64, 3)), np.full((2, 64, 64, 3), np.nan), np.full((2, 64, 64, 3), 1.01)],
)
def test_frames_that_are_no_clip_are_refused(tmp_path, frames):
    with pytest.raises(OutputError, match=r"no clip|NaN or values outside"):
        write_clip(frames, tmp_path / "clip.mp4", 7)
    assert not list(tmp_path.iterdir())


def test_a_clip_whose_file_another_program_has_open_is_written_beside_it(tmp_path, monkeypatch):
    """As on Windows, where such a file cannot be replaced."""
    replace = os.replace

    def guarded(source, target):
        if Path(target).name == "clip.webp":
            raise PermissionError(13, "Access is denied", target)
        replace(source, target)

    (tmp_path / "clip.webp").write_bytes(b"old")
    (tmp_path / "clip-1.webp").write_bytes(b"taken")
    monkeypatch.setattr(os, "replace", guarded)
    said = r"clip.webp cannot be replaced \(access is denied\), so it was written as clip-2.webp: close the program"
    with pytest.raises(OutputError, match=said):
        write_clip(flat_clip((200, 30, 60)), tmp_path / "clip.webp", 7)
    assert {path.name for path in tmp_path.iterdir()} == {"clip.webp", "clip-1.webp", "clip-2.webp"}
    assert (tmp_path / "clip.webp").read_bytes() == b"old"
    assert frames_in(tmp_path / "clip-2.webp").shape == flat_clip((200, 30, 60)).shape


def test_nothing_is_left_where_the_folder_allows_nothing(tmp_path, monkeypatch):
    def guarded(source, target):
        raise PermissionError(13, "Permission denied", target)

    (tmp_path / "clip.webp").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", guarded)
    with pytest.raises(OutputError, match=r"clip.webp cannot be written: permission denied, choose another place"):
        write_clip(flat_clip((200, 30, 60)), tmp_path / "clip.webp", 7)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.webp"]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm"])
def test_odd_sizes_are_refused_by_movies(tmp_path, name):
    with pytest.raises(OutputError, match=r"63x64.*even"):
        write_clip(np.zeros((2, 64, 63, 3), np.float32), tmp_path / name, 7)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError])
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch, name, error):
    """The failure comes while the second of four frames is converted, with the file half written."""
    target = Path(f"{tmp_path}/{name}")
    if name.endswith("/"):
        target.mkdir()
    else:
        target.write_bytes(b"the old clip")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    converted = []

    def fail_at_the_second(frame):
        converted.append(1)
        if len(converted) == 2:
            raise error
        return original(frame)

    function = "to_yuv420" if name.endswith(("mp4", "webm")) else "_picture"
    original = getattr(video, function)
    monkeypatch.setattr(video, function, fail_at_the_second)
    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        write_clip(smooth_clip(), f"{tmp_path}/{name}", 7, a_recipe())
    assert len(converted) == 2
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_file_is_replaced_and_an_empty_folder_filled(tmp_path):
    (tmp_path / "clip.gif").write_bytes(b"the old clip")
    (tmp_path / "clip").mkdir()
    assert frames_in(write_clip(smooth_clip(), tmp_path / "clip.gif", 7)).shape[0] == 4
    assert frames_in(write_clip(smooth_clip(), tmp_path / "clip", 7)).shape[0] == 4
    assert sorted(path.name for path in (tmp_path / "clip").iterdir()) == [f"frame_000{n}.png" for n in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "clip.gif"]


def test_upper_case_suffixes_and_dotted_folders_work(tmp_path):
    assert write_clip(smooth_clip(), tmp_path / ".hidden", 7).is_dir()
    assert write_clip(smooth_clip(), tmp_path / "CLIP.GIF", 7).read_bytes().startswith(b"GIF89a")
    assert write_clip(smooth_clip(), f"{tmp_path}/take.2/", 7).is_dir()


FRAMES = [f"frame_000{n}.png" for n in range(4)]


@pytest.mark.parametrize("name", [".", "./", "../here/"])
def test_frames_go_into_the_folder_that_a_shell_stands_in(tmp_path, monkeypatch, name):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = here.stat().st_ino
    check_output(name, 7)
    write_clip(smooth_clip(), name, 7)
    assert (sorted(os.listdir(".")), here.stat().st_ino) == (FRAMES, before)


@pytest.mark.parametrize("there", [True, False])
def test_frames_go_where_a_link_leads(tmp_path, there):
    if there:
        (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    check_output(f"{tmp_path}/link/", 7)
    write_clip(smooth_clip(), f"{tmp_path}/link/", 7)
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == FRAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_links_that_lead_nowhere_are_refused_before_rendering(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "lost").symlink_to("none/frames")
    for name, message in (("circle/", "circle is a file: PNG frames need"), ("lost/", "none does not exist, create")):
        with pytest.raises(OutputError, match=message):
            check_output(f"{tmp_path}/{name}", 7)


def test_a_folder_that_cannot_be_moved_or_removed_is_filled(tmp_path, monkeypatch):
    """As where a disk is mounted: the system calls its folder busy."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()

    def busy(of):
        def on(path, *others, **options):
            if mounted in (Path(path), *map(Path, others)):
                raise OSError(16, "Device or resource busy")
            return of(path, *others, **options)

        return on

    monkeypatch.setattr(os, "replace", busy(os.replace))
    monkeypatch.setattr(os, "rmdir", busy(os.rmdir))
    write_clip(smooth_clip(), mounted, 7)
    assert sorted(path.name for path in mounted.iterdir()) == FRAMES


def test_a_move_that_fails_half_way_leaves_the_folder_empty(tmp_path, monkeypatch):
    (tmp_path / "frames").mkdir()
    replace, moved = os.replace, []

    def fail_at_the_third(source, target):
        moved.append(target)
        if len(moved) == 3:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_third)
    with pytest.raises(OutputError, match="frames cannot be written: no space left on device"):
        write_clip(smooth_clip(), tmp_path / "frames", 7)
    assert len(moved) == 3
    assert list((tmp_path / "frames").iterdir()) == []


def test_a_folder_that_fills_up_meanwhile_is_not_mixed_with_the_frames(tmp_path, monkeypatch):
    (tmp_path / "frames").mkdir()
    original = video._write_pngs

    def another_comes(*given):
        original(*given)
        (tmp_path / "frames" / "frame_0000.png").write_text("another's")

    monkeypatch.setattr(video, "_write_pngs", another_comes)
    with pytest.raises(OutputError, match="directory not empty"):
        write_clip(smooth_clip(), tmp_path / "frames", 7)
    assert [path.read_text() for path in (tmp_path / "frames").iterdir()] == ["another's"]


# Reading clips again


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize(("count", "first"), [(1, 3), (2, 2), (4, 0), (99, 0)])
def test_the_last_frames_of_a_clip_are_those_it_ends_with(tmp_path, name, count, first):
    write_clip(smooth_clip(4), tmp_path / name, 7, a_recipe())
    last, every = read_last_frames(tmp_path / name, count), read_frames(tmp_path / name, 2**30)
    assert last.dtype == np.float32
    np.testing.assert_array_equal(last, every[first:])
    assert np.abs(every - smooth_clip(4)).mean() < 0.05


def test_frames_before_the_last_are_read_but_may_differ_in_size(tmp_path):
    for index, side in enumerate((32, 64, 64)):
        Image.new("RGB", (side, side), (index, 0, 0)).save(tmp_path / f"{index}.png")
    assert (read_last_frames(tmp_path, 2)[:, 0, 0, 0] == np.float32((1, 2)) / np.float32(255)).all()
    with pytest.raises(InputError, match="holds frames of several sizes: give a clip as svd_core wrote it"):
        read_last_frames(tmp_path, 3)


def test_hidden_pictures_in_a_folder_are_no_frames(tmp_path):
    write_clip(smooth_clip(2), tmp_path / "clip", 7, a_recipe())
    (tmp_path / "clip" / "._frame_0001.png").write_bytes(b"as macOS leaves them")
    assert len(read_last_frames(tmp_path / "clip", 9)) == 2


def test_a_damaged_last_frame_is_named(tmp_path):
    write_clip(smooth_clip(3), tmp_path / "clip", 7, a_recipe())
    last = max((tmp_path / "clip").glob("*.png"))
    last.write_bytes(last.read_bytes()[:60])
    with pytest.raises(InputError, match=f"{last.name} cannot be read"):
        read_last_frames(tmp_path / "clip", 1)
