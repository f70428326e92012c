"""ICC profiles laid out by hand, by ICC.1:2010, so that what reads them is not tested with what it wrote."""

import itertools
import struct

import numpy as np
from PIL import ImageCms

D50 = (0.9642, 1.0, 0.8249)


def fixed(numbers):
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def xyz(numbers):
    return b"XYZ \0\0\0\0" + fixed(numbers)


def curve(values):
    """A curve by a table of 16-bit values; without any, a straight line."""
    return struct.pack(f">4sII{len(values)}H", b"curv", 0, len(values), *values)


def srgb_curve():
    """IEC 61966-2-1 in a table of 1024, as the profiles that cameras and editors embed have it."""
    x = np.linspace(0, 1, 1024)
    light = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return curve(np.rint(light * 65535).astype(int).tolist())


def profile(space, kind, connection, tags):
    start, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value = value.ljust(-(-len(value) // 4) * 4, b"\0")
        table += struct.pack(">4sII", name, start + len(data), len(value))
        data += value
    header = struct.pack(">II", start + len(data), 0) + b"\x02\x40\0\0" + kind + space + connection
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp"
    header = header.ljust(68, b"\0") + fixed(D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def of_colours(red, green, blue):
    """By its primaries in XYZ under D50, with sRGB's curve."""
    tags = {b"wtpt": xyz(D50), b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), srgb_curve())
    return profile(b"RGB ", b"mntr", b"XYZ ", tags)


def of_a_press():
    """Two values of each ink. The Lab of full cyan is that of sRGB's blue, of paper white, and of all else black."""
    colours = {(0, 0, 0, 0): (100, 0, 0), (1, 0, 0, 0): (29.57, 68.30, -112.03)}
    grid = []
    for inks in itertools.product((0, 1), repeat=4):
        light, a, b = colours.get(inks, (0, 0, 0))
        grid += [light * 652.8, (a + 128) * 256, (b + 128) * 256]  # the 16-bit Lab of version 2
    table = b"mft2" + struct.pack(">IBBBB", 0, 4, 3, 2, 0) + fixed((1, 0, 0, 0, 1, 0, 0, 0, 1))
    table += struct.pack(">HH", 2, 2) + struct.pack(">8H", *(0, 65535) * 4)
    table += struct.pack(f">{len(grid)}H", *(min(round(value), 65535) for value in grid))
    table += struct.pack(">6H", *(0, 65535) * 3)
    return profile(b"CMYK", b"prtr", b"Lab ", {b"wtpt": xyz(D50), b"A2B0": table, b"A2B1": table})


DISPLAY_P3 = of_colours((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))

PROFILES = {
    "display p3": DISPLAY_P3,
    "srgb of tables": of_colours((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)),
    "srgb of LittleCMS": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    "linear grey": profile(b"GRAY", b"mntr", b"XYZ ", {b"wtpt": xyz(D50), b"kTRC": curve(())}),
    "press": of_a_press(),
    "lab": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    "junk": b"not a profile at all",
    "cut": DISPLAY_P3[:200],
}
