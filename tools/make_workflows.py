"""Write workflows/*.json (for ComfyUI's page), workflows/api/*.json (for scripts) and workflows/*.jpg (thumbnails).

    python -m tools.make_workflows

Starts the newest tested ComfyUI to query its nodes. A test compares the committed files with the output of this script.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from svd_core.demo import DEMO_NAME
from tools.comfyui_server import prepare, running
from tools.fetch_comfyui import newest_comfyui
from tools.samples import CLIP_NAME, DEMO_PICTURE, MASK, PICTURE
from tools.thumbnails import Card, draw_card
from tools.workflow_format import RANDOMIZE, Graph, Info, Model, Node, Output, api_format, page_format

ROOT = Path(__file__).resolve().parents[1]

FOLDER = ROOT / "workflows"
THUMBNAIL_QUALITY = 88

_HUB = "https://huggingface.co/stabilityai"
SVD = Model("svd.safetensors", f"{_HUB}/stable-video-diffusion-img2vid/resolve/main/svd.safetensors")
SVD_XT = Model("svd_xt.safetensors", f"{_HUB}/stable-video-diffusion-img2vid-xt/resolve/main/svd_xt.safetensors")
SDXL = Model(
    "sd_xl_base_1.0.safetensors", f"{_HUB}/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors"
)

DEMO_WIDTH, DEMO_HEIGHT = 128, 64

FPS = 7
SEED = 42

SCOUT, SWEEP, METER = "Seeds", "Settings", "Measurements"
MODEL, PICTURE_IN, STILL, CLIP_IN, MOTION, CONTROL, SAMPLE, SAVE = (
    "Model",
    "Your picture",
    "Still from text",
    "Your clip",
    "Motion",
    "Control",
    "Sampling",
    "Video",
)


def demo_model() -> Graph:
    graph = Graph(
        "demo_model",
        "Demo model",
        "## Demo model\n\nA first clip without any download: press Run.\n\nThe "
        "model is tiny and was trained on drawn scenes: 14 frames of 128x64, and nothing sensible from a photograph of "
        "yours. It is here to try the nodes with. For real pictures open **Image to video**.\n\n`demo_rocket.png` lies "
        "in this pack's `workflows/assets`; if **Load Image** does not know it, drop it there.",
    )
    loader = graph.add("StableVideoCheckpointLoader", 0, MODEL, checkpoint=DEMO_NAME)
    fitted = _fitted(graph, _picture(graph, DEMO_PICTURE.name)["IMAGE"], width=DEMO_WIDTH, height=DEMO_HEIGHT)
    _animate(graph, loader, fitted, 14, "demo_model")
    return graph


def image_to_video_14() -> Graph:
    graph = Graph(
        "image_to_video_14_frames",
        "Image to video, 14 frames",
        "## Image to video, 14 frames\n\n1. Choose your picture in **Load Image**.\n2. Press Run.\n\n"
        "**motion_bucket** says how much moves: 40 is calm, 127 the middle, 200 wild. Another "
        "**seed** is another take.\n\n"
        "Needs `svd.safetensors` in `models/checkpoints`; ComfyUI offers it when it is missing.",
    )
    loader = _load(graph, SVD)
    _animate(graph, loader, _fitted(graph, _picture(graph)["IMAGE"]), 14, "image_to_video")
    return graph


def image_to_video_25() -> Graph:
    graph = Graph(
        "image_to_video_25_frames",
        "Image to video, 25 frames",
        "## Image to video, 25 frames\n\nThe same as with 14 frames, on the model that was trained for 25: longer "
        "clips and steadier motion, in over twice the time.\n\nNeeds `svd_xt.safetensors` in `models/checkpoints`.",
    )
    loader = _load(graph, SVD_XT, "svd_xt")
    _animate(graph, loader, _fitted(graph, _picture(graph)["IMAGE"]), 25, "image_to_video")
    return graph


def portrait() -> Graph:
    graph = Graph(
        "portrait",
        "Portrait",
        "## Portrait\n\nAn upright clip of 576x1024. **Fit** cuts the picture to that shape around the focal point: "
        "move **focus_x** and **focus_y** (0 is left or top, 1 right or bottom) until what matters stays in.\n\n"
        "The model saw few upright pictures: faces and slow motion work best.",
    )
    loader = _load(graph, SVD_XT, "svd_xt")
    fitted = _fitted(graph, _picture(graph)["IMAGE"], width=576, height=1024, focus_x=0.44, focus_y=0.3)
    _animate(graph, loader, fitted, 25, "portrait", motion_bucket=80)
    return graph


def text_to_video() -> Graph:
    graph = Graph(
        "text_to_image_to_video",
        "Text to image to video",
        "## Text to image to video\n\nStable Video Diffusion takes no text. Here another model draws a still from your "
        "text, and the still is set in motion.\n\nWrite what the picture shows, not how it moves. Keep "
        "**control after generate** of the still on *fixed* while you look for the motion that you like.\n\n"
        "Needs `sd_xl_base_1.0.safetensors` and `svd_xt.safetensors` in `models/checkpoints`.",
    )
    still = graph.add("CheckpointLoaderSimple", 0, STILL, models=[SDXL], ckpt_name=SDXL.name)
    wanted = "a small red rocket climbing over misty hills at sunset, warm light, long smoke trail, photograph"
    positive = graph.add("CLIPTextEncode", 0, STILL, text=wanted, clip=still["CLIP"])
    negative = graph.add("CLIPTextEncode", 0, STILL, text="text, watermark, frame, blurry", clip=still["CLIP"])
    empty = graph.add("EmptyLatentImage", 0, STILL, width=1024, height=576)
    sampled = graph.add(
        "KSampler",
        1,
        STILL,
        model=still["MODEL"],
        positive=positive["CONDITIONING"],
        negative=negative["CONDITIONING"],
        latent_image=empty["LATENT"],
        seed=SEED,
        steps=25,
        cfg=6.0,
        sampler_name="dpmpp_2m",
        scheduler="karras",
    )
    drawn = graph.add("VAEDecode", 1, STILL, samples=sampled["LATENT"], vae=still["VAE"])
    loader = _load(graph, SVD_XT, "svd_xt", column=2)
    fitted = _fitted(graph, drawn["IMAGE"], column=2)
    _animate(graph, loader, fitted, 25, "text_to_video", column=2)
    return graph


def video_to_video() -> Graph:
    graph = Graph(
        "video_to_video",
        "Video to video",
        "## Video to video\n\nThe clip is encoded, partly covered with noise and drawn anew. **denoise** says how far: "
        "0.3 keeps nearly everything, 0.8 keeps little more than the light.\n\nThe first frame is the picture that the "
        "model looks at. Take as many frames from the clip as the conditioning asks for.\n\n"
        "`rocket.mp4` comes with `make serve`; choose a clip of your own in **Load Video**.",
    )
    loader = _load(graph, SVD)
    clip = graph.add("LoadVideo", 0, CLIP_IN, file=CLIP_NAME)
    parts = graph.add("GetVideoComponents", 0, CLIP_IN, video=clip["VIDEO"])
    cut = graph.add("ImageFromBatch", 0, CLIP_IN, image=parts["images"], length=14)
    fitted = _fitted(graph, cut["IMAGE"])
    latent = graph.add("VAEEncode", 1, MOTION, pixels=fitted["image"], vae=loader["VAE"])
    first = graph.add("ImageFromBatch", 1, MOTION, image=fitted["image"])
    conditioning = _condition(graph, loader, first["IMAGE"], 14)
    sampled = _sample(graph, loader, conditioning, latent["LATENT"], denoise=0.6)
    _finish(graph, loader, sampled["latent"], "video_to_video")
    return graph


def few_steps() -> Graph:
    graph = Graph(
        "few_steps",
        "Few steps",
        "## Few steps\n\nTen steps instead of 25, spaced by *align your steps*, which were measured for this very "
        "model: a clip in well under half the time, for looking through seeds. Sampled with the parts that "
        "**Stable Video Sampler** is made of, so that each can be swapped.\n\nFor the last word, go back to 25 steps.",
    )
    loader = _load(graph, SVD)
    fitted = _fitted(graph, _picture(graph)["IMAGE"])
    conditioning = _condition(graph, loader, fitted["image"], 14)
    guider = graph.add(
        "StableVideoGuider",
        2,
        SAMPLE,
        model=loader["MODEL"],
        positive=conditioning["positive"],
        negative=conditioning["negative"],
    )
    sigmas = graph.add("StableVideoSigmas", 2, SAMPLE, model=loader["MODEL"], steps=10, schedule="align_your_steps")
    noise = graph.add("RandomNoise", 2, SAMPLE, noise_seed=SEED, seed_after=RANDOMIZE)
    sampler = graph.add("KSamplerSelect", 2, SAMPLE, sampler_name="euler")
    sampled = graph.add(
        "SamplerCustomAdvanced",
        3,
        SAMPLE,
        noise=noise["NOISE"],
        guider=guider["guider"],
        sampler=sampler["SAMPLER"],
        sigmas=sigmas["sigmas"],
        latent_image=conditioning["latent"],
    )
    _finish(graph, loader, sampled["output"], "few_steps", column=4)
    return graph


def native_nodes() -> Graph:
    graph = Graph(
        "native_nodes",
        "With native nodes",
        "## With native nodes\n\nOur loader, and ComfyUI's own nodes for everything else: all sockets are the ordinary "
        "ones. **VAE Decode** is exact here too, because the VAE is ours.\n\nComfyUI's own conditioning cuts the "
        "picture around its middle and draws no noise from a seed; swap in **Stable Video Conditioning** to have both.",
    )
    loader = _load(graph, SVD)
    picture = graph.add("LoadImage", 0, PICTURE_IN, image=PICTURE.name)
    conditioning = graph.add(
        "SVD_img2vid_Conditioning",
        1,
        MOTION,
        clip_vision=loader["CLIP_VISION"],
        init_image=picture["IMAGE"],
        vae=loader["VAE"],
    )
    guided = graph.add("VideoLinearCFGGuidance", 1, MOTION, model=loader["MODEL"], min_cfg=1.0)
    sampled = graph.add(
        "KSampler",
        2,
        SAMPLE,
        model=guided["MODEL"],
        positive=conditioning["positive"],
        negative=conditioning["negative"],
        latent_image=conditioning["latent"],
        seed=SEED,
        seed_after=RANDOMIZE,
        steps=25,
        cfg=2.5,
        sampler_name="euler",
        scheduler="karras",
    )
    decoded = graph.add("VAEDecode", 3, SAVE, samples=sampled["LATENT"], vae=loader["VAE"])
    _save(graph, decoded["IMAGE"], "native_nodes", 3)
    return graph


def seed_scout() -> Graph:
    graph = Graph(
        "seed_scout",
        "Seed scout",
        "## Seed scout\n\nEight quick clips of ten steps, ranked by how much moves; the best seed goes on to the "
        "sampler by itself. Watch the sheet: when you like another one better, unplug **seed** from the sampler and "
        "write that one there.\n\nKeep the guidance of both nodes alike. **rank_by** says what comes first.\n\n"
        "Needs `svd.safetensors` in `models/checkpoints`.",
    )
    loader = _load(graph, SVD)
    fitted = _fitted(graph, _picture(graph)["IMAGE"])
    conditioning = _condition(graph, loader, fitted["image"], 14)
    scouted = graph.add(
        "StableVideoSeedScout",
        2,
        SCOUT,
        **_clips_of(loader, conditioning),
        image=fitted["image"],
        seed=SEED,
        seed_after=RANDOMIZE,
    )
    _watch(graph, scouted["sheet"], "seed_scout", 3, SCOUT)
    graph.add("PreviewAny", 3, SCOUT, source=scouted["ranking"])
    sampled = _sample(graph, loader, conditioning, conditioning["latent"], column=4, given_seed=scouted["seed"])
    _finish(graph, loader, sampled["latent"], "seed_scout", column=5)
    return graph


def sweep() -> Graph:
    graph = Graph(
        "sweep",
        "Sweep",
        "## Sweep\n\nOne clip for every combination of two settings' values, in a labelled grid: here six clips, three "
        "motion buckets by two seeds. Choose the settings and write the values with commas between.\n\nThen set "
        "what you like in **Stable Video Conditioning** and **Stable Video Sampler** on the right; that clip is made "
        "too.\n\nNeeds `svd.safetensors` in `models/checkpoints`.",
    )
    loader = _load(graph, SVD)
    fitted = _fitted(graph, _picture(graph)["IMAGE"])
    conditioning = _condition(graph, loader, fitted["image"], 14)
    swept = graph.add("StableVideoSweep", 2, SWEEP, **_clips_of(loader, conditioning), image=fitted["image"], seed=SEED)
    _watch(graph, swept["video"], "sweep", 3, SWEEP)
    graph.add("SaveImage", 3, SWEEP, images=swept["image"], filename_prefix="sweep")
    graph.add("PreviewAny", 3, SWEEP, source=swept["report"])
    sampled = _sample(graph, loader, conditioning, conditioning["latent"], column=4)
    _finish(graph, loader, sampled["latent"], "sweep", column=5)
    return graph


def motion_meter() -> Graph:
    graph = Graph(
        "motion_meter",
        "Motion meter",
        "## Motion meter\n\nA clip and its numbers: how much moves, how much of it is the camera's, flicker, colour "
        "drift, sharpness, and how well it loops.\n\nAny frames can be measured: connect those of **Load Video** and "
        "**Get Video Components** to the meter.\n\nNeeds `svd.safetensors` in `models/checkpoints`.",
    )
    loader = _load(graph, SVD)
    fitted = _fitted(graph, _picture(graph)["IMAGE"])
    conditioning = _condition(graph, loader, fitted["image"], 14)
    sampled = _sample(graph, loader, conditioning, conditioning["latent"])
    frames = _finish(graph, loader, sampled["latent"], "motion_meter")
    measured = graph.add("StableVideoMotionMeter", 4, METER, images=frames)
    graph.add("PreviewImage", 4, METER, images=measured["plot"])
    graph.add("PreviewAny", 4, METER, source=measured["report"])
    return graph


def motion_brush() -> Graph:
    graph = Graph(
        "motion_brush",
        "Motion brush",
        "## Motion brush\n\nWhat is white in the mask moves, grey moves a little, black stands still and keeps the "
        "picture's own pixels.\n\nThe mask goes through a **Fit Picture** with the same widgets as the picture's, so "
        "that both are cut alike. Paint your own in any program, or with ComfyUI's mask editor: then connect **MASK** "
        "of **Load Image** to **Convert Mask to Image** and that to the mask's **Fit Picture**.\n\n`rocket_mask.png` "
        "lies in this pack's `workflows/assets`; if **Load Image** does not know it, drop it there.",
    )
    loader = _load(graph, SVD)
    fitted = _fitted(graph, _picture(graph)["IMAGE"])
    painted = _fitted(graph, _picture(graph, MASK.name)["IMAGE"])
    mask = graph.add("ImageToMask", 1, MOTION, image=painted["image"], channel="red")
    conditioning = _condition(graph, loader, fitted["image"], 14)
    brushed = graph.add(
        "StableVideoMotionBrush",
        2,
        CONTROL,
        model=loader["MODEL"],
        vae=loader["VAE"],
        latent=conditioning["latent"],
        image=fitted["image"],
        mask=mask["MASK"],
    )
    _controlled(graph, loader, brushed, conditioning, "motion_brush")
    return graph


def in_between() -> Graph:
    graph = Graph(
        "in_between",
        "In-between",
        "## In-between\n\nFrom a start picture to an end picture, here the first and the last frame of a clip. Put two "
        "**Load Image** nodes in their place for pictures of your own; both **Fit Picture** nodes need the same "
        "widgets, and so do both conditionings.\n\nWorks where both pictures show the same scene with small changes. "
        "Takes twice as long as a clip from one picture.\n\n`rocket.mp4` comes with `make serve`.",
    )
    loader = _load(graph, SVD)
    clip = graph.add("LoadVideo", 0, CLIP_IN, file=CLIP_NAME)
    parts = graph.add("GetVideoComponents", 0, CLIP_IN, video=clip["VIDEO"])
    start, end = (
        graph.add("ImageFromBatch", 0, CLIP_IN, image=parts["images"], batch_index=index) for index in (0, 13)
    )
    conditioning, last = (
        _condition(graph, loader, _fitted(graph, each["IMAGE"])["image"], 14) for each in (start, end)
    )
    bounded = graph.add(
        "StableVideoInBetween",
        2,
        CONTROL,
        model=loader["MODEL"],
        end=last["positive"],
        latent=conditioning["latent"],
    )
    _controlled(graph, loader, bounded, conditioning, "in_between")
    return graph


def loop() -> Graph:
    graph = Graph(
        "loop",
        "Loop",
        "## Loop\n\nA clip that plays round and round without a cut: it leaves its picture and comes back to it, with "
        "motion of its own on both ways.\n\n**Decode** leaves out the last frame, which is the first one again, and "
        "shows the seam score: 1 is a step like any other.\n\nSmoke, water, hair and cloth loop well; what flies off "
        "does not come back by itself. Takes twice as long.",
    )
    loader = _load(graph, SVD)
    conditioning = _condition(graph, loader, _fitted(graph, _picture(graph)["IMAGE"])["image"], 14)
    looped = graph.add("StableVideoLoop", 2, CONTROL, model=loader["MODEL"], latent=conditioning["latent"])
    _controlled(graph, loader, looped, conditioning, "loop")
    return graph


def long_take() -> Graph:
    graph = Graph(
        "long_take",
        "Long take",
        "## Long take\n\nA clip of any length in the memory of a short one. One window of **window** frames is made "
        "after the other, each from the last frame of the one before. Time grows with the number of windows.\n\nThe "
        "picture wears out along the way: detail goes first. Keep to two or three windows where it matters.\n\nTo go "
        "on from a clip, connect its frames to **continued** and show the conditioning its last frame.",
    )
    loader = _load(graph, SVD)
    conditioning = _condition(graph, loader, _fitted(graph, _picture(graph)["IMAGE"])["image"], 14)
    taken = graph.add(
        "StableVideoLongTake",
        2,
        CONTROL,
        model=loader["MODEL"],
        positive=conditioning["positive"],
        negative=conditioning["negative"],
        latent=conditioning["latent"],
        frames=35,
        window=14,
    )
    _controlled(graph, loader, taken, taken, "long_take")
    return graph


def camera() -> Graph:
    graph = Graph(
        "camera",
        "Camera",
        "## Camera\n\nThe camera travels over the picture while the model moves what is in it: here to the right and a "
        "little closer. **pan** is in widths and heights of the picture, **zoom** how much larger its middle is at the "
        "end, **roll** in degrees.\n\nWhat comes into view is invented from the picture's mirrored edge, so keep ways "
        "short, or zoom in as you go. With a **depth** map near things pass faster.",
    )
    loader = _load(graph, SVD)
    fitted = _fitted(graph, _picture(graph)["IMAGE"])
    conditioning = _condition(graph, loader, fitted["image"], 14)
    filmed = graph.add(
        "StableVideoCamera",
        2,
        CONTROL,
        positive=conditioning["positive"],
        vae=loader["VAE"],
        latent=conditioning["latent"],
        image=fitted["image"],
        pan_x=0.15,
        zoom=1.2,
    )
    _shown(graph, loader, filmed, conditioning, "camera")
    return graph


def drag() -> Graph:
    graph = Graph(
        "drag",
        "Drag",
        "## Drag\n\nPaint a thing and say where it goes: here the rocket flies up and to the right, and comes a little "
        "closer. The preview shows **views**, the draft that the clip follows.\n\nPaint your own with ComfyUI's mask "
        "editor, or send any mask through a **Fit Picture** with the same widgets as the picture's. Several things: "
        "connect **views** to **image** of another Drag; a **Camera** comes last.\n\n`rocket_mask.png` lies in this "
        "pack's `workflows/assets`; if **Load Image** does not know it, drop it there.",
    )
    loader = _load(graph, SVD)
    fitted = _fitted(graph, _picture(graph)["IMAGE"])
    painted = _fitted(graph, _picture(graph, MASK.name)["IMAGE"])
    mask = graph.add("ImageToMask", 1, MOTION, image=painted["image"], channel="red")
    conditioning = _condition(graph, loader, fitted["image"], 14)
    sent = graph.add(
        "StableVideoDrag",
        2,
        CONTROL,
        positive=conditioning["positive"],
        vae=loader["VAE"],
        latent=conditioning["latent"],
        image=fitted["image"],
        mask=mask["MASK"],
        right=0.25,
        down=-0.15,
        scale=1.2,
    )
    graph.add("PreviewImage", 2, CONTROL, images=sent["views"])
    _shown(graph, loader, sent, conditioning, "drag")
    return graph


def unstick() -> Graph:
    graph = Graph(
        "unstick",
        "Un-stick",
        "## Un-stick\n\nFor pictures that will not move. **strength** is the one control: 0 changes nothing, 1 moves "
        "most and keeps least to the picture.\n\nThe node sets the model up to start at a lower noise level and hands "
        "motion bucket and augmentation to the conditioning.",
    )
    loader = _load(graph, SVD)
    fitted = _fitted(graph, _picture(graph)["IMAGE"])
    freed = graph.add("StableVideoUnstick", 1, MOTION, model=loader["MODEL"], strength=0.7)
    moved = {"motion_bucket": freed["motion_bucket"], "augmentation": freed["augmentation"]}
    conditioning = _condition(graph, loader, fitted["image"], 14, **moved)
    sampled = _sample(graph, {"MODEL": freed["model"]}, conditioning, conditioning["latent"])
    _finish(graph, loader, sampled["latent"], "unstick")
    return graph


def curves() -> Graph:
    graph = Graph(
        "curves",
        "Curves",
        "## Curves\n\nSettings that change along the clip, as position:value with position 0 the first frame and 1 the "
        "last. Here the motion begins calm and grows.\n\nThe model learned with constants, so this is an experiment: "
        "neighbouring frames pull each other along, and a curve shows as a tendency.",
    )
    loader = _load(graph, SVD)
    conditioning = _condition(graph, loader, _fitted(graph, _picture(graph)["IMAGE"])["image"], 14)
    curved = graph.add(
        "StableVideoCurves", 2, CONTROL, model=loader["MODEL"], motion_bucket_points="0:20, 0.5:80, 1:200"
    )
    sampled = _sample(graph, {"MODEL": curved["model"]}, conditioning, conditioning["latent"], column=3)
    _finish(graph, loader, sampled["latent"], "curves", column=4)
    return graph


WORKFLOWS: tuple[tuple[Callable[[], Graph], Card], ...] = (
    (demo_model, Card("demo model")),
    (image_to_video_14, Card("14 frames")),
    (image_to_video_25, Card("25 frames")),
    (text_to_video, Card("text to\nvideo")),
    (video_to_video, Card("video to\nvideo")),
    (portrait, Card("portrait", upright=True)),
    (few_steps, Card("few steps")),
    (native_nodes, Card("native\nnodes")),
    (seed_scout, Card("seed scout")),
    (sweep, Card("sweep")),
    (motion_meter, Card("motion\nmeter")),
    (motion_brush, Card("motion\nbrush")),
    (in_between, Card("in-between")),
    (loop, Card("loop")),
    (long_take, Card("long take")),
    (camera, Card("camera")),
    (drag, Card("drag")),
    (unstick, Card("un-stick")),
    (curves, Card("curves")),
)


def _load(graph: Graph, model: Model, variant: str = "from file", column: int = 0) -> Node:
    return graph.add(
        "StableVideoCheckpointLoader", column, MODEL, models=[model], checkpoint=model.name, variant=variant
    )


def _picture(graph: Graph, name: str = PICTURE.name) -> Node:
    return graph.add("LoadImage", 0, PICTURE_IN, image=name)


def _fitted(graph: Graph, image: Output, *, column: int = 1, **choices: Any) -> Node:
    """Fit a picture to the size of the clip: by default the trained size in the picture's own orientation."""
    return graph.add("StableVideoImageFit", column, MOTION, image=image, **choices)


def _condition(graph: Graph, loader: Node, image: Output, frames: int, *, column: int = 1, **choices: Any) -> Node:
    return graph.add(
        "StableVideoConditioning",
        column,
        MOTION,
        clip_vision=loader["CLIP_VISION"],
        vae=loader["VAE"],
        image=image,
        frames=frames,
        fps=FPS,
        seed=SEED,
        **choices,
    )


def _controlled(graph: Graph, loader: Node, control: Node, conditioning: Node, prefix: str) -> None:
    """Add nodes from a node that controls motion, with outputs model and latent, to a saved clip."""
    sampled = _sample(graph, {"MODEL": control["model"]}, conditioning, control["latent"], column=3)
    _finish(graph, loader, sampled["latent"], prefix, column=4)


def _shown(graph: Graph, loader: Node, moved: Node, conditioning: Node, prefix: str) -> None:
    """Add nodes from a node that moves what positive shows to a saved clip."""
    conds = {"positive": moved["positive"], "negative": conditioning["negative"]}
    sampled = _sample(graph, loader, conds, conditioning["latent"], column=3)
    _finish(graph, loader, sampled["latent"], prefix, column=4)


def _sample(
    graph: Graph,
    loader: Node | Mapping[str, Output],
    conditioning: Node | Mapping[str, Output],
    latent: Output,
    *,
    column: int = 2,
    given_seed: Output | int = SEED,
    **choices: Any,
) -> Node:
    return graph.add(
        "StableVideoSampler",
        column,
        SAMPLE,
        model=loader["MODEL"],
        positive=conditioning["positive"],
        negative=conditioning["negative"],
        latent=latent,
        seed=given_seed,
        seed_after=RANDOMIZE,
        **choices,
    )


def _animate(
    graph: Graph, loader: Node, fitted: Node, frames: int, prefix: str, *, column: int = 1, **choices: Any
) -> None:
    """Add nodes from a fitted picture to a saved clip."""
    conditioning = _condition(graph, loader, fitted["image"], frames, column=column, **choices)
    sampled = _sample(graph, loader, conditioning, conditioning["latent"], column=column + 1)
    _finish(graph, loader, sampled["latent"], prefix, column=column + 2)


def _finish(graph: Graph, loader: Node, latent: Output, prefix: str, *, column: int = 3) -> Output:
    """Add nodes from a latent to a saved clip. Returns its frames."""
    decoded = graph.add("StableVideoDecode", column, SAVE, latent=latent, vae=loader["VAE"])
    _save(graph, decoded["images"], prefix, column)
    return decoded["images"]


def _clips_of(loader: Node, conditioning: Node) -> dict[str, Output]:
    """Inputs of a node that makes many clips."""
    conds = {name: conditioning[name] for name in ("positive", "negative", "latent")}
    return {"model": loader["MODEL"], "vae": loader["VAE"], **conds}


def _watch(graph: Graph, images: Output, prefix: str, column: int, group: str) -> None:
    """Add a node that saves and plays a grid of clips."""
    graph.add("SaveAnimatedWEBP", column, group, images=images, filename_prefix=prefix, fps=FPS)


def _save(graph: Graph, images: Output, prefix: str, column: int) -> None:
    video = graph.add("CreateVideo", column, SAVE, images=images, fps=FPS)
    graph.add("SaveVideo", column, SAVE, video=video["VIDEO"], filename_prefix=f"video/{prefix}")


def render(info: Info) -> dict[str, str]:
    """Content of every committed file except the thumbnails, by path in workflows/."""
    files = {}
    for make, _ in WORKFLOWS:
        graph = make()
        files[f"{graph.name}.json"] = _text(page_format(graph, info))
        files[f"api/{graph.name}.json"] = _text(api_format(graph, info))
    return files


def _text(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="workflows-") as folder:
        base = prepare(Path(folder))
        with running(base, newest_comfyui()) as comfy:
            files = render(comfy.object_info())
    for name, text in files.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)
    for make, card in WORKFLOWS:
        path = FOLDER / f"{make().name}.jpg"
        draw_card(card).save(path, quality=THUMBNAIL_QUALITY, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
