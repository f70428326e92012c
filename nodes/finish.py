"""Post-processing of decoded clips, requested through the LATENT by the nodes before the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..svd_core.errors import InputError
from ..svd_core.motion import composite, hold_colours, seam_score

if TYPE_CHECKING:
    from torch import Tensor

KEY = "stable_video"
LOOP, STILL, HOLD = "loop", "still", "hold"


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """The motion brush's still picture (H, W, 3) in [0, 1] and the clip's opacity over it, (T or 1, H, W)."""

    picture: Tensor
    opacity: Tensor

    def over(self, images: Tensor) -> Tensor:
        """The frames (T, H, W, 3) composited over the picture. Raises InputError if size or count do not match."""
        opacity = self.opacity[: len(images)] if len(self.opacity) > 1 else self.opacity
        if images.shape[1:3] != self.picture.shape[:2] or len(opacity) not in (1, len(images)):
            if len(opacity) not in (1, len(images)):
                raise InputError(
                    f"the motion brush has {len(self.opacity)} masks for {len(images)} frames: give one mask, or "
                    "one for each frame of the whole clip"
                )
            given = f"{len(images)} frames of {images.shape[2]}x{images.shape[1]}"
            raise InputError(
                f"{given} do not fit the motion brush's picture of {self.picture.shape[1]}x{self.picture.shape[0]}: "
                "decode the whole clip at its own size"
            )
        done = composite(images.cpu().numpy(), self.picture.numpy(), opacity.numpy())
        return torch.from_numpy(done).to(images)


def with_request(latent: dict[str, Any], what: str, how: object) -> dict[str, Any]:
    """A copy of the LATENT with one more post-processing request."""
    return {**latent, KEY: {**latent.get(KEY, {}), what: how}}


def without_loop(latent: dict[str, Any]) -> dict[str, Any]:
    """A copy of the LATENT for a clip that does not end with its first frame; other requests are kept."""
    asked = {what: how for what, how in latent.get(KEY, {}).items() if what != LOOP}
    rest = {name: value for name, value in latent.items() if name != KEY}
    return {**rest, KEY: asked} if asked else rest


def is_loop(latent: dict[str, Any]) -> bool:
    return bool(latent.get(KEY, {}).get(LOOP))


def finished(images: Tensor, latent: dict[str, Any]) -> tuple[Tensor, list[str]]:
    """The decoded frames with all requested post-processing applied, and sentences about them."""
    hold, still = (latent.get(KEY, {}).get(what) for what in (HOLD, STILL))
    if hold:
        images = torch.from_numpy(hold_colours(images.cpu().numpy(), hold)).to(images)
    if still is not None:
        images = still.over(images)
    if not is_loop(latent):
        return images, []
    return images, [f"Seam score {seam_score(images.cpu().numpy()):.2f} (1 is a step like any other)."]
