"""Write subgraphs/*.json: whole ways to work as one node each, which ComfyUI lists under *Subgraph Blueprints*.

    python tools/make_blueprints.py

Starts the newest tested ComfyUI to ask it about its nodes. A test holds the committed files to what this makes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python tools/make_blueprints.py` puts tools/ there

from tools.blueprint_format import Blueprint, Port, blueprint_format, edge  # noqa: E402
from tools.comfyui_server import prepare, running  # noqa: E402
from tools.fetch_comfyui import newest_comfyui  # noqa: E402
from tools.make_workflows import FPS, MODEL, MOTION, SAMPLE, SAVE, SEED, SVD  # noqa: E402
from tools.workflow_format import RANDOMIZE, Graph, Info, Node  # noqa: E402

FOLDER = ROOT / "subgraphs"
CATEGORY = "Video generation and editing/Image to video"
"""Where ComfyUI keeps its own of this kind."""


PORTS = (
    Port("image", "IMAGE"),
    Port("checkpoint", "COMBO", SVD.name),
    Port("width", "INT", 0),
    Port("height", "INT", 0),
    Port("frames", "INT", 0),
    Port("fps", "INT", FPS),
    Port("motion_bucket", "INT", 127),
    Port("augmentation", "FLOAT", 0.02),
    Port("steps", "INT", 0),
    Port("playback_fps", "FLOAT", float(FPS)),
)
"""What a folded node shows, at the nodes' own defaults. One speed is the model's, the other the file's."""


def image_to_video() -> Blueprint:
    graph, given = Graph("Image to Video (Stable Video Diffusion)", "", ""), edge(PORTS)
    loader, conditioning = _conditioned(graph, given)
    sampled = graph.add(
        "StableVideoSampler",
        2,
        SAMPLE,
        model=loader["MODEL"],
        **{name: conditioning[name] for name in ("positive", "negative", "latent")},
        seed=SEED,
        seed_after=RANDOMIZE,
        steps=given["steps"],
    )
    decoded = graph.add("StableVideoDecode", 3, SAVE, latent=sampled["latent"], vae=loader["VAE"])
    video = graph.add("CreateVideo", 3, SAVE, images=decoded["images"], fps=given["playback_fps"])
    return Blueprint(
        graph,
        PORTS,
        outputs={"VIDEO": video["VIDEO"], "images": decoded["images"]},
        proxied=((sampled, "seed"), (sampled, "control_after_generate")),
        category=CATEGORY,
        description="Sets a picture of any size in motion with Stable Video Diffusion. 0 takes the checkpoint's own.",
        aliases=("svd", "stable video diffusion", "img2vid", "animate image"),
    )


def _conditioned(graph: Graph, given: Node) -> tuple[Node, Node]:
    """The loader and the conditioning, with the picture fitted between them."""
    loader = graph.add("StableVideoCheckpointLoader", 0, MODEL, models=[SVD], checkpoint=given["checkpoint"])
    size = {name: given[name] for name in ("width", "height")}
    fitted = graph.add("StableVideoImageFit", 0, MOTION, image=given["image"], **size)
    conditioning = graph.add(
        "StableVideoConditioning",
        1,
        MOTION,
        clip_vision=loader["CLIP_VISION"],
        vae=loader["VAE"],
        image=fitted["image"],
        seed=SEED,
        **{name: given[name] for name in ("frames", "fps", "motion_bucket", "augmentation")},
    )
    return loader, conditioning


BLUEPRINTS: tuple[Callable[[], Blueprint], ...] = (image_to_video,)


def render(info: Info) -> dict[str, str]:
    """Every committed file by its name."""
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
