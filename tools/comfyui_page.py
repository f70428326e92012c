"""Drive ComfyUI's page in a headless Chromium like a user: templates, Run, help, languages, blueprints.

    with browsing(find_browser()) as chromium, opened(chromium, comfy) as page:
        page.open_template("demo_model")
        page.run()
        print(page.played_video())

Nothing sleeps: each step waits for its own condition, with a timeout that suits slow machines.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Locator, Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tools.comfyui_server import PACK_FOLDER, ComfyUI
from tools.fetch_browser import Browser

FLAGS = (
    "--no-sandbox",  # required for root; only this machine's own page is opened
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Locale": "en",
    "Comfy.RightSidePanel.IsOpen": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # draw text at any size
    "Comfy.Workflow.Persist": False,  # do not restore tabs of an earlier page
}
VIEW = {"width": 1600, "height": 900}

MIDDLE = {"x": 800, "y": 300}

PATIENCE = 120_000
"""Timeout in milliseconds for everything except a render, for slow machines."""
RENDER = 400_000
SEARCH, TURNS = 10_000, 6

READY = """() => {
    const known = window.LiteGraph?.registered_node_types ?? {}
    return "StableVideoSampler" in known && window.app?.graph && document.querySelector('[data-testid="queue-button"]')
}"""

NODES = """() => {
    const shown = port => port.label ?? port.localized_name ?? port.name
    return window.app.graph._nodes.map(node => ({
        kind: node.type,
        title: node.title,
        faulty: !!node.has_errors || !(node.type in window.LiteGraph.registered_node_types),
        widgets: Object.fromEntries((node.widgets ?? []).map(widget => [widget.name, widget.label ?? widget.name])),
        inputs: Object.fromEntries((node.inputs ?? []).map(port => [port.name, shown(port)])),
        outputs: (node.outputs ?? []).map(shown),
    }))
}"""

LOAD = """async url => {
    const template = await (await fetch(url)).json()
    await window.app.loadGraphData(template, true, true, null, {openSource: "template"})
}"""

CHOOSE = """kind => {
    const {graph, canvas} = window.app
    const node = graph._nodes.find(node => node.type === kind)
    canvas.centerOnNode(node)
    canvas.selectNode(node)
}"""

PIXELS = """picture => {
    const canvas = document.createElement("canvas")
    Object.assign(canvas, {width: picture.naturalWidth, height: picture.naturalHeight})
    canvas.getContext("2d").drawImage(picture, 0, 0)
    return canvas.toDataURL("image/png").split(",")[1]
}"""

LOADED_VIDEO = "() => [...document.querySelectorAll('video')].some(video => video.readyState >= 2 && video.videoWidth)"

PLAY = """async () => {
    const video = [...document.querySelectorAll('video')].find(video => video.videoWidth)
    video.muted = true
    video.loop = false
    video.currentTime = 0
    const ended = new Promise((resolve, reject) => {
        video.onended = resolve
        video.onerror = () => reject(video.error)
    })
    await video.play()
    await ended
    const {videoWidth: width, videoHeight: height, duration} = video
    video.loop = true
    return {width, height, seconds: duration, frames: video.getVideoPlaybackQuality().totalVideoFrames}
}"""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as the page shows it. `faulty` means drawn with a red outline, or of a kind unknown to the page."""

    kind: str
    title: str
    faulty: bool
    widgets: dict[str, str]
    """Name -> label, like `inputs`."""
    inputs: dict[str, str]
    outputs: list[str]


@dataclass(frozen=True, slots=True)
class Played:
    """A video that the page has played from first to last frame."""

    width: int
    height: int
    seconds: float
    frames: int


@dataclass(frozen=True, slots=True)
class ComfyPage:
    """ComfyUI's page, ready for use."""

    page: Page
    errors: list[str] = field(default_factory=list)
    """Uncaught errors of the page's own code."""

    def browse_templates(self) -> list[Locator]:
        """Open the template browser at this pack. Returns its cards."""
        self.page.locator(".templates-tab-button").first.click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_text(PACK_FOLDER, exact=True).first.click()
        cards = dialog.locator('[data-testid^="template-workflow-"]')
        cards.first.wait_for()
        return cards.all()

    def open_template(self, name: str) -> list[Node]:
        """Click a card of the template browser and wait for its nodes. Returns them."""
        self.browse_templates()
        card = self.page.locator(f'[data-testid="template-workflow-{name}"]')
        card.click()
        card.wait_for(state="detached")
        self.page.wait_for_function("() => window.app.graph._nodes.length > 0")
        return self.nodes()

    def load_template(self, name: str) -> list[Node]:
        """Load a template directly, without the template browser. Returns its nodes."""
        self.page.evaluate(LOAD, f"api/workflow_templates/{PACK_FOLDER}/{name}.json")
        return self.nodes()

    def nodes(self) -> list[Node]:
        return [Node(**each) for each in self.page.evaluate(NODES)]

    def run(self) -> None:
        """Press Run and wait for a video."""
        self.page.get_by_test_id("queue-button").click()
        self.page.wait_for_function(LOADED_VIDEO, timeout=RENDER)

    def played_video(self) -> Played:
        return Played(**self.page.evaluate(PLAY))

    def shown(self, picture: Locator) -> None:
        """Wait until a picture has loaded."""
        self.page.wait_for_function(
            "picture => picture.complete && picture.naturalWidth > 0", arg=picture.element_handle()
        )

    def pixels(self, picture: Locator) -> np.ndarray:
        """The pixels of a picture, (H, W, 3) uint8."""
        with Image.open(io.BytesIO(base64.b64decode(picture.evaluate(PIXELS)))) as drawn:
            return np.asarray(drawn.convert("RGB"))

    def help(self, kind: str) -> Locator:
        """Open the help of the first node of a kind. Returns the panel with our help page."""
        self.page.evaluate(CHOOSE, kind)
        self.page.get_by_test_id("info-button").click()
        panel = self.page.locator(".node-help-content")
        panel.locator("h1").wait_for()
        return panel

    def blueprint(self, name: str) -> Locator:
        """Search for a blueprint in the node library. Returns its entry."""
        library = self.page.locator(".side-bar-panel")
        search, found = library.locator("input[placeholder]"), library.get_by_text(name, exact=True)
        for _ in range(TURNS):
            if not search.is_visible():  # the button would close an open library
                self.page.locator(".node-library-tab-button").first.click()
                search.wait_for()
            search.fill("")
            search.fill(name)  # a library that has just opened may ignore input at first
            with suppress(PlaywrightTimeout):
                found.wait_for(timeout=SEARCH)
                break
        return found

    def place(self, found: Locator) -> list[Node]:
        """Place a library entry on an empty canvas. Returns the nodes."""
        self.page.evaluate("() => window.app.graph.clear()")
        found.click()  # the older page places it at once, the newer one at the next click on the canvas
        self.page.locator("#graph-canvas").click(position=MIDDLE)
        self.page.wait_for_function("() => window.app.graph._nodes.length > 0")
        return self.nodes()


@contextmanager
def browsing(browser: Browser) -> Iterator[Chromium]:
    """Context of a headless Chromium, closed on exit."""
    variables = {**os.environ, **browser.environment}
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser.program, args=list(FLAGS), env=variables)
        try:
            yield chromium
        finally:
            chromium.close()


@contextmanager
def opened(chromium: Chromium, comfy: ComfyUI, **settings: Any) -> Iterator[ComfyPage]:
    """Context of ComfyUI's page with the given settings of the page; requests to other hosts are blocked."""
    comfy.set({**SETTINGS, **settings})
    context = chromium.new_context(viewport=VIEW)
    context.set_default_timeout(PATIENCE)
    elsewhere = re.compile(rf"https?:(?!{re.escape(comfy.url.removeprefix('http:'))}).*")
    context.route(elsewhere, lambda route: route.abort())
    try:
        page = ComfyPage(context.new_page())
        page.page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.page.goto(comfy.url)
        page.page.wait_for_function(READY)
        yield page
    finally:
        context.close()
