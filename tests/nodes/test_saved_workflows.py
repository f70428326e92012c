"""Workflows that people saved with an earlier version still load.

`data/saved/VERSION` holds the API files of each version as they were released, and `page` in it the same as the page
saves them; they are never edited.
"""

import json
from pathlib import Path

import pytest

from tools.workflow_format import OWN_PREFIX, has_companion, is_widget, specs

FOLDER = Path(__file__).parent / "data" / "saved"
SAVED = sorted(FOLDER.glob("*/*.json"))
PAGES = sorted(FOLDER.glob("*/page/*.json"))


def ids(saved: Path) -> str:
    return f"{saved.parent.name}-{saved.stem}"


@pytest.mark.parametrize("saved", SAVED, ids=ids)
def test_every_node_still_takes_what_was_saved(pack, saved):
    import nodes

    ours = {
        key: node for key, node in json.loads(saved.read_text()).items() if node["class_type"].startswith("StableVideo")
    }
    assert ours
    for node in ours.values():
        accepted = nodes.NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
        required, optional = accepted.get("required", {}), accepted.get("optional", {})
        assert set(node["inputs"]) <= {*required, *optional}, node["class_type"]
        assert set(required) <= set(node["inputs"]), f"{node['class_type']}: an input added later must be optional"


@pytest.mark.parametrize("saved", SAVED, ids=ids)
def test_every_choice_that_was_saved_is_still_offered(pack, saved):
    import nodes

    choices = 0
    for node in json.loads(saved.read_text()).values():
        if not node["class_type"].startswith("StableVideo"):
            continue
        accepted = nodes.NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
        inputs = accepted.get("required", {}) | accepted.get("optional", {})
        for name, value in node["inputs"].items():
            options = inputs[name][1].get("options") if len(inputs[name]) > 1 else None
            if options and name != "checkpoint":  # which files lie in a folder is no one's promise
                assert value in options, (node["class_type"], name)
                choices += 1
    assert choices


def test_every_version_has_its_pages():
    assert SAVED
    assert {(each.parent.parent.name, each.name) for each in PAGES} == {(each.parent.name, each.name) for each in SAVED}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.parent.name}-{page.stem}")
def test_values_that_a_page_saved_still_lie_at_their_places(pack, page):
    """A page stores values by their place alone, so an input added anywhere but at the end would shift them."""
    import nodes

    prompt = json.loads((page.parent.parent / page.name).read_text(encoding="utf-8"))
    saved = json.loads(page.read_text(encoding="utf-8"))["nodes"]
    ours = [node for node in saved if node["type"].startswith(OWN_PREFIX)]
    assert ours
    for node in ours:
        found = by_place(node["widgets_values"], nodes.NODE_CLASS_MAPPINGS[node["type"]].GET_NODE_INFO_V1())
        inputs = prompt[str(node["id"])]["inputs"].items()
        plain = {name: value for name, value in inputs if not isinstance(value, list)}
        assert {name: found[name] for name in plain} == plain, node["type"]


def by_place(values, description):
    """Widget -> saved value as today's page reads it; widgets added since have none, and keep their defaults."""
    left, found = list(values), {}
    for name, spec in specs(description):
        if is_widget(spec) and left:
            found[name] = left.pop(0)
            if has_companion(name, spec):
                left.pop(0)
    assert not left, f"{len(left)} saved values have no widget"
    return found
