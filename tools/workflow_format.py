"""Workflow descriptions, and their conversion to both of ComfyUI's formats: for its page, and for scripts (API).

The page stores a node's values by widget order, so the order is read from a running ComfyUI (`/object_info`), not
hard-coded here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Info = Mapping[str, Mapping[str, Any]]
"""Content of `/object_info`: node type -> its description."""

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3")
EMPTY = {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}
"""Initial values of widgets without a default; other types start with empty text."""

SEED_NAMES = ("seed", "noise_seed")
FIXED, RANDOMIZE = "fixed", "randomize"
"""The page's options for changing a seed after each run."""

OWN_PREFIX = "StableVideo"
PACK_NAME, NATIVE_NAME = "comfyui-stable-video", "comfy-core"
NOTE_TYPE = "MarkdownNote"

COLUMN_STEP = 420
ROW_GAP = 50
GROUP_MARGIN, GROUP_TITLE, GROUP_GAP = 20, 50, 30
TITLE_HEIGHT, SOCKET_HEIGHT, WIDGET_HEIGHT, TEXT_HEIGHT = 36, 20, 26, 90
NODE_WIDTH = 340
PICTURE_HEIGHT = 260
SAID_HEIGHT = {
    "StableVideoImageFit": 50,
    "StableVideoConditioning": 50,
    "StableVideoSampler": 50,
    "StableVideoDecode": 70,
    "StableVideoSeedScout": 220,
    "StableVideoSweep": 220,
    "StableVideoMotionMeter": 220,
}
"""Extra height of nodes for the text that a run shows on them."""

SHOWS_PICTURE = ("LoadImage", "LoadVideo", "SaveVideo", "SaveImage", "SaveAnimatedWEBP", "PreviewImage", "PreviewAny")

GROUP_COLOUR = "#3f5159"
NOTE_COLOURS = {"color": "#432", "bgcolor": "#653"}


@dataclass(frozen=True, slots=True)
class Model:
    """A file named by a loader, and where ComfyUI can download it."""

    name: str
    url: str
    directory: str = "checkpoints"


@dataclass(frozen=True, slots=True)
class Output:
    """One output socket, usable as another node's input."""

    node: Node
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node. `inputs` holds values and outputs of other nodes; missing ones take the node's defaults."""

    id: int
    kind: str
    column: int
    group: str
    inputs: Mapping[str, Any]
    models: tuple[Model, ...] = ()
    seed_after: str = FIXED

    def __getitem__(self, name: str) -> Output:
        return Output(self, name)


@dataclass(slots=True)
class Graph:
    """A workflow. Nodes of one column are stacked in the order they were added; a group spans its nodes."""

    name: str
    title: str
    note: str
    nodes: list[Node] = field(default_factory=list)

    def add(
        self,
        kind: str,
        column: int,
        group: str,
        *,
        models: Sequence[Model] = (),
        seed_after: str = FIXED,
        **inputs: Any,
    ) -> Node:
        node = Node(len(self.nodes) + 1, kind, column, group, inputs, tuple(models), seed_after)
        self.nodes.append(node)
        return node


@dataclass(frozen=True, slots=True)
class Link:
    """A link in the page's format."""

    id: int
    source: Node
    source_slot: int
    target: Node
    target_slot: int
    kind: str


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on the canvas."""

    x: float
    y: float
    width: float
    height: float


def api_format(graph: Graph, info: Info) -> dict[str, Any]:
    """The workflow as posted by scripts to `/prompt`. Raises KeyError for an unknown input or output of a node."""
    prompt = {}
    for node in graph.nodes:
        _check_names(node, info)
        inputs = {}
        for name, spec in specs(info[node.kind]):
            if isinstance(node.inputs.get(name), Output):
                output = node.inputs[name]
                inputs[name] = [str(output.node.id), _slot(output, info)]
            elif is_widget(spec):
                inputs[name] = node.inputs.get(name, default(spec))
        prompt[str(node.id)] = {
            "inputs": inputs,
            "class_type": node.kind,
            "_meta": {"title": info[node.kind]["display_name"]},
        }
    return prompt


def page_format(graph: Graph, info: Info) -> dict[str, Any]:
    """The workflow as opened by ComfyUI's page, with positions, sizes, links, groups and a note."""
    links = _links(graph, info)
    boxes = _boxes(graph, info)
    order = {node.id: place for place, node in enumerate(graph.nodes)}
    nodes = [_page_node(node, order[node.id], boxes[node.id], links, info) for node in graph.nodes]
    note = len(graph.nodes) + 1
    return {
        "id": graph.name,
        "revision": 0,
        "last_node_id": note,
        "last_link_id": len(links),
        "nodes": [*nodes, _note(graph, note)],
        "links": [
            [link.id, link.source.id, link.source_slot, link.target.id, link.target_slot, link.kind] for link in links
        ],
        "groups": _groups(graph, boxes),
        "config": {},
        "extra": {"ds": {"scale": 0.8, "offset": [COLUMN_STEP + 40, 120]}},
        "version": 0.4,
    }


def read_page(page: Mapping[str, Any], info: Info) -> dict[str, Any]:
    """Convert the page's format to that of `/prompt`, reading values by their order as the page itself does."""
    wires = {link[0]: link for link in page["links"]}
    prompt = {}
    for node in page["nodes"]:
        if node["type"] == NOTE_TYPE:
            continue
        values = iter(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for name, spec in specs(info[node["type"]]):
            if is_widget(spec):
                inputs[name] = next(values)
                if has_companion(name, spec):
                    next(values)
        for socket in node["inputs"]:
            if socket["link"] is not None:
                _, source, slot, *_ = wires[socket["link"]]
                inputs[socket["name"]] = [str(source), slot]
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": node["type"]}
    return prompt


def changed(prompt: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """A prompt in API format with the values of the given names replaced in all nodes that have them; links are kept.
    Raises KeyError for a name that no node has."""
    names = set()
    nodes = {}
    for number, node in prompt.items():
        new = {key: value for key, value in values.items() if not isinstance(node["inputs"].get(key, []), list)}
        names |= set(new)
        nodes[number] = {**node, "inputs": node["inputs"] | new}
    if missing := set(values) - names:
        raise KeyError(f"no node of this workflow has {sorted(missing)}")
    return nodes


def specs(description: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """All inputs of a node, in the order of its widgets."""
    for kind in ("required", "optional"):
        for name in description["input_order"].get(kind, ()):
            yield name, description["input"][kind][name]


def is_widget(spec: Sequence[Any]) -> bool:
    """Whether an input is a widget with a value, not only a socket."""
    return _kind(spec) in WIDGET_TYPES and not _options(spec).get("forceInput", False)


def has_companion(name: str, spec: Sequence[Any]) -> bool:
    """Whether the page adds its own widget to an input: the control of a seed after a run, or an upload button."""
    options = _options(spec)
    if spec[0] == "INT":
        return bool(options.get("control_after_generate", name in SEED_NAMES))
    return bool(options.get("image_upload") or options.get("video_upload"))


def default(spec: Sequence[Any]) -> Any:
    """The initial value of a widget."""
    options = _options(spec)
    if "default" in options:
        return options["default"]
    choices = spec[0] if isinstance(spec[0], list) else options.get("options", ())
    if choices:
        return choices[0]["key"] if isinstance(choices[0], dict) else choices[0]
    return EMPTY.get(_kind(spec), "")


def _kind(spec: Sequence[Any]) -> str:
    return "COMBO" if isinstance(spec[0], list) else spec[0]


def _options(spec: Sequence[Any]) -> Mapping[str, Any]:
    return spec[1] if len(spec) > 1 else {}


def _check_names(node: Node, info: Info) -> None:
    known = {name for name, _ in specs(info[node.kind])}
    if unknown := set(node.inputs) - known:
        raise KeyError(f"{node.kind} has no input {sorted(unknown)}: it has {sorted(known)}")


def _slot(output: Output, info: Info) -> int:
    names = info[output.node.kind]["output_name"]
    if output.name not in names:
        raise KeyError(f"{output.node.kind} has no output {output.name!r}: it has {names}")
    return names.index(output.name)


def _links(graph: Graph, info: Info) -> list[Link]:
    links = []
    for node in graph.nodes:
        for place, (name, _) in enumerate(_sockets(node, info)):
            output = node.inputs.get(name)
            if isinstance(output, Output):
                slot = _slot(output, info)
                kind = info[output.node.kind]["output"][slot]
                links.append(Link(len(links) + 1, output.node, slot, node, place, kind))
    return links


def _sockets(node: Node, info: Info) -> list[tuple[str, Sequence[Any]]]:
    """Inputs drawn as sockets: all that are not widgets, and linked widgets."""
    return [
        (name, spec)
        for name, spec in specs(info[node.kind])
        if not is_widget(spec) or isinstance(node.inputs.get(name), Output)
    ]


def _page_node(node: Node, order: int, box: Box, links: Sequence[Link], info: Info) -> dict[str, Any]:
    description = info[node.kind]
    properties: dict[str, Any] = {
        "cnr_id": PACK_NAME if node.kind.startswith(OWN_PREFIX) else NATIVE_NAME,
        "Node name for S&R": node.kind,
    }
    if node.models:
        properties["models"] = [
            {"name": model.name, "url": model.url, "directory": model.directory} for model in node.models
        ]
    return {
        "id": node.id,
        "type": node.kind,
        "pos": [box.x, box.y],
        "size": [box.width, box.height],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [
            _socket(name, spec, _wire(links, node, place)) for place, (name, spec) in enumerate(_sockets(node, info))
        ],
        "outputs": [
            {
                "name": name,
                "type": kind,
                "slot_index": slot,
                "links": [link.id for link in links if link.source is node and link.source_slot == slot],
            }
            for slot, (name, kind) in enumerate(zip(description["output_name"], description["output"], strict=True))
        ],
        "properties": properties,
        "widgets_values": _values(node, info),
    }


def _wire(links: Sequence[Link], node: Node, place: int) -> int | None:
    return next((link.id for link in links if link.target is node and link.target_slot == place), None)


def _socket(name: str, spec: Sequence[Any], wire: int | None) -> dict[str, Any]:
    socket: dict[str, Any] = {"name": name, "type": _kind(spec), "link": wire}
    return {**socket, "widget": {"name": name}} if is_widget(spec) else socket


def _values(node: Node, info: Info) -> list[Any]:
    """The node's values in the order of its widgets, including those that the page adds."""
    values = []
    for name, spec in specs(info[node.kind]):
        if not is_widget(spec):
            continue
        value = node.inputs.get(name, default(spec))
        values.append(default(spec) if isinstance(value, Output) else value)
        if has_companion(name, spec):
            values.append(node.seed_after if spec[0] == "INT" else "image")
    return values


def _boxes(graph: Graph, info: Info) -> dict[int, Box]:
    """Positions of all nodes: columns from left to right, nodes stacked in each."""
    boxes: dict[int, Box] = {}
    below: dict[int, float] = {}
    groups: dict[int, str] = {}
    for node in graph.nodes:
        top = below.get(node.column, 0)
        if node.column in groups and groups[node.column] != node.group:
            top += GROUP_TITLE + GROUP_GAP
        height = _height(node, info)
        boxes[node.id] = Box(node.column * COLUMN_STEP, top, NODE_WIDTH, height)
        below[node.column] = top + height + ROW_GAP
        groups[node.column] = node.group
    return boxes


def _height(node: Node, info: Info) -> float:
    sockets = max(len(_sockets(node, info)), len(info[node.kind]["output"]))
    texts = sum(bool(_options(spec).get("multiline")) for _, spec in specs(info[node.kind]))
    picture = PICTURE_HEIGHT if node.kind in SHOWS_PICTURE else 0
    widgets = len(_values(node, info))
    shown = picture + SAID_HEIGHT.get(node.kind, 0)
    return TITLE_HEIGHT + SOCKET_HEIGHT * sockets + WIDGET_HEIGHT * widgets + TEXT_HEIGHT * texts + shown


def _groups(graph: Graph, boxes: Mapping[int, Box]) -> list[dict[str, Any]]:
    titles = list(dict.fromkeys(node.group for node in graph.nodes))
    groups = []
    for place, title in enumerate(titles, start=1):
        members = [boxes[node.id] for node in graph.nodes if node.group == title]
        left = min(box.x for box in members) - GROUP_MARGIN
        top = min(box.y for box in members) - GROUP_TITLE - TITLE_HEIGHT
        right = max(box.x + box.width for box in members) + GROUP_MARGIN
        bottom = max(box.y + box.height for box in members) + GROUP_MARGIN
        groups.append(
            {
                "id": place,
                "title": title,
                "bounding": [left, top, right - left, bottom - top],
                "color": GROUP_COLOUR,
                "font_size": 24,
                "flags": {},
            }
        )
    return groups


def _note(graph: Graph, number: int) -> dict[str, Any]:
    lines = sum(math.ceil(max(len(line), 1) / 44) for line in graph.note.splitlines())
    return {
        "id": number,
        "type": NOTE_TYPE,
        "pos": [-COLUMN_STEP, 0],
        "size": [NODE_WIDTH, 80 + 22 * lines],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": graph.title,
        "properties": {},
        "widgets_values": [graph.note],
        **NOTE_COLOURS,
    }
