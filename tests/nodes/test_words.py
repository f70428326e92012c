"""Every node, widget and socket is explained in English and in Chinese: in `locales/`, which labels the nodes, and in
`web/docs/`, which the help panel shows.

English labels are the schema's own words, written anew with `STABLE_VIDEO_WRITE_SCHEMAS=1 make test-nodes`; Chinese
ones are written by hand. Both parts of our category, "video" and "stable video", are ComfyUI's own words: it translates
them, so there is no `main.json`, which would change them for every other pack as well.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
LOCALES, DOCS = ROOT / "locales", ROOT / "web" / "docs"
LANGUAGES = {"en": "to", "zh": "到"}
"""And what stands between the ends of a range."""

FROM_THE_HOST = {"checkpoint", "sampler_name"}
"""Widgets whose choices a page cannot list: the person's files, ComfyUI's samplers."""

SYNTAX = re.compile(r"[{}@|]")
"""What the page's translator reads as instructions."""

CHINESE = re.compile(r"[\u4e00-\u9fff]")
WIDGETS, SOCKETS = ("## Widgets", "## 控件"), ("## Sockets", "## 接口")
"""Lists and not tables: the panel is so narrow that a table's last column is cut off."""

OPENING, CLOSING = r"(?: \(|\uff08)", r"(?:\): |\uff09\uff1a)"
"""The brackets of a list's line, Chinese ones too."""

WIDGET = re.compile(rf"^- `(\w+)`{OPENING}(?:(?:default|默认) (`.+?`)[;\uff1b] ?)?(.+?){CLOSING}.+$", re.MULTILINE)
SOCKET = re.compile(rf"^- `(\w+)`{OPENING}(in|out|in, out|输入|输出|输入、输出){CLOSING}.+$", re.MULTILINE)
PICTURE = re.compile(r"!\[[^\]]+\]\(([^)]+)\)")
LARGEST_PICTURE = 200 * 1024


def labels(language: str) -> dict:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def english(schema) -> dict:
    """A node's entry in the schema's own words."""
    outputs = {
        str(place): {"name": each.display_name or each.get_io_type()} | tooltip(each)
        for place, each in enumerate(schema.outputs)
    }
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {each.id: {"name": each.id} | tooltip(each) for each in schema.inputs},
        "outputs": outputs,
    }


def tooltip(each) -> dict:
    return {"tooltip": each.tooltip} if each.tooltip else {}


def shape(entry) -> object:
    """The keys of nested tables without their texts."""
    return {key: shape(value) for key, value in entry.items()} if isinstance(entry, dict) else None


def texts(entry) -> list[str]:
    return [each for value in entry.values() for each in texts(value)] if isinstance(entry, dict) else [entry]


# Labels


def test_english_labels_are_the_words_of_the_schemas(classes):
    current = {schema.node_id: english(schema) for schema in (node.define_schema() for node in classes)}
    path = LOCALES / "en" / "nodeDefs.json"
    if os.environ.get("STABLE_VIDEO_WRITE_SCHEMAS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(current, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert labels("en") == current


def test_chinese_labels_cover_every_node_input_and_output_and_nothing_else(classes):
    wanted = {schema.node_id: shape(english(schema)) for schema in (node.define_schema() for node in classes)}
    assert shape(labels("zh")) == wanted


def test_a_widget_without_a_translation_is_noticed(classes):
    schema = classes[0].define_schema()
    entry = english(schema)
    entry["inputs"].pop(schema.inputs[0].id)
    assert shape(entry) != shape(labels("zh")[schema.node_id])


def test_chinese_labels_are_in_chinese():
    for name, entry in labels("zh").items():
        assert CHINESE.search(entry["description"]), name
        sockets = [*entry["inputs"].values(), *entry["outputs"].values()]
        assert all(CHINESE.search(each["tooltip"]) for each in sockets if "tooltip" in each), name


@pytest.mark.parametrize("language", LANGUAGES)
def test_labels_hold_nothing_that_the_translator_reads_as_instructions(language):
    for name, entry in labels(language).items():
        assert [text for text in texts(entry) if SYNTAX.search(text) or not text.strip()] == [], name


# Help pages


def pages(node_id: str) -> dict[str, str]:
    """English is what the page falls back to in every language that has none of its own."""
    files = {"en": DOCS / f"{node_id}.md", "zh": DOCS / node_id / "zh.md"}
    return {language: file.read_text(encoding="utf-8") for language, file in files.items()}


def shown(widget, language: str) -> tuple[str, str]:
    """A widget's default and range as a page has to give them; "" where the page is free to say it in words."""
    settings = widget.as_dict()
    value = settings.get("default")
    if isinstance(value, bool):
        return f"`{str(value).lower()}`", "`true`, `false`"
    if "min" in settings:
        return f"`{number(value)}`", f"{number(settings['min'])} {LANGUAGES[language]} {number(settings['max'])}"
    if settings.get("options") and widget.id not in FROM_THE_HOST:
        return f"`{value}`", ", ".join(f"`{option}`" for option in settings["options"])
    return f"`{value}`" if value else "-", ""


def number(value) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def is_widget(widget) -> bool:
    settings = widget.as_dict()
    return not settings.get("forceInput") and ("default" in settings or "options" in settings)


def section(page: str, titles: tuple[str, ...]) -> str:
    """What stands under one of these titles, "" where none is there."""
    found = [part for part in re.split(r"^(?=## )", page, flags=re.MULTILINE) if part.splitlines()[0] in titles]
    return "".join(found)


def test_pages_give_every_widget_with_its_default_and_range(classes):
    for schema in (node.define_schema() for node in classes):
        for language, page in pages(schema.node_id).items():
            wanted = {each.id: shown(each, language) for each in schema.inputs if is_widget(each)}
            listed = WIDGET.findall(section(page, WIDGETS))
            given = {name: (value or "-", extent) for name, value, extent in listed}
            assert set(given) == set(wanted), (schema.node_id, language)
            for name, (value, extent) in wanted.items():
                assert given[name][0] == value, (schema.node_id, language, name)
                assert given[name][1] == (extent or given[name][1]), (schema.node_id, language, name)


def test_pages_give_every_socket(classes):
    for schema in (node.define_schema() for node in classes):
        inputs = {each.id for each in schema.inputs if not is_widget(each)}
        outputs = {each.display_name or each.get_io_type() for each in schema.outputs}
        for language, page in pages(schema.node_id).items():
            given = dict(SOCKET.findall(section(page, SOCKETS)))
            assert set(given) == inputs | outputs, (schema.node_id, language)
            assert {name for name, way in given.items() if "in" in way or "输入" in way} == inputs
            assert {name for name, way in given.items() if "out" in way or "输出" in way} == outputs


def test_pages_are_titled_as_the_nodes_are(classes):
    for schema in (node.define_schema() for node in classes):
        for language, page in pages(schema.node_id).items():
            assert page.startswith(f"# {labels(language)[schema.node_id]['display_name']}\n")


def test_there_is_no_page_of_a_node_that_is_gone(classes):
    ids = {node.define_schema().node_id for node in classes}
    assert {path.stem for path in DOCS.glob("*.md")} == ids
    assert {path.parent.name for path in DOCS.glob("*/*.md")} == ids


def test_pictures_of_the_pages_are_there_small_and_whole():
    pictures = {name for file in DOCS.rglob("*.md") for name in PICTURE.findall(file.read_text(encoding="utf-8"))}
    assert pictures
    for name in pictures:
        path = DOCS / name
        assert path.stat().st_size <= LARGEST_PICTURE, name
        with Image.open(path) as picture:
            picture.load()
    unused = {path.relative_to(DOCS).as_posix() for path in (DOCS / "images").iterdir()} - pictures
    assert not unused
