"""What stands in for the nodes of abandoned packs fits our schemas."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def replacements(part):
    return [each.as_dict() for each in part("nodes.replacements").replacements()]


@pytest.fixture(scope="module")
def schemas(classes):
    return {schema.node_id: schema for schema in (node.define_schema() for node in classes)}


def test_every_required_input_is_given_and_none_that_is_unknown(replacements, schemas):
    for each in replacements:
        inputs = schemas[each["new_node_id"]].inputs
        given = [mapped["new_id"] for mapped in each["input_mapping"]]
        assert len(given) == len(set(given))
        assert set(given) <= {known.id for known in inputs}
        assert {known.id for known in inputs if not known.optional} <= set(given)


def test_what_is_set_lies_in_the_widgets_range(replacements, schemas):
    for each in replacements:
        widgets = {known.id: known.as_dict() for known in schemas[each["new_node_id"]].inputs}
        for mapped in each["input_mapping"]:
            if "set_value" in mapped:
                settings, value = widgets[mapped["new_id"]], mapped["set_value"]
                assert value in settings.get("options", [value])
                assert settings.get("min", value) <= value <= settings.get("max", value)


def test_outputs_lead_to_outputs(replacements, schemas):
    for each in replacements:
        count = len(schemas[each["new_node_id"]].outputs)
        assert all(0 <= mapped["new_idx"] < count for mapped in each["output_mapping"])


def test_no_node_that_comfyui_has_is_replaced(replacements, pack):
    import nodes

    assert not {each["old_node_id"] for each in replacements} & set(nodes.NODE_CLASS_MAPPINGS)


def test_the_migration_table_names_all_of_them(replacements):
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    marked = set(re.findall(r"^### `(\w+)` .*replaced by ComfyUI", page, re.MULTILINE))
    assert marked == {each["old_node_id"] for each in replacements}
