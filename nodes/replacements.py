"""What a workflow made for an abandoned pack turns into, where one node of ours does all that theirs did.

ComfyUI offers these on its page when such a node is missing, and applies them to prompts from scripts; a pack that is
installed keeps its own nodes. docs/migration.md says what to do where several nodes take the place of one.
"""

from __future__ import annotations

from comfy_api.latest import ComfyAPI, io
from server import PromptServer


async def register_replacements() -> None:
    """Tell ComfyUI of them; nothing where nodes run without its server."""
    if getattr(PromptServer, "instance", None) is None:  # set by ComfyUI's own start
        return
    for replacement in replacements():
        await ComfyAPI().node_replacement.register(replacement)


def replacements() -> tuple[io.NodeReplace, ...]:
    return _resizer(), _loader()


def _resizer() -> io.NodeReplace:
    """ShmuelRonen's ComfyUI-SVDResizer. It distorts unless `keep_proportion` is on, and then breaks multiples of 64."""
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
    """thecooltechguy's ComfyUI-Stable-Video-Diffusion. Frames and steps are chosen in later nodes here."""
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
