"""Subgraph blueprints: a workflow folded into one node, which ComfyUI lists under *Subgraph Blueprints*.

The format is that of the blueprints shipped with ComfyUI 0.16.3 and 0.30.0: a page with a single node, whose type is
the id of the only subgraph that the page defines.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.workflow_format import PACK_NAME, Graph, Info, Node, Output, page_format

INPUTS_ID, OUTPUTS_ID = -10, -20
"""ComfyUI's ids for the two edges of a subgraph in its links."""

INPUTS_KIND = "subgraph inputs"
INSIDE = "-1"
"""Marks a proxied widget as an input of the subgraph itself, where others name an inner node's id."""

EDGE_WIDTH, EDGE_GAP, ROW_HEIGHT = 140, 120, 20
OUTER_SIZE = (340, 420)
LINK_KEYS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


@dataclass(frozen=True, slots=True)
class Port:
    """One input of the folded node: a socket, or a widget if it has a value. `kind` is ComfyUI's type."""

    name: str
    kind: str
    value: Any = None

    @property
    def is_widget(self) -> bool:
        return self.value is not None


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A blueprint. `graph` is its inside, which takes the outer inputs from `edge`. `outputs` are inner outputs by
    outer name; `proxied` are widgets of inner nodes that the folded node shows unchanged, such as a seed with its
    control after a run."""

    graph: Graph
    inputs: tuple[Port, ...]
    outputs: Mapping[str, Output]
    proxied: Sequence[tuple[Node, str]]
    category: str
    description: str
    aliases: Sequence[str]


def edge(inputs: Sequence[Port]) -> Node:
    """The inner side of a blueprint's inputs: `edge(ports)["image"]` is the value of the outer node's image socket."""
    return Node(INPUTS_ID, INPUTS_KIND, 0, "", {port.name: None for port in inputs})


def blueprint_format(blueprint: Blueprint, info: Info) -> dict[str, Any]:
    """The file's content, deterministic."""
    identity = _uuid(blueprint.graph.name)
    return {
        "id": _uuid(f"{blueprint.graph.name} page"),
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_outer(blueprint, identity, info)],
        "links": [],
        "groups": [],
        "config": {},
        "extra": {
            "BlueprintDescription": blueprint.description,
            "BlueprintSearchAliases": list(blueprint.aliases),
        },
        "version": 0.4,
        "definitions": {"subgraphs": [_subgraph(blueprint, identity, info)]},
    }


def _outer(blueprint: Blueprint, identity: str, info: Info) -> dict[str, Any]:
    """The folded node that the user sees."""
    widgets = [port for port in blueprint.inputs if port.is_widget]
    shown = [[INSIDE, port.name] for port in widgets] + [[str(node.id), name] for node, name in blueprint.proxied]
    return {
        "id": 1,
        "type": identity,
        "pos": [0, 0],
        "size": list(OUTER_SIZE),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [_socket(port) for port in blueprint.inputs],
        "outputs": [
            {"name": name, "type": _output_kind(output, info), "links": None}
            for name, output in blueprint.outputs.items()
        ],
        "title": blueprint.graph.name,
        "properties": {"proxyWidgets": shown, "cnr_id": PACK_NAME},
        "widgets_values": [port.value for port in widgets] + [None] * len(blueprint.proxied),
    }


def _socket(port: Port) -> dict[str, Any]:
    socket = {"name": port.name, "type": port.kind, "link": None}
    return socket | ({"widget": {"name": port.name}} if port.is_widget else {})


def _subgraph(blueprint: Blueprint, identity: str, info: Info) -> dict[str, Any]:
    """The subgraph inside the folded node, with its two edges."""
    known = {**info, INPUTS_KIND: _edge_info(blueprint.inputs)}
    page = page_format(blueprint.graph, known)
    links = [dict(zip(LINK_KEYS, link, strict=True)) for link in page["links"]]
    links += _links_out(blueprint, len(links), info)
    nodes = [node for node in page["nodes"] if node["id"] <= len(blueprint.graph.nodes)]  # the note stays outside
    _wire_outputs(nodes, links)
    right = max(node["pos"][0] + node["size"][0] for node in nodes)
    return {
        "id": identity,
        "version": 1,
        "state": {
            "lastGroupId": len(page["groups"]),
            "lastNodeId": len(nodes),
            "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": blueprint.graph.name,
        "inputNode": _edge_box(INPUTS_ID, -EDGE_GAP - EDGE_WIDTH, len(blueprint.inputs)),
        "outputNode": _edge_box(OUTPUTS_ID, right + EDGE_GAP, len(blueprint.outputs)),
        "inputs": _edge_inputs(blueprint, links),
        "outputs": _edge_outputs(blueprint, links, right + EDGE_GAP, info),
        "widgets": [],
        "nodes": nodes,
        "groups": page["groups"],
        "links": links,
        "extra": {},
        "category": blueprint.category,
        "description": blueprint.description,
    }


def _edge_info(inputs: Sequence[Port]) -> dict[str, Any]:
    return {"output_name": [port.name for port in inputs], "output": [port.kind for port in inputs]}


def _links_out(blueprint: Blueprint, before: int, info: Info) -> list[dict[str, Any]]:
    """Links from inner nodes to the outputs."""
    wires = []
    for slot, output in enumerate(blueprint.outputs.values()):
        source = info[output.node.kind]["output_name"].index(output.name)
        ends = (before + slot + 1, output.node.id, source, OUTPUTS_ID, slot, _output_kind(output, info))
        wires.append(dict(zip(LINK_KEYS, ends, strict=True)))
    return wires


def _wire_outputs(nodes: Sequence[dict[str, Any]], links: Sequence[dict[str, Any]]) -> None:
    """Set the links of each inner output socket, including those that leave through the edge."""
    for node in nodes:
        for slot, socket in enumerate(node["outputs"]):
            socket["links"] = [
                link["id"] for link in links if (link["origin_id"], link["origin_slot"]) == (node["id"], slot)
            ]


def _edge_inputs(blueprint: Blueprint, links: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "id": _uuid(f"{blueprint.graph.name} in {port.name}"),
            "name": port.name,
            "type": port.kind,
            "linkIds": [link["id"] for link in links if (link["origin_id"], link["origin_slot"]) == (INPUTS_ID, slot)],
            "pos": [-EDGE_GAP - ROW_HEIGHT, ROW_HEIGHT * (slot + 1)],
        }
        for slot, port in enumerate(blueprint.inputs)
    ]


def _edge_outputs(
    blueprint: Blueprint, links: Sequence[dict[str, Any]], left: float, info: Info
) -> list[dict[str, Any]]:
    return [
        {
            "id": _uuid(f"{blueprint.graph.name} out {name}"),
            "name": name,
            "type": _output_kind(output, info),
            "linkIds": [link["id"] for link in links if (link["target_id"], link["target_slot"]) == (OUTPUTS_ID, slot)],
            "pos": [left + ROW_HEIGHT, ROW_HEIGHT * (slot + 1)],
        }
        for slot, (name, output) in enumerate(blueprint.outputs.items())
    ]


def _edge_box(number: int, left: float, rows: int) -> dict[str, Any]:
    return {"id": number, "bounding": [left, 0, EDGE_WIDTH, ROW_HEIGHT * (rows + 2)]}


def _output_kind(output: Output, info: Info) -> str:
    description = info[output.node.kind]
    return description["output"][description["output_name"].index(output.name)]


def _uuid(name: str) -> str:
    """A UUID derived from the name, so that regenerated files do not change."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK_NAME}/{name}"))
