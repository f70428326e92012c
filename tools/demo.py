"""Render a clip in the real ComfyUI (`make demo`), or serve its page (`make serve`). Only downloads ComfyUI.

python -m tools.demo            run a shipped workflow on the shipped picture, and print the path of the clip
python -m tools.demo --serve    ComfyUI's page with the pack in it, until Ctrl-C
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from svd_core.measure import flow_magnitude
from tools.comfyui_server import PromptError, Run, ServerError, prepare, running
from tools.fetch_comfyui import FetchError, newest_comfyui
from tools.samples import CLIP_NAME, contact_sheet, copy_pictures, demo_scene, read_frames, write_clip
from training.measure import angle_between, motion_direction

ROOT = Path(__file__).resolve().parents[1]

OUTPUT = ROOT / "output"
BASE = OUTPUT / "comfyui"
"""ComfyUI's base directory for the demo: models, input and output."""

WORKFLOW = ROOT / "workflows" / "api" / "demo_model.json"

PORT = 8188

WHAT_IT_IS = (
    "The clip is by the demo model that comes with the pack: tiny, trained on drawn scenes, 14 frames of 128x64.\n"
    "It is no Stable Video Diffusion; put a released checkpoint into models/checkpoints for that."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="open ComfyUI's page instead")
    parser.add_argument("--port", type=int, default=PORT, help="of the page (default: %(default)s)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # on SIGTERM, stop ComfyUI too
    try:
        comfyui = newest_comfyui()
        furnish()
        if arguments.serve:
            serve(comfyui, arguments.port)
        else:
            demo(comfyui)
    except (FetchError, ServerError, PromptError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ended")
    return 0


def furnish() -> None:
    """Create ComfyUI's folders with the pack, the pictures and the clip."""
    prepare(BASE)
    copy_pictures(BASE / "input")
    write_clip(BASE / "input" / CLIP_NAME)


def demo(comfyui: Path) -> None:
    """Run the shipped workflow, and print the paths of the clip and its contact sheet, its motion and the seconds."""
    prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    started = time.monotonic()
    print(f"ComfyUI {comfyui} is starting ...", flush=True)
    with running(BASE, comfyui) as comfy:
        up = time.monotonic()
        run = comfy.run(prompt)
        video = OUTPUT / "demo.mp4"
        video.write_bytes(comfy.fetch(saved_video(prompt, run)))
    frames = read_frames(video)
    sheet = OUTPUT / "demo.png"
    contact_sheet(frames).save(sheet)
    height, width = frames[0].shape[:2]
    print(WHAT_IT_IS)
    print(f"video          {video}  ({len(frames)} frames of {width}x{height})")
    print(f"contact sheet  {sheet}")
    print(f"motion         {motion(frames)}")
    print(f"seconds        {run.seconds:.1f} for the workflow, after {up - started:.1f} for ComfyUI to start")


def motion(frames: Sequence[np.ndarray]) -> str:
    """A sentence that compares the motion measured in the saved frames with the direction of the still's rocket."""
    clip = np.stack(frames).astype(np.float32) / 255
    found = motion_direction(clip)
    if found is None:
        return "nothing moves"
    away = angle_between(found, demo_scene().direction)
    return f"{flow_magnitude(clip).mean():.2f} pixels a frame, {away:.0f} degrees from where the rocket points"


def saved_video(prompt: Mapping[str, Mapping[str, object]], run: Run) -> dict[str, str]:
    """The file written by the workflow's SaveVideo."""
    node = next(number for number, node in prompt.items() if node["class_type"] == "SaveVideo")
    return run.files(node)[0]


def serve(comfyui: Path, port: int) -> None:
    """Run ComfyUI in the foreground until Ctrl-C, on an accelerator if there is one."""
    with running(BASE, comfyui, cpu=not has_accelerator(), port=port) as comfy:
        print(WHAT_IT_IS)
        print(f"page      {comfy.url}  (Ctrl-C ends it)")
        print("open      Templates > comfyui-stable-video > demo_model, or any other")
        print(f"models    {BASE / 'models' / 'checkpoints'}")
        print(f"log       {comfy.log}", flush=True)
        comfy.process.wait()


def has_accelerator() -> bool:
    """Whether ComfyUI has a device other than the CPU."""
    return torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()


if __name__ == "__main__":
    sys.exit(main())
