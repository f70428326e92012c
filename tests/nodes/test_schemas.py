"""Node ids, inputs and defaults are an interface: saved workflows hold them.

The snapshot in data/schemas.json is written anew, after a change on purpose, with
`STABLE_VIDEO_WRITE_SCHEMAS=1 make test-nodes`.
"""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import get_args

from svd_core.settings import Curve, Schedule

SNAPSHOT = Path(__file__).parent / "data" / "schemas.json"

HOST_OPTIONS = {"checkpoint", "sampler_name"}
"""Choices that come from the host: its files and its samplers."""

WIDE_TEXT = 300


def described(node: type) -> dict:
    """What a saved workflow depends on, in order: names and types of inputs and outputs, defaults, choices, ranges."""
    schema = node.define_schema()
    inputs = []
    for each in schema.inputs:
        settings = {key: value for key, value in each.as_dict().items() if key not in ("tooltip", "display_name")}
        if each.id in HOST_OPTIONS:
            settings.pop("options", None)
        inputs.append({"id": each.id, "type": each.get_io_type(), **settings})
    outputs = [{"name": each.display_name or each.get_io_type(), "type": each.get_io_type()} for each in schema.outputs]
    return {"category": schema.category, "inputs": inputs, "outputs": outputs}


def test_nothing_that_saved_workflows_hold_has_changed(classes):
    current = {node.define_schema().node_id: described(node) for node in classes}
    if os.environ.get("STABLE_VIDEO_WRITE_SCHEMAS"):
        SNAPSHOT.write_text(json.dumps(current, indent=1) + "\n")
    assert current == json.loads(SNAPSHOT.read_text())


def test_every_node_has_registered_under_its_prefix(classes):
    import nodes

    ids = [node.define_schema().node_id for node in classes]
    assert all(each.startswith("StableVideo") for each in ids)
    assert set(ids) <= set(nodes.NODE_CLASS_MAPPINGS)


def test_execute_takes_just_the_inputs_of_the_schema(classes):
    for node in classes:
        taken = inspect.signature(node.execute).parameters
        schema = {each.id: each for each in node.define_schema().inputs}
        assert set(taken) == set(schema), node
        for name, parameter in taken.items():
            if schema[name].optional:
                assert parameter.default is not inspect.Parameter.empty, (node, name)


def test_validation_asks_for_known_inputs_only(classes):
    for node in classes:
        own = vars(node).get("validate_inputs")
        if own is not None:
            asked = inspect.signature(own.__func__).parameters
            assert set(asked) - {"cls"} <= {each.id for each in node.define_schema().inputs}


def test_every_node_explains_itself(classes):
    for node in classes:
        schema = node.define_schema()
        assert schema.description
        assert schema.display_name
        assert schema.search_aliases
        assert schema.category == "video/stable video"
        for each in schema.inputs:
            assert each.tooltip, (schema.node_id, each.id)
            assert len(each.tooltip) <= WIDE_TEXT, (schema.node_id, each.id)


def test_defaults_lie_within_their_ranges(classes):
    for node in classes:
        for each in node.define_schema().inputs:
            settings = each.as_dict()
            if "min" in settings:
                assert settings["min"] <= settings["default"] <= settings["max"], (node, each.id)
            elif "options" in settings and "default" in settings:
                assert settings["default"] in settings["options"], (node, each.id)


def test_schedules_and_guidance_curves_are_those_of_the_core(classes):
    known = {"schedule": set(get_args(Schedule)), "guidance_curve": set(get_args(Curve))}
    offered = [each for node in classes for each in node.define_schema().inputs if each.id in known]
    assert {each.id for each in offered} == set(known)
    assert all(set(each.options) == known[each.id] for each in offered)


def test_comfyui_can_describe_every_node_to_its_page(classes):
    for node in classes:
        json.dumps(node.GET_NODE_INFO_V1())
