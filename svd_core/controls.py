"""What can be controlled beside the settings: what moves, where and for how long.

    clip = svd.render(picture, Settings(seed=3), Controls(brush=mask, unstick=0.5))

Most controls can be combined; an InputError explains those that cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError
from .motion import MAX_FEATHER, CameraMove, ObjectMove, PerFrame
from .settings import is_number, is_whole


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """What to control; the defaults control nothing.

    brush: mask (H, W) or (T, H, W) in [0, 1] at the clip's size, 0 is still. feather: pixels over which the clip fades
    in next to still regions. end: the picture to end on, of the clip's size. loop: end on the first picture and drop
    its repetition, which leaves one frame less. sequential: alternate between both ends (ViBiDSampler) instead of
    blending (TRF). window: frames per window for clips longer than the model's own, made one window after the other; 0
    is the model's number. fused: instead blend windows that share `overlap` frames (0: half a window) at every step.
    colour_hold: 0 to 1, how firmly windows keep the first frame's colours. continued: a clip (T, H, W, 3) in [0, 1] to
    continue, whose last frame (or last `overlap` frames if fused) begins the new one. unstick: strength 0 to 1.
    camera: how the picture is panned, zoomed and turned. depth: map (H, W) in [0, 1] at the clip's size, 1 is near, so
    that near things pass faster. drag: mask (H, W) in [0, 1] of a thing that travels by drag_move. guidance,
    motion_bucket, augmentation: curves.
    """

    brush: Any | None = None
    feather: int = 4
    end: Any | None = None
    loop: bool = False
    sequential: bool = False
    window: int | None = None
    fused: bool = False
    overlap: int = 0
    colour_hold: float = 1.0
    continued: np.ndarray | None = None
    unstick: float = 0.0
    camera: CameraMove | None = None
    depth: Any | None = None
    drag: Any | None = None
    drag_move: ObjectMove | None = None
    guidance: PerFrame | None = None
    motion_bucket: PerFrame | None = None
    augmentation: PerFrame | None = None

    def __post_init__(self) -> None:
        if self.loop and self.end is not None:
            raise InputError("a loop ends on its first picture and an end picture was given: choose one of them")
        if self.bounded and self.window is not None:
            raise InputError("an end is not known to windows that look forward only: leave out window, or loop and end")
        if self.continued is not None and self.window is None:
            raise InputError("a clip is continued in windows: give a window, 0 for the model's own length")
        if (self.fused or self.overlap) and self.window is None:
            raise InputError("fused and overlap are about windows: give a window, 0 for the model's own length")
        self._check_numbers()
        if self.sequential and not self.bounded:
            raise InputError("sequential is a way to reach an end: give an end picture or loop, or leave it out")
        if not 0 <= self.colour_hold <= 1:
            raise InputError(f"colour hold {self.colour_hold} is outside 0 to 1: 1 is usual")
        self._check_views()

    def _check_views(self) -> None:
        if self.depth is not None and self.camera is None:
            raise InputError("a depth map is about how the camera passes things, and there is none: give a camera")
        if (self.drag is None) != (self.drag_move is None):
            raise InputError("a drag takes the mask of a thing and where it goes: give both drag and drag_move")
        if self.depth is not None and self.drag is not None:
            raise InputError("a depth map says where things are, and a drag moves one of them: leave out either")
        for name, move, kind in (("camera", self.camera, CameraMove), ("drag_move", self.drag_move, ObjectMove)):
            if not isinstance(move, kind | None):
                raise InputError(f"{name} {move!r:.40} is no {kind.__name__}: give one")
        moved = "a camera leaves" if self.camera is not None else "a drag changes" if self.drag is not None else ""
        others = {"a brush": self.brush, "an end": self.bounded or None, "windows": self.window}
        held = [name for name, value in others.items() if value is not None]
        if moved and held:
            raise InputError(f"{moved} its picture, and {held[0]} would hold the clip to it: choose one of them")

    def _check_numbers(self) -> None:
        for name in ("feather", "overlap", "window"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not is_whole(value) or value < 0):
                raise InputError(f"{name} {value!r} is not a whole number of 0 or more: give one")
        if self.feather > MAX_FEATHER:
            raise InputError(f"feather {self.feather} is above {MAX_FEATHER} pixels: 4 is usual")
        for name in ("colour_hold", "unstick"):
            if not is_number(getattr(self, name)):
                raise InputError(f"{name} {getattr(self, name)!r} is not a number: give one from 0 to 1")

    @property
    def bounded(self) -> bool:
        return self.loop or self.end is not None


NO_CONTROLS = Controls()
