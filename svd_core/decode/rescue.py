"""Finds frames that overflow half precision and decodes them again in float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import InputError, PrecisionWarning

HALF = (torch.float16, torch.bfloat16)


def rescued(pixels: Tensor, latents: Tensor, precise: Callable[[Tensor], Tensor], *, together: bool) -> Tensor:
    """The decoded pixels (T, 3, H, W) of one clip, with half-precision frames that are not finite replaced by `precise`
    ones.

    `precise` decodes latents (n, 4, h, w) in float32. together: frames see each other, so one that overflows spoils the
    statistics of all and the whole clip is decoded again; otherwise only the affected frames are. Emits a
    PrecisionWarning. Raises InputError for frames that float32 cannot hold either.
    """
    bad = damaged(pixels)
    if not bad or pixels.dtype not in HALF:
        return pixels
    again = list(range(len(pixels))) if together else bad
    warnings.warn(_notice(bad, again, pixels.dtype), PrecisionWarning, stacklevel=2)
    better = precise(latents[again].float())
    lost = [again[index] for index in damaged(better)]
    if lost:
        raise InputError(
            f"after float32 too, NaN or infinity in {_span(lost)}: the latents or the checkpoint are damaged, "
            "sample again or load another file"
        )
    pixels[again] = better.to(pixels)
    return pixels


def damaged(frames: Tensor) -> list[int]:
    """Indices of frames (T, ...) that hold NaN or infinity; none on the meta device, which holds no values."""
    if frames.is_meta:
        return []
    return [index for index, frame in enumerate(frames) if not torch.isfinite(frame).all()]


def _notice(bad: Sequence[int], again: Sequence[int], dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return (
        f"{_span(bad)} overflowed {name}, so {_span(again)} had to be decoded again in float32, which takes "
        "longer: run the VAE in bfloat16 or float32 to avoid it"
    )


def _span(frames: Sequence[int]) -> str:
    """Frame numbers as text: frame 3, frames 0 to 24, or frames 1, 4 and 7."""
    if len(frames) == 1:
        return f"frame {frames[0]}"
    if list(frames) == list(range(frames[0], frames[-1] + 1)):
        return f"frames {frames[0]} to {frames[-1]}"
    return f"frames {', '.join(map(str, frames[:-1]))} and {frames[-1]}"
