"""Screenshots of the pack in ComfyUI's page (`make screenshots`), for docs/in-the-page.md. Takes a minute or two.

The demo model renders the video. Chinese text needs a font that supports it (Debian: fonts-noto-cjk).
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tools.comfyui_page import ComfyPage, browsing, opened
from tools.comfyui_server import prepare, running
from tools.fetch_browser import find_browser
from tools.fetch_comfyui import newest_comfyui
from tools.fetch_front_end import front_end
from tools.samples import copy_pictures, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]

FOLDER = ROOT / "docs" / "page"
QUALITY = 80
DEMO = "demo_model"
BLUEPRINTS_CHECKPOINT = "svd.safetensors"
"""Checkpoint name in the blueprint, which is not run here, so random weights suffice."""

SAMPLER = "StableVideoSampler"

Shot = tuple[str, bytes]
"""(file name without suffix, PNG data)."""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    comfyui = newest_comfyui()
    with tempfile.TemporaryDirectory() as scratch, browsing(find_browser()) as chromium:
        base = prepare(Path(scratch))
        copy_pictures(base / "input")
        write_checkpoint(base / "models" / "checkpoints" / BLUEPRINTS_CHECKPOINT)
        with running(base, comfyui, [f"--front-end-root={front_end(comfyui)}"]) as comfy:
            for modern in (False, True):
                with opened(chromium, comfy, **{"Comfy.VueNodes.Enabled": modern}) as page:
                    save(nodes_2(page) if modern else english(page))
            with opened(chromium, comfy, **{"Comfy.Locale": "zh", "Comfy.VueNodes.Enabled": False}) as page:
                save(chinese(page))


def english(page: ComfyPage) -> Iterator[Shot]:
    for card in page.browse_templates()[:8]:
        page.shown(card.locator("img").first)
    yield "templates", page.page.screenshot()
    page.page.keyboard.press("Escape")
    page.open_template(DEMO)
    yield "opened", page.page.screenshot()
    page.run()
    page.played_video()
    yield "video", page.page.screenshot()
    for picture in page.help(SAMPLER).locator("img").all():
        page.shown(picture)
    yield "help", page.page.screenshot()
    page.place(page.blueprint("Image to Video (Stable Video Diffusion)"))
    yield "blueprint", page.page.screenshot()


def nodes_2(page: ComfyPage) -> Iterator[Shot]:
    page.open_template(DEMO)
    page.run()
    page.played_video()
    yield "nodes-2", page.page.screenshot()


def chinese(page: ComfyPage) -> Iterator[Shot]:
    page.open_template(DEMO)
    yield "chinese", page.page.screenshot()
    for picture in page.help(SAMPLER).locator("img").all():
        page.shown(picture)
    yield "chinese-help", page.page.screenshot()


def save(shots: Iterator[Shot]) -> None:
    for name, data in shots:
        path = FOLDER / f"{name}.webp"
        Image.open(io.BytesIO(data)).convert("RGB").save(path, quality=QUALITY, method=6)
        print(path, f"{path.stat().st_size / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
