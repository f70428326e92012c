"""One evaluation of a ComfyUI run as a denoiser of `svd_core.motion`.

Changes that a method makes to the conditioning are applied to the run's own conditioning for one evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import comfy.conds
import torch

from ....svd_core.conditioning import Conditioning

if TYPE_CHECKING:
    from torch import Tensor

Change = Callable[[Conditioning], Conditioning]


@dataclass(frozen=True, slots=True, eq=False)
class HostDenoiser:
    """The wrapped evaluation of a ComfyUI run as `model(x, sigma) -> denoised`, with optional conditioning changes.

    clip_frames is the length of one clip of the run, num_frames how many of its frames the network sees at a time.
    """

    executor: Callable[..., Tensor]
    options: dict[str, Any]
    seed: int | None
    clip_frames: int
    num_frames: int
    changes: tuple[Change, ...] = field(default=())

    def with_conditioning(self, change: Change) -> HostDenoiser:
        return replace(self, changes=(*self.changes, change))

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        guider = self.executor.class_obj
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        before = guider.conds
        guider.conds = self._changed(before)
        try:
            return self.executor(x, sigma, self.options, self.seed)
        finally:
            guider.conds = before

    @property
    def conditioning(self) -> Conditioning:
        """The first positive entry, one row per clip, without the methods' changes."""
        return read_conditioning(self.executor.class_obj.conds["positive"][0], self.clip_frames)

    def _changed(self, conds: dict[str, list]) -> dict[str, list]:
        if not self.changes and self.num_frames == self.clip_frames:
            return conds
        return {
            role: [self._entry(role, entry) for entry in given] if given else given for role, given in conds.items()
        }

    def _entry(self, role: str, entry: dict[str, Any]) -> dict[str, Any]:
        """A copy of one entry of the run's conditioning, changed from its own values."""
        own = read_conditioning(entry, self.clip_frames)
        changed = reduce(lambda given, change: change(given), self.changes, own).repeat_frames(self.num_frames)
        return write_conditioning(entry, changed, self.num_frames, pictured=_is_pictured(role, own))


def _is_pictured(role: str, own: Conditioning) -> bool:
    """Whether an entry shows the model a picture. Dual CFG has a middle one, which may or may not."""
    return role == "positive" or (role != "negative" and bool(own.first.any()))


def read_conditioning(entry: dict[str, Any], clip_frames: int) -> Conditioning:
    """An entry of a run's conditioning as prepared by ComfyUI, one row per clip; `first` has one row per frame if its
    frames differ, as a camera's views do."""
    made = entry["model_conds"]
    context, first, vector = (made[name].cond for name in ("c_crossattn", "c_concat", "y"))
    first = _stills(first, clip_frames)
    rows = [each if len(each) in (1, len(first)) else each[::clip_frames] for each in (context, vector)]
    context, vector = (each.expand(len(first), *each.shape[1:]) for each in rows)
    return Conditioning(context, first, vector)


def _stills(shown: Tensor, clip_frames: int) -> Tensor:
    """What the frames of a run are shown: (B, 4, h, w), or (B, T, 4, h, w) if the frames of a clip differ."""
    stills = shown[::clip_frames]
    if len(shown) % clip_frames or torch.equal(shown, stills.repeat_interleave(clip_frames, dim=0)):
        return stills
    return shown.unflatten(0, (-1, clip_frames))


def write_conditioning(
    entry: dict[str, Any], changed: Conditioning, num_frames: int, *, pictured: bool
) -> dict[str, Any]:
    """A copy of the entry with the rows (N, ...) of `changed`: only the vector if it is not `pictured`."""
    made = {"y": comfy.conds.CONDRegular(changed.vector), "num_video_frames": comfy.conds.CONDConstant(num_frames)}
    if pictured:
        made["c_crossattn"] = comfy.conds.CONDCrossAttn(changed.context)
        made["c_concat"] = comfy.conds.CONDNoiseShape(changed.first)
    return {**entry, "model_conds": {**entry["model_conds"], **made}}
