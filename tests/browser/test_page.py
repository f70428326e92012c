"""The pack in ComfyUI's own page, in a headless Chromium: what an artist sees and presses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import live
import numpy as np
import pytest
from PIL import Image

from tools.comfyui_page import ComfyPage, Node, Played, browsing, opened
from tools.comfyui_server import running
from tools.fetch_browser import find_browser
from tools.fetch_front_end import front_end
from tools.samples import CHECKPOINT_NAME

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
BLUEPRINT = "Image to Video (Stable Video Diffusion)"
"""One of them: the page's search does not find *First-Last Frame* by its whole name; its list holds all."""
PREFIX = "StableVideo"
DEMO = "demo_model"

DECODERS = 32
"""How far apart two decoders may read a JPEG, of 255; another caption is a hundred and more away."""


@pytest.fixture(scope="module")
def server(comfyui_path, tmp_path_factory):
    base = live.furnish(tmp_path_factory.mktemp("comfyui"))
    checkpoints = base / "models" / "checkpoints"
    for name in wanted_models():
        (checkpoints / name).symlink_to(checkpoints / CHECKPOINT_NAME)
    flags = [f"--front-end-root={front_end(comfyui_path)}"]
    with running(base, comfyui_path, flags, environment={"OMP_NUM_THREADS": "1"}) as comfyui:
        yield comfyui


@pytest.fixture(scope="module")
def chromium():
    with browsing(find_browser()) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def page(chromium, server):
    with opened(chromium, server) as page:
        yield page


@pytest.fixture(scope="module")
def chinese(chromium, server, page):
    with opened(chromium, server, **{"Comfy.Locale": "zh"}) as chinese:
        yield chinese


@pytest.fixture(autouse=True)
def no_error(page: ComfyPage):
    """Nothing that the test does makes the page's own code fall."""
    yield
    assert not page.errors


def wanted_models():
    """Files that the page would ask the artist to download."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "workflows").glob("*.json")]
    nodes = [node for text in texts for node in json.loads(text)["nodes"]]
    return {model["name"] for node in nodes for model in node["properties"].get("models", ())}


def thumbnail(name):
    with Image.open(ROOT / "workflows" / f"{name}.jpg") as picture:
        return np.asarray(picture.convert("RGB"), dtype=int)


def labels(language):
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def written(name):
    """Node kinds in a template's file."""
    nodes = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
    return sorted(node["type"] for node in nodes)


def test_the_template_browser_lists_every_workflow_with_its_thumbnail(chromium, server):
    with opened(chromium, server) as page:  # of its own: the older page's dialog would stay
        cards = {card.get_attribute("data-testid"): card for card in page.browse_templates()}
        assert sorted(cards) == [f"template-workflow-{name}" for name in TEMPLATES]
        for name in TEMPLATES:
            check_thumbnail(page, cards[f"template-workflow-{name}"], name)
        assert not page.errors


def check_thumbnail(page, card, name):
    card.scroll_into_view_if_needed()  # the browser loads what comes into view
    picture = card.locator("img").first
    page.shown(picture)
    difference = np.abs(page.pixels(picture).astype(int) - thumbnail(name))
    assert difference.max() < DECODERS, name


def check_nodes(nodes, name):
    """All of them are there, and none has a red outline."""
    assert sorted(node.kind for node in nodes) == written(name)
    assert not [node.title for node in nodes if node.faulty]


def test_every_template_opens_without_a_red_outline(chromium, server):
    with opened(chromium, server) as page:  # of its own, so that another starts afresh
        for name in TEMPLATES:
            check_nodes(page.load_template(name), name)
        assert not page.errors


MISSING = """() => window.app.loadGraphData({
    nodes: [{id: 1, type: "StableVideoOfNoVersion", pos: [0, 0], size: [200, 100]}],
    links: [],
    version: 0.4,
})"""


def test_a_node_that_is_missing_would_have_one(chromium, server):
    with opened(chromium, server) as page:  # of its own: the older page says so in a dialog, which would stay
        page.page.evaluate(MISSING)
        assert [(node.kind, node.faulty) for node in page.nodes()] == [("StableVideoOfNoVersion", True)]


def test_a_template_that_is_clicked_and_run_makes_a_video_that_plays_in_the_page(page):
    check_nodes(page.open_template(DEMO), DEMO)
    page.run()
    assert page.played_video() == Played(width=128, height=64, seconds=2.0, frames=14)


def check_help(page, language):
    """The panel shows the page of the language, with its pictures."""
    suffix = "/zh.md" if language == "zh" else ".md"
    source = (ROOT / "web" / "docs" / f"{PREFIX}Sampler{suffix}").read_text(encoding="utf-8")
    page.load_template(DEMO)
    panel = page.help(f"{PREFIX}Sampler")
    assert panel.locator("h1").inner_text() == source.splitlines()[0].removeprefix("# ")
    pictures = panel.locator("img")
    assert pictures.count() == len(re.findall(r"!\[[^\]]*\]\([^)]+\)", source)) > 0
    for picture in pictures.all():
        page.shown(picture)
    for widget in re.findall(r"^- `(\w+)`", source, re.MULTILINE):
        assert panel.get_by_text(widget, exact=True).count() > 0


def test_the_help_panel_shows_our_page(page):
    check_help(page, "en")


def test_the_help_panel_shows_our_page_in_chinese(chinese):
    check_help(chinese, "zh")


def check_labels(node: Node, words):
    assert node.title == words["display_name"]
    for name, word in words.get("inputs", {}).items():
        assert (node.widgets.get(name) or node.inputs[name]) == word["name"]
    assert node.outputs == [word["name"] for word in words["outputs"].values()]


@pytest.mark.parametrize("name", [DEMO, "curves", "seed_scout"])
def test_the_chinese_page_shows_our_labels(chinese, name):
    ours = [node for node in chinese.load_template(name) if node.kind.startswith(PREFIX)]
    assert len(ours) > 3
    for node in ours:
        check_labels(node, labels("zh")[node.kind])


def test_the_node_library_offers_our_blueprint(chromium, server):
    with opened(chromium, server) as page:  # of its own, where no help was shown
        found = page.blueprint(BLUEPRINT)
        assert [(node.title, node.faulty) for node in page.place(found)] == [(BLUEPRINT, False)]
        assert not page.errors
