"""Guidance, and other settings that change along the clip, from the values of widgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..svd_core.errors import InputError
from ..svd_core.motion import curve_values
from ..svd_core.sampling import CURVES, curve_guidance
from .checks import in_widget, number_from, words_of

if TYPE_CHECKING:
    from ..svd_core.config import Variant
    from .bridge.guider import Weights

MAX_GUIDANCE = 100.0

Points = list[tuple[float, float]]
"""Points (position, value) of a curve, position 0 the first frame and 1 the last."""


def guidance(variant: Variant, minimum: float, maximum: float, curve: str, points: str) -> Weights:
    """Function from a clip's length to its weights; 0 takes the checkpoint's own. Raises InputError."""
    drawn = GUIDANCE.points(points)
    if drawn:
        return lambda num_frames: curve_guidance(num_frames, drawn)
    ends = (minimum or variant.min_guidance, maximum or variant.max_guidance)
    return lambda num_frames: CURVES[curve](num_frames, *ends)


def _any_value(value: float) -> None:
    """The values of a curve are checked by its method, where they are used."""


def _require_weight(value: float) -> None:
    if not 0 <= value <= MAX_GUIDANCE:
        raise InputError(f"weight {value:g} is outside 0 to {MAX_GUIDANCE:g}: 1 to 3 is usual")


@dataclass(frozen=True, slots=True)
class CurvedSetting:
    """A setting that can change along the clip: its name, points for an example, what its values are called, and a
    function that raises InputError for a value out of range."""

    name: str
    example: str
    value: str = "value"
    require: Callable[[float], None] = _any_value

    def points(self, text: str | None) -> Points:
        """Points from the text of the setting's widget. Raises InputError if they do not form a curve."""
        return in_widget(f"{self.name}_points", lambda: self._points(text))

    def curve(self, text: str, values: Any) -> float | list | None:
        """A curve from its two inputs, None if both are empty; values take precedence. Raises InputError."""
        if values is not None:
            listed = values.tolist() if isinstance(values, torch.Tensor) else values
            curve_values(listed, len(listed) if isinstance(listed, list | tuple) else 1)
            return listed
        return self.points(text) or None

    def _points(self, text: str | None) -> Points:
        found = [self._point(word) for word in words_of(text)]
        if found:
            curve_guidance(2, found)
        for _, value in found:
            self.require(value)
        return found

    def _point(self, word: str) -> tuple[float, float]:
        said = self.name.replace("_", " ")
        position, colon, value = word.partition(":")
        if not colon:
            raise InputError(f"{said} point {word!r} is not position:{self.value}: write a curve as 0:1, 0.5:3, 1:2")
        return number_from(position, f"{said} points"), number_from(value, f"{said} points")


GUIDANCE = CurvedSetting("guidance", "0:1, 0.5:3, 1:2", "weight", _require_weight)

CURVED = (
    GUIDANCE,
    CurvedSetting("motion_bucket", "0:20, 0.5:80, 1:200"),
    CurvedSetting("augmentation", "0:0.02, 1:0.1"),
)
"""The settings of Stable Video Curves."""
