"""Write subgraphs/*.json: complete workflows as one node each, which ComfyUI lists under *Subgraph Blueprints*.

    python -m tools.make_blueprints

Starts the newest tested ComfyUI to query its nodes. A test compares the committed files with the output of this script.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.blueprint_format import Blueprint, Port, blueprint_format, edge
from tools.comfyui_server import prepare, running
from tools.fetch_comfyui import newest_comfyui
from tools.make_workflows import CONTROL, FPS, MODEL, MOTION, SAMPLE, SAVE, SEED, SVD
from tools.workflow_format import RANDOMIZE, Graph, Info, Node, Output

ROOT = Path(__file__).resolve().parents[1]

FOLDER = ROOT / "subgraphs"
CATEGORY = "Video generation and editing/Image to video"
"""Category of ComfyUI's own blueprints of this kind."""


CHOICE = (
    Port("checkpoint", "COMBO", SVD.name),
    Port("variant", "COMBO", "from file"),
)
CLIP = (
    *CHOICE,
    Port("width", "INT", 0),
    Port("height", "INT", 0),
)
FRAMES = (Port("frames", "INT", 0),)
MOVED = (
    Port("fps", "INT", FPS),
    Port("motion_bucket", "INT", 127),
    Port("augmentation", "FLOAT", 0.02),
)
MADE = (Port("steps", "INT", 0), Port("playback_fps", "FLOAT", float(FPS)))
"""Widgets of a folded node, with the inner nodes' defaults. `fps` is the speed given to the model, `playback_fps` that
of the file."""

PORTS = (Port("image", "IMAGE"), *CLIP, *FRAMES, *MOVED, *MADE)
BETWEEN_PORTS = (Port("first", "IMAGE"), Port("last", "IMAGE"), *CLIP, *FRAMES, *MOVED, *MADE)
TAKE_PORTS = (
    Port("image", "IMAGE"),
    *CLIP,
    Port("frames", "INT", 50),
    Port("window", "INT", 0),
    *MOVED,
    *MADE,
)

ALIASES = ("svd", "stable video diffusion", "img2vid")


def image_to_video() -> Blueprint:
    graph, given = Graph("Image to Video (Stable Video Diffusion)", "", ""), edge(PORTS)
    loader = _loaded(graph, given)
    conditioning = _conditioned(graph, loader, given, given["image"])
    return _made(
        graph,
        PORTS,
        loader,
        loader["MODEL"],
        {name: conditioning[name] for name in ("positive", "negative", "latent")},
        "Sets a picture of any size in motion with Stable Video Diffusion. 0 takes the checkpoint's own.",
        (*ALIASES, "animate image"),
    )


def first_last_frame() -> Blueprint:
    graph, given = Graph("First-Last Frame (Stable Video Diffusion)", "", ""), edge(BETWEEN_PORTS)
    loader = _loaded(graph, given)
    first, last = (_conditioned(graph, loader, given, given[name]) for name in ("first", "last"))
    bounded = graph.add(
        "StableVideoInBetween", 2, CONTROL, model=loader["MODEL"], end=last["positive"], latent=first["latent"]
    )
    return _made(
        graph,
        BETWEEN_PORTS,
        loader,
        bounded["model"],
        {"positive": first["positive"], "negative": first["negative"], "latent": bounded["latent"]},
        "A clip from a first picture to a last one, for two pictures of the same scene. Takes twice the time of one.",
        (*ALIASES, "first last frame", "in-between", "interpolate", "keyframes"),
    )


def loop() -> Blueprint:
    graph, given = Graph("Loop (Stable Video Diffusion)", "", ""), edge(PORTS)
    loader = _loaded(graph, given)
    conditioning = _conditioned(graph, loader, given, given["image"])
    looped = graph.add("StableVideoLoop", 2, CONTROL, model=loader["MODEL"], latent=conditioning["latent"])
    return _made(
        graph,
        PORTS,
        loader,
        looped["model"],
        {"positive": conditioning["positive"], "negative": conditioning["negative"], "latent": looped["latent"]},
        "A clip that plays round and round without a cut, one frame shorter than asked for. Takes twice the time.",
        (*ALIASES, "loop", "seamless", "cinemagraph"),
    )


def long_take() -> Blueprint:
    graph, given = Graph("Long Take (Stable Video Diffusion)", "", ""), edge(TAKE_PORTS)
    loader = _loaded(graph, given)
    conditioning = _conditioned(graph, loader, {**_sockets(given, TAKE_PORTS), "frames": 0}, given["image"])
    taken = graph.add(
        "StableVideoLongTake",
        2,
        CONTROL,
        model=loader["MODEL"],
        **{name: conditioning[name] for name in ("positive", "negative", "latent")},
        **{name: given[name] for name in ("frames", "window")},
    )
    return _made(
        graph,
        TAKE_PORTS,
        loader,
        taken["model"],
        {name: taken[name] for name in ("positive", "negative", "latent")},
        "A clip of any length in the memory of a short one. Made in windows; 0 takes the checkpoint's own length.",
        (*ALIASES, "long video", "extend video", "more frames"),
    )


def _sockets(given: Node, ports: Sequence[Port]) -> dict[str, Any]:
    return {port.name: given[port.name] for port in ports}


def _loaded(graph: Graph, given: Node) -> Node:
    chosen = _sockets(given, CHOICE)
    return graph.add("StableVideoCheckpointLoader", 0, MODEL, models=[SVD], **chosen)


def _conditioned(graph: Graph, loader: Node, given: Node | Mapping[str, Any], image: Output) -> Node:
    """The conditioning node of a picture, which is fitted first."""
    size = {name: given[name] for name in ("width", "height")}
    fitted = graph.add("StableVideoImageFit", 0, MOTION, image=image, **size)
    return graph.add(
        "StableVideoConditioning",
        1,
        MOTION,
        clip_vision=loader["CLIP_VISION"],
        vae=loader["VAE"],
        image=fitted["image"],
        seed=SEED,
        **{name: given[name] for name in ("frames", "fps", "motion_bucket", "augmentation")},
    )


def _made(
    graph: Graph,
    ports: tuple[Port, ...],
    loader: Node,
    model: Output,
    conds: Mapping[str, Output],
    description: str,
    aliases: Sequence[str],
) -> Blueprint:
    """Complete a blueprint from a model and its conditioning to the output video."""
    given = edge(ports)
    sampled = graph.add(
        "StableVideoSampler", 3, SAMPLE, model=model, **conds, seed=SEED, seed_after=RANDOMIZE, steps=given["steps"]
    )
    decoded = graph.add("StableVideoDecode", 4, SAVE, latent=sampled["latent"], vae=loader["VAE"])
    video = graph.add("CreateVideo", 4, SAVE, images=decoded["images"], fps=given["playback_fps"])
    return Blueprint(
        graph,
        ports,
        outputs={"VIDEO": video["VIDEO"], "images": decoded["images"]},
        proxied=((sampled, "seed"), (sampled, "control_after_generate")),
        category=CATEGORY,
        description=description,
        aliases=tuple(aliases),
    )


BLUEPRINTS: tuple[Callable[[], Blueprint], ...] = (image_to_video, first_last_frame, loop, long_take)


def render(info: Info) -> dict[str, str]:
    """Content of every committed file by name."""
    files = {}
    for make in BLUEPRINTS:
        blueprint = make()
        content = blueprint_format(blueprint, info)
        files[f"{blueprint.graph.name}.json"] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return files


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="blueprints-") as folder:
        base = prepare(Path(folder))
        with running(base, newest_comfyui()) as comfy:
            files = render(comfy.object_info())
    FOLDER.mkdir(exist_ok=True)
    for name, text in files.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
