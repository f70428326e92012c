"""Strict parsing of untrusted JSON into frozen dataclasses."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
from typing import Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import InputError

MAX_CHARACTERS = 2**20
MAX_TEXT = 4096
"""Longest string: enough for a path on any system."""

MAX_ITEMS = 1001
"""Longest list: what `Settings` accepts (`MAX_VALUES`)."""

MAX_NUMBER = 2**64

T = TypeVar("T")


def parse(text: str, kind: type[T], name: str) -> T:
    """Parse a JSON text into the dataclass `kind`, whose fields may be int, float, str, Literal, tuples, dataclasses,
    or Optional of these. `name` is what errors call it.

    Raises InputError for invalid JSON, for unknown, missing or repeated fields, for values of the wrong type (integers
    are accepted as floats), and for numbers, strings and lists so large that the text must be damaged.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{name} is longer than {MAX_CHARACTERS} characters: give one that svd_core wrote")
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON ({error}): give one that svd_core wrote") from error
    return _decode(value, kind, name)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise InputError(f"JSON with a field twice among {', '.join(fields)[:80]}: give one that svd_core wrote")
    return fields


def _decode(value: object, kind: object, where: str) -> object:
    """Convert parsed JSON to the annotated type `kind`; `where` names the value in errors."""
    if dataclasses.is_dataclass(kind):
        return _decode_fields(value, kind, where)
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = (each for each in get_args(kind) if each is not types.NoneType)
        return None if value is None else _decode(value, inner, where)
    if get_origin(kind) is tuple:
        return _decode_items(value, get_args(kind), where)
    if get_origin(kind) is Literal:
        allowed = get_args(kind)
        fits = any(value == each and type(value) is type(each) for each in allowed)
        return _require(fits, value, where, f"one of {', '.join(map(str, allowed))}")
    wanted = (float, int) if kind is float else (kind,)
    _require(type(value) in wanted and _is_modest(value), value, where, f"a modest {kind.__name__}")
    return kind(value)


def _decode_fields(value: object, kind: type, where: str) -> object:
    _require(type(value) is dict, value, where, "an object")
    fields = {each.name: each for each in dataclasses.fields(kind)}
    unknown = sorted(value.keys() - fields.keys())
    if unknown:
        raise InputError(
            f"{where} has an unknown field {unknown[0][:40]!r}: another version wrote it, or it is damaged"
        )
    missing = sorted(name for name, each in fields.items() if name not in value and _is_needed(each))
    if missing:
        raise InputError(f"{where} lacks {missing[0]}: give the whole of what svd_core wrote")
    hints = get_type_hints(kind)
    return kind(**{name: _decode(each, hints[name], f"{where}.{name}") for name, each in value.items()})


def _decode_items(value: object, kinds: tuple[object, ...], where: str) -> tuple[object, ...]:
    if kinds[-1] is Ellipsis:
        _require(type(value) is list and len(value) <= MAX_ITEMS, value, where, f"a list of at most {MAX_ITEMS}")
        kinds = kinds[:1] * len(value)
    _require(type(value) is list and len(value) == len(kinds), value, where, f"a list of {len(kinds)}")
    pairs = enumerate(zip(value, kinds, strict=True))
    return tuple(_decode(each, kind, f"{where}[{index}]") for index, (each, kind) in pairs)


def _is_needed(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_modest(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and _may_be_a_path(value)
    return abs(value) < MAX_NUMBER and math.isfinite(value)


def _may_be_a_path(text: str) -> bool:
    """False for lone surrogates and null bytes, which no file name contains and on which system calls raise."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _require(fits: bool, value: object, where: str, needed: str) -> object:
    if not fits:
        raise InputError(f"{where} is {str(value)[:40]!r}: needed {needed}, give what svd_core wrote")
    return value
