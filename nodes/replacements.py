"""Replacements for nodes of abandoned packs, where one of our nodes does everything that theirs did.

ComfyUI offers them in its front end when such a node is missing, and applies them to prompts from scripts; an installed
pack keeps its own nodes. docs/migration.md covers nodes that take several of ours to replace.
"""

from __future__ import annotations

from comfy_api.latest import ComfyAPI, io
from server import PromptServer


async def register_replacements() -> None:
    """Register the replacements with ComfyUI; does nothing if nodes run without its server."""
    if getattr(PromptServer, "instance", None) is None:  # set when ComfyUI starts
        return
    for replacement in replacements():
        await ComfyAPI().node_replacement.register(replacement)


def replacements() -> tuple[io.NodeReplace, ...]:
    return _resizer(), _loader()


def _resizer() -> io.NodeReplace:
    """ShmuelRonen's ComfyUI-SVDResizer: it distorts unless `keep_proportion` is on, and then breaks multiples of 64."""
    return io.NodeReplace(
        new_node_id="StableVideoImageFit",
        old_node_id="SVDRsizer",
        old_widget_ids=["width", "height", "interpolation", "keep_proportion"],
        input_mapping=[
            {"new_id": "image", "old_id": "image"},
            {"new_id": "width", "old_id": "width"},
            {"new_id": "height", "old_id": "height"},
            {"new_id": "mode", "set_value": "stretch"},
            {"new_id": "focus_x", "set_value": 0.5},
            {"new_id": "focus_y", "set_value": 0.5},
            {"new_id": "background", "set_value": "#ffffff"},
        ],
        output_mapping=[{"new_idx": place, "old_idx": place} for place in range(3)],
    )


def _loader() -> io.NodeReplace:
    """thecooltechguy's ComfyUI-Stable-Video-Diffusion; here later nodes choose frames and steps."""
    return io.NodeReplace(
        new_node_id="StableVideoCheckpointLoader",
        old_node_id="SVDModelLoader",
        old_widget_ids=["checkpoint", "num_frames", "num_steps", "device"],
        input_mapping=[
            {"new_id": "checkpoint", "old_id": "checkpoint"},
            {"new_id": "variant", "set_value": "from file"},
        ],
        output_mapping=[{"new_idx": 0, "old_idx": 0}],
    )
