"""The node for approximate speed-ups: clips differ slightly. Off unless this node is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..svd_core.sampling import GuidanceInterval
from ..svd_core.sampling.schedule import SIGMA_MAX
from .bridge.guider import require_video_model
from .bridge.shortcuts import require_reusable, with_interval, with_reuse
from .checks import verdict
from .inputs import checked
from .widgets import patched_model_output

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

MAX_SIGMA = 10000.0


class StableVideoShortcuts(io.ComfyNode):
    """Trades exactness for time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoShortcuts",
            display_name="Stable Video Shortcuts (approximate)",
            category="video/stable video",
            description=(
                "Makes a clip in less time that differs a little from the exact one: keeps deep features between "
                "steps, and guides in part of the noise levels only. The log says what was left out."
            ),
            search_aliases=[
                "deepcache",
                "first block cache",
                "teacache",
                "feature cache",
                "guidance interval",
                "speed",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A Stable Video Diffusion model; for reuse, from Load Stable Video."),
                io.Float.Input(
                    "reuse",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Keep the deep features of an earlier step while the first block's result changes by less "
                        "than this share. Higher is faster and further from the exact clip; 0 is off."
                    ),
                ),
                _level_input("guidance_low", 0.0, "Guide only above this noise level. 0 guides to the end."),
                _level_input("guidance_high", SIGMA_MAX, "Guide only up to this noise level. 700 is all of them."),
            ],
            outputs=[patched_model_output()],
        )

    @classmethod
    def validate_inputs(cls, guidance_low: float | None = 0.0, guidance_high: float | None = SIGMA_MAX) -> bool | str:
        if not all(isinstance(each, (int, float)) for each in (guidance_low, guidance_high)):
            return True  # None is a linked input; ComfyUI itself rejects text, but still calls this
        return verdict(lambda: GuidanceInterval(guidance_low, guidance_high))

    @classmethod
    @checked
    def execute(cls, model: ModelPatcher, reuse: float, guidance_low: float, guidance_high: float) -> io.NodeOutput:
        require_video_model(model)
        interval = GuidanceInterval(guidance_low, guidance_high)
        patched = model.clone()
        if reuse > 0:
            require_reusable(model)
            with_reuse(patched, reuse)
        if guidance_low > 0 or guidance_high < SIGMA_MAX:
            with_interval(patched, interval)
        return io.NodeOutput(patched)


def _level_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=MAX_SIGMA, step=0.1, round=0.001, advanced=True, tooltip=tooltip
    )
