"""Workflows that people saved with an earlier version still load.

`data/saved/VERSION` holds the API files of each version as they were released; they are never edited.
"""

import json
from pathlib import Path

import pytest

SAVED = sorted((Path(__file__).parent / "data" / "saved").glob("*/*.json"))


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
