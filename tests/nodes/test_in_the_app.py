"""What ComfyUI's page asks the server for besides nodes: help, labels, blueprints and replacements."""

from __future__ import annotations

import json
import re
from pathlib import Path

import live
import numpy as np
import pytest
from live import FRAMES, HEIGHT, STEPS, WIDTH

from tools.comfyui_server import PACK_FOLDER, running
from tools.fetch_comfyui import RELEASES
from tools.make_blueprints import BLUEPRINTS, render
from tools.samples import CHECKPOINT_NAME, DEMO_PICTURE, read_frames
from tools.workflow_format import read_page

ROOT = Path(__file__).resolve().parents[2]
DOCS = f"/extensions/{PACK_FOLDER}/docs"
PREFIX = "StableVideo"


@pytest.fixture(scope="module")
def server(comfy, comfyui_path, tmp_path_factory):
    base = live.furnish(tmp_path_factory.mktemp("comfyui"))
    with running(base, comfyui_path, environment={"OMP_NUM_THREADS": "1"}) as comfyui:
        yield comfyui


@pytest.fixture(scope="module")
def info(server):
    return server.object_info()


@pytest.fixture(scope="module")
def ours(info):
    return [name for name in info if name.startswith(PREFIX)]


# Help and labels


@pytest.mark.parametrize("page", ["{}.md", "{}/zh.md"])
def test_the_help_panel_gets_our_page_and_its_pictures(server, ours, page):
    for name in ours:
        text = server.get(f"{DOCS}/{page.format(name)}").decode("utf-8")
        assert text.startswith("# ")
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            live.picture(server.get(f"{DOCS}/{picture}")).load()


def test_the_page_gets_our_labels_in_both_languages(server, ours):
    labels = server.get_json("/i18n")
    for language in ("en", "zh"):
        written = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
        assert {name: labels[language]["nodeDefs"][name] for name in ours} == written


# Blueprints


def blueprints(server):
    """Our blueprints as the server gives them: name -> content."""
    listed = {key: each for key, each in server.get_json("/global_subgraphs").items() if PACK_FOLDER in str(each)}
    assert {each["info"]["node_pack"] for each in listed.values()} == {f"custom_nodes.{PACK_FOLDER}"}
    contents = {each["name"]: server.get_json(f"/global_subgraphs/{key}")["data"] for key, each in listed.items()}
    return {name: json.loads(content) for name, content in contents.items()}


def test_comfyui_lists_every_blueprint(server):
    assert set(blueprints(server)) == {make().graph.name for make in BLUEPRINTS}


def test_the_committed_blueprints_are_what_the_generator_makes(server, info):
    made = render(info)
    folder = ROOT / "subgraphs"
    assert {path.name for path in folder.iterdir()} == set(made)
    if server.system_stats()["system"]["comfyui_version"] == RELEASES[0].comfyui:
        assert {name: (folder / name).read_text(encoding="utf-8") for name in made} == made


def test_every_wire_of_a_blueprint_is_known_at_both_ends(server):
    for name, content in blueprints(server).items():
        (outer,), (inner,) = content["nodes"], content["definitions"]["subgraphs"]
        assert outer["type"] == inner["id"]
        assert [port["name"] for port in outer["inputs"]] == [port["name"] for port in inner["inputs"]]
        nodes = {node["id"]: node for node in inner["nodes"]}
        for link in inner["links"]:
            source = inner["inputs"] if link["origin_id"] == -10 else nodes[link["origin_id"]]["outputs"]
            target = inner["outputs"] if link["target_id"] == -20 else nodes[link["target_id"]]["inputs"]
            start, end = source[link["origin_slot"]], target[link["target_slot"]]
            assert link["id"] in (start.get("linkIds") or start.get("links")), (name, link)
            assert link["id"] == end.get("link") or link["id"] in end.get("linkIds", ()), (name, link)
            assert start["type"] == end["type"] == link["type"], (name, link)
        shown = [node for node, _ in outer["properties"]["proxyWidgets"]]
        assert len(outer["widgets_values"]) == len(shown)
        assert {int(node) for node in shown} - {-1} <= set(nodes)


def unfolded(content, info, **values):
    """The prompt that the page sends for a blueprint with a picture before it and Save Video behind it."""
    (outer,), (inner,) = content["nodes"], content["definitions"]["subgraphs"]
    widgets = [port["name"] for port in outer["inputs"] if "widget" in port]
    given = dict(zip(widgets, outer["widgets_values"], strict=False)) | values
    page = {
        "nodes": inner["nodes"],
        "links": [[each["id"], str(each["origin_id"]), each["origin_slot"]] for each in inner["links"]],
    }
    prompt = read_page(page, info)
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == "-10":
                port = inner["inputs"][value[1]]["name"]
                node["inputs"][name] = given[port] if port in widgets else ["picture", 0]
    (video,) = (link for link in inner["links"] if (link["target_id"], link["target_slot"]) == (-20, 0))
    saved = {"video": [str(video["origin_id"]), video["origin_slot"]], "filename_prefix": "blueprint"}
    prompt["picture"] = {"class_type": "LoadImage", "inputs": {"image": DEMO_PICTURE.name}}
    prompt["saved"] = {"class_type": "SaveVideo", "inputs": saved | {"format": "auto", "codec": "auto"}}
    return prompt


def test_a_blueprint_makes_a_video(server, info, tmp_path):
    for content in blueprints(server).values():
        size = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES, "steps": STEPS}
        run = server.run(unfolded(content, info, checkpoint=CHECKPOINT_NAME, **size))
        (file,) = run.files("saved")
        video = tmp_path / file["filename"]
        video.write_bytes(server.fetch(file))
        repeated = any(node["type"] == "StableVideoLoop" for node in content["definitions"]["subgraphs"][0]["nodes"])
        assert [frame.shape for frame in read_frames(video)] == [(HEIGHT, WIDTH, 3)] * (FRAMES - repeated)


# Replacements


def test_the_page_is_told_of_every_replacement(server, info):
    told = {
        old: new[0]["new_node_id"]
        for old, new in server.get_json("/node_replacements").items()
        if new[0]["new_node_id"].startswith(PREFIX)
    }
    assert told == {"SVDRsizer": "StableVideoImageFit", "SVDModelLoader": "StableVideoCheckpointLoader"}
    assert not set(told) & set(info)


def test_a_prompt_with_an_abandoned_node_runs(server):
    old = {"image": ["1", 0], "width": 640, "height": 576, "interpolation": "lanczos", "keep_proportion": False}
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": DEMO_PICTURE.name}, "_meta": {"title": "picture"}},
        "2": {"class_type": "SVDRsizer", "inputs": old, "_meta": {"title": "SVDRsizer"}},
        "3": {
            "class_type": "SaveImage",
            "inputs": {"images": ["2", 0], "filename_prefix": "resized"},
            "_meta": {"title": "saved"},
        },
    }
    run = server.run(prompt)
    (file,) = run.files("3")
    assert np.asarray(live.picture(server.fetch(file))).shape[:2] == (576, 640)
