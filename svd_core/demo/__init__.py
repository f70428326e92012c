"""The demo model, a file inside this package: small, trained by `training` on drawn scenes, 14 frames of 128x64.

It shows that everything works before a released model has been downloaded. It is not Stable Video Diffusion, and says
so wherever it is used.
"""

from __future__ import annotations

from pathlib import Path

DEMO_MODEL = Path(__file__).with_name("stable_video_demo.safetensors")
"""A checkpoint like any other, in the official grammar of names."""

DEMO_NAME = "demo model (comes with the pack)"
"""What the loader node calls it."""

DEMO_NOTE = (
    "this is the small demo model that comes with the pack, trained on drawn scenes at 128x64: "
    "for real pictures give a released Stable Video Diffusion checkpoint"
)
