"""The list of all nodes, in the order data flows."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .checkpoint import StableVideoCheckpointLoader
from .clips import StableVideoMotionMeter, StableVideoSeedScout, StableVideoSweep
from .conditioning import StableVideoConditioning
from .decoding import StableVideoDecode
from .image import StableVideoImageFit, StableVideoImageUnfit
from .motion import (
    StableVideoCurves,
    StableVideoInBetween,
    StableVideoLongTake,
    StableVideoLoop,
    StableVideoMotionBrush,
    StableVideoUnstick,
)
from .provenance import StableVideoContentFilter, StableVideoWatermark, StableVideoWatermarkDetect
from .replacements import register_replacements
from .sampling import StableVideoGuider, StableVideoSampler, StableVideoSigmas
from .shortcuts import StableVideoShortcuts
from .views import StableVideoCamera, StableVideoDrag


class StableVideoExtension(ComfyExtension):
    """The extension through which ComfyUI obtains the nodes."""

    async def on_load(self) -> None:
        await register_replacements()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            StableVideoCheckpointLoader,
            StableVideoImageFit,
            StableVideoConditioning,
            StableVideoSampler,
            StableVideoSigmas,
            StableVideoGuider,
            StableVideoDecode,
            StableVideoImageUnfit,
            StableVideoSeedScout,
            StableVideoSweep,
            StableVideoMotionMeter,
            StableVideoWatermark,
            StableVideoWatermarkDetect,
            StableVideoContentFilter,
            StableVideoMotionBrush,
            StableVideoInBetween,
            StableVideoLoop,
            StableVideoLongTake,
            StableVideoUnstick,
            StableVideoCurves,
            StableVideoShortcuts,
            StableVideoCamera,
            StableVideoDrag,
        ]


async def comfy_entrypoint() -> StableVideoExtension:
    return StableVideoExtension()
