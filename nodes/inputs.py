"""Checks of a node's inputs against its schema.

ComfyUI checks widgets against their ranges, but lets NaN through, skips the inputs that `validate_inputs` names, and
does not check values that come over a link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..svd_core.errors import InputError

Execute = Callable[..., io.NodeOutput]


def checked(execute: Execute) -> Execute:
    """Wrap `execute` so that it raises InputError for the first input that violates its schema."""

    wanted = signature(execute)

    @wraps(execute)
    def run(cls: type[io.ComfyNode], *args: Any, **named: Any) -> io.NodeOutput:
        given = wanted.bind(cls, *args, **named).arguments
        for each in cls.define_schema().inputs:
            if each.id in given and not (each.optional and given[each.id] is None):
                require(each, given[each.id])
        return execute(cls, *args, **named)

    return run


def require(wanted: io.Input, value: Any) -> None:
    """Raise InputError unless the value is valid for this input."""
    if value is None:
        raise InputError(f"{wanted.id} holds nothing: connect it to a node that gives one")
    check = _CHECKS.get(wanted.get_io_type())
    needed = check(wanted, value) if check else ""
    if needed:
        raise InputError(f"{wanted.id} is {_in_short(value)}, needed {needed}: change it, or what is connected to it")


def _whole_number(wanted: io.Input, value: Any) -> str:
    fits = isinstance(value, Integral) and wanted.min <= value <= wanted.max
    return "" if fits else f"a whole number from {wanted.min} to {wanted.max}"


def _number(wanted: io.Input, value: Any) -> str:
    """An input without a range may hold a list, which its node checks itself."""
    if wanted.min is None:
        return ""
    fits = isinstance(value, Real) and wanted.min <= value <= wanted.max
    return "" if fits else f"a number from {wanted.min:g} to {wanted.max:g}"


def _choice(wanted: io.Input, value: Any) -> str:
    return "" if value in wanted.options else f"one of {', '.join(map(str, wanted.options))}"


def _text(wanted: io.Input, value: Any) -> str:
    return "" if isinstance(value, str) else "text"


def _images(wanted: io.Input, value: Any) -> str:
    return "" if _is_filled(value, 4) else "pictures of shape (count, height, width, channels) in [0, 1]"


def _masks(wanted: io.Input, value: Any) -> str:
    return "" if _is_filled(value, 2, 3) else "masks of shape (count, height, width) in [0, 1]"


def _latent(wanted: io.Input, value: Any) -> str:
    samples = value.get("samples") if isinstance(value, Mapping) else None
    if isinstance(samples, Tensor) and (samples.is_nested or _is_filled(samples, *range(1, 8))):
        return ""  # dimensions and channels are checked by the node
    return "a LATENT with samples"


def _conditioning(wanted: io.Input, value: Any) -> str:
    pairs = value if isinstance(value, list) else ()
    fits = bool(pairs) and all(len(pair) == 2 and isinstance(pair[1], Mapping) for pair in pairs)
    return "" if fits else "a CONDITIONING with at least one entry"


def _box(wanted: io.Input, value: Any) -> str:
    sides = [value.get(name) for name in ("x", "y", "width", "height")] if isinstance(value, Mapping) else [None]
    return "" if all(isinstance(side, Integral) for side in sides) else "a box with x, y, width and height"


def _is_filled(value: Any, *sides: int) -> bool:
    """Whether a value is a non-empty floating-point tensor whose number of dimensions is in `sides`."""
    return isinstance(value, Tensor) and value.ndim in sides and value.numel() > 0 and value.is_floating_point()


def _in_short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"of shape {tuple(value.shape)} and {str(value.dtype).removeprefix('torch.')}"
    return repr(value)[:60]


_CHECKS: dict[str, Callable[[io.Input, Any], str]] = {
    "INT": _whole_number,
    "FLOAT": _number,
    "COMBO": _choice,
    "STRING": _text,
    "IMAGE": _images,
    "MASK": _masks,
    "LATENT": _latent,
    "CONDITIONING": _conditioning,
    "BOUNDING_BOX": _box,
}
"""Checks by ComfyUI input type. Each returns what is needed if the value does not fit, else an empty string."""
