"""Mutations of bytes, of JSON trees and of their text, determined entirely by the given random generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

Bytes = bytearray

EDGES = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
MAGIC = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"GIF89a",
    b"RIFF\xff\xff\xff\xffWEBP",
    b"BM",
    b"II*\0",
    b"PK\x03\x04",
    b"\x80\x04c",
    b"%!PS-Adobe-3.0 EPSF",
    b"#EXTM3U\nfile:///etc/hostname\n",
    b"ffconcat version 1.0\nfile '/etc/hostname'\n",
    b"\x1aE\xdf\xa3",
    b"\0\0\0\x18ftypmp42",
)
"""First bytes of other formats, including some that make a careless reader open other files."""

TEXTS = (
    "",
    "\0",
    "a\nb",
    "\r\n",
    "\x1b[2J\x1b]0;owned\x07",
    "\u2028",
    "\u202e",
    "\ud800",
    "\udcff",
    "\u0663",
    "..",
    "/",
    "../outside/secret.safetensors",
    "../../../../../../etc/passwd",
    "/dev/stdin",
    "file:///etc/passwd",
    "\\\\server\\share\\x",
    "C:\\x",
    "CON",
    "~",
    "$(id)",
    "%s%n{0}{x}",
    "__class__",
    "nan",
    "1e999",
    "0x10",
    "x" * 5000,
    "9" * 4299,
    "{" * 300,
)
NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 255, 256, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400, 10**4000),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf")),
)
PLAIN = (None, True, False, *NUMBERS, *TEXTS)


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to six changes, mostly small, so that readers get far before they notice."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(_BYTE_CHANGES)(out, rng)
    return bytes(out)


def _flip(out: Bytes, rng: random.Random) -> None:
    if out:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)


def _flip_early(out: Bytes, rng: random.Random) -> None:
    """Change one of the first 200 bytes: headers matter more than bodies."""
    if out:
        out[rng.randrange(min(len(out), 200))] = rng.randrange(256)


def _set_number(out: Bytes, rng: random.Random) -> None:
    size = rng.choice((1, 2, 4, 8))
    place = rng.randrange(max(len(out) - size, 0) + 1)
    number = rng.choice(EDGES) % 256**size
    out[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))


def _cut(out: Bytes, rng: random.Random) -> None:
    del out[rng.randrange(len(out) + 1) :]


def _remove(out: Bytes, rng: random.Random) -> None:
    start = rng.randrange(len(out) + 1)
    del out[start : start + rng.choice((1, 2, 4, 16, 256))]


def _insert(out: Bytes, rng: random.Random) -> None:
    start = rng.randrange(len(out) + 1)
    out[start:start] = rng.randbytes(rng.choice((1, 4, 64)))


def _repeat(out: Bytes, rng: random.Random) -> None:
    start = rng.randrange(len(out) + 1)
    out[start:start] = bytes(out[start : start + 64]) * rng.choice((1, 3, 100))


def _disguise(out: Bytes, rng: random.Random) -> None:
    """Insert or overwrite the first bytes with those of another format."""
    mark = rng.choice(MAGIC)
    out[: rng.choice((0, len(mark)))] = mark


_BYTE_CHANGES: tuple[Callable[[Bytes, random.Random], None], ...] = (
    *(_flip, _flip, _flip_early, _flip_early, _set_number, _set_number),
    *(_cut, _remove, _insert, _repeat, _disguise),
)


def damaged_tree(tree: Any, rng: random.Random) -> Any:
    """A copy of parsed JSON with one to three of its values replaced, removed, renamed, repeated or buried."""
    copy = {"": json.loads(json.dumps(tree))}
    for _ in range(rng.choice((1, 1, 2, 3))):
        place, key = rng.choice(list(_places(copy)))
        rng.choice(_TREE_CHANGES)(place, key, rng)
        copy.setdefault("", None)
    return copy[""]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a tree with each of its keys or indices."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _replace(place: Any, key: Any, rng: random.Random) -> None:
    place[key] = junk(rng)


def _nudge(place: Any, key: Any, rng: random.Random) -> None:
    """Change a number slightly, which passes checks of types; other values are replaced."""
    value = place[key]
    numeric = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
    place[key] = value + rng.choice((-1, 1, 0.5, 64, 1000)) if numeric else junk(rng)


def _drop(place: Any, key: Any, rng: random.Random) -> None:
    del place[key]


def _rename(place: Any, key: Any, rng: random.Random) -> None:
    if isinstance(place, dict) and key:
        text = rng.choice(TEXTS)
        place[rng.choice((text, key + text, text + key, _renumbered(key, rng)))] = place.pop(key)


def _renumbered(key: str, rng: random.Random) -> str:
    """A name with a random digit changed, because tensor names contain layer numbers."""
    digits = [index for index, letter in enumerate(key) if letter.isdigit()]
    if not digits:
        return key.upper()
    place = rng.choice(digits)
    return key[:place] + rng.choice(("9", "99999", "9" * 900, "-1", "\u0663", "")) + key[place + 1 :]


def _repeat_value(place: Any, key: Any, rng: random.Random) -> None:
    times = rng.choice((2, 40, 1100))
    if isinstance(place, list):
        place[key:key] = [place[key]] * times
    elif key:
        place.update({f"{key}{number}": place[key] for number in range(times)})


def _bury(place: Any, key: Any, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 200))):
        place[key] = rng.choice((lambda inner: [inner], lambda inner: {"a": inner}))(place[key])


_TREE_CHANGES: tuple[Callable[[Any, Any, random.Random], None], ...] = (
    *(_replace, _replace, _replace, _nudge, _nudge, _nudge),
    *(_drop, _rename, _rename, _repeat_value, _bury),
)


def junk(rng: random.Random) -> Any:
    """An unlikely JSON value."""
    if rng.random() < 0.85:
        return rng.choice(PLAIN)
    return rng.choice(([], {}, [0], {"a": 1}, [[]], [None] * 1200, {"": {}}))


def as_text(tree: Any, rng: random.Random) -> bytes:
    """The tree as JSON text, sometimes damaged too: random bytes, duplicate fields, huge numbers, deep nesting."""
    text = json.dumps(tree).encode()
    if rng.random() < 0.1:
        text = damaged_bytes(text, rng)
    if rng.random() < 0.05 and text.startswith(b"{"):
        return b"{" + rng.choice((b'"a":1,"a":2,', b'"a":' + b"9" * 5000 + b",", b'"a":' + b"[" * 9000)) + text[1:]
    return text
