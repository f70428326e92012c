"""ControlNets of a run whose network sees a clip in parts or backwards: each pass gets the hints of its own frames.

ComfyUI gives every pass the first hints, as many as the pass has frames, whichever frames these are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from comfy.controlnet import ControlBase


@contextmanager
def hints_of(guider: Any, frames: Sequence[int]) -> Iterator[None]:
    """Context in which the ControlNets of a guider's run see the hints of these frames of the clip, in this order.

    One hint is for all frames. Where hints are fewer than frames, they come round again, as ComfyUI repeats them.
    """
    controls = [each for each in _controls(guider.conds) if _differs_by_frame(each.cond_hint_original)]
    before = [(each, each.cond_hint_original, each.extra_concat_orig) for each in controls]
    try:
        for control, hints, more in before:
            _give(control, _of_frames(hints, frames), [_of_frames(each, frames) for each in more])
        yield
    finally:
        for given in before:
            _give(*given)


def _controls(conds: dict[str, list]) -> Iterable[ControlBase]:
    """Every ControlNet of a run once, with those that it is chained to and its copies for other devices."""
    waiting = [entry.get("control") for given in conds.values() for entry in given or ()]
    found: dict[int, ControlBase] = {}
    while waiting:
        control = waiting.pop()
        if control is not None and id(control) not in found:
            found[id(control)] = control
            waiting += [control.previous_controlnet, *getattr(control, "multigpu_clones", {}).values()]
    return found.values()


def _give(control: ControlBase, hints: Tensor, more: list[Tensor]) -> None:
    control.cond_hint_original, control.extra_concat_orig = hints, more
    control.cond_hint = None  # what was made of the hints before; ComfyUI makes it anew


def _of_frames(hints: Any, frames: Sequence[int]) -> Any:
    return hints[[frame % len(hints) for frame in frames]] if _differs_by_frame(hints) else hints


def _differs_by_frame(hints: Any) -> bool:
    return isinstance(hints, Tensor) and len(hints) > 1
