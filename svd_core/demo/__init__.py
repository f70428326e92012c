"""The demo model, a file in this package: small, trained by `training` on drawn scenes, 14 frames of 128x64.

It lets users try everything before downloading a released model. It is not Stable Video Diffusion, and says so wherever
it is used.
"""

from __future__ import annotations

from pathlib import Path

DEMO_MODEL = Path(__file__).with_name("stable_video_demo.safetensors")
"""Path of the checkpoint, which uses the official tensor names."""

DEMO_NAME = "demo model (comes with the pack)"
"""Its name in the loader node."""

DEMO_NOTE = (
    "this is the small demo model that comes with the pack, trained on drawn scenes at 128x64: "
    "for real pictures give a released Stable Video Diffusion checkpoint"
)
