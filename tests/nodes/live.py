"""What the tests of a running ComfyUI put into its folders, and how they read what comes back."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from tools.comfyui_server import ComfyUI, Run, prepare
from tools.samples import CHECKPOINT_NAME, CLIP_NAME, copy_pictures, write_checkpoint, write_clip
from tools.workflow_format import changed

ROOT = Path(__file__).resolve().parents[2]
API_FOLDER = ROOT / "workflows" / "api"
NAMES = sorted(path.stem for path in API_FOLDER.glob("*.json"))

STILL_NAME = "still.safetensors"
FRAMES, STEPS, WIDTH, HEIGHT = 3, 2, 128, 64

TINY = {
    "checkpoint": CHECKPOINT_NAME,
    "ckpt_name": STILL_NAME,
    "frames": FRAMES,
    "video_frames": FRAMES,
    "length": FRAMES,
    "window": FRAMES,
    "steps": STEPS,
    "width": WIDTH,
    "height": HEIGHT,
}
"""Widgets of any shipped workflow, at a size that the CPU runs in a moment."""

PROBE = dedent(
    '''
    """Tells how many bytes of tensors are alive in ComfyUI."""

    import gc

    import torch
    from aiohttp import web
    from server import PromptServer

    NODE_CLASS_MAPPINGS = {}


    @PromptServer.instance.routes.get("/probe/tensors")
    async def tensors(request):
        gc.collect()
        storages = {}
        for thing in gc.get_objects():
            if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return web.json_response(sum(storages.values()))
    '''
)
"""A custom node of the tests' own."""

SMALL_CARD_START = dedent(
    '''
    """ComfyUI refuses --cpu beside --lowvram and --novram."""

    from comfy.cli_args import args

    args.cpu = True
    '''
)
SMALL_CARD = dedent(
    '''
    """Lets the CPU play a card without free memory: --lowvram and --novram do on it what they do on one."""

    import comfy.model_management as management

    NODE_CLASS_MAPPINGS = {}

    load_models_gpu = management.load_models_gpu
    NO_MEMORY = (0, (0, 0))
    CARD = {
        "is_device_cpu": lambda device: False,
        "get_free_memory": lambda device=None, torch_free_too=False: NO_MEMORY[torch_free_too],
    }


    def load_as_on_a_card(*models, **options):
        theirs = {name: getattr(management, name) for name in CARD}
        management.vram_state = management.set_vram_to
        vars(management).update(CARD)
        try:
            return load_models_gpu(*models, **options)
        finally:
            vars(management).update(theirs)


    management.load_models_gpu = load_as_on_a_card
    '''
)


def furnish(base: Path, nodes: Mapping[str, str] | None = None) -> Path:
    """A base directory with the pack, a small checkpoint, the sample picture and a clip; `nodes` maps files below
    custom_nodes to their text."""
    prepare(base)
    write_checkpoint(base / "models" / "checkpoints" / CHECKPOINT_NAME)
    copy_pictures(base / "input")
    write_clip(base / "input" / CLIP_NAME, frames=FRAMES + 1, size=(WIDTH, HEIGHT))
    for name, text in (nodes or {}).items():
        path = base / "custom_nodes" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return base


def workflow(name: str) -> dict[str, Any]:
    """A shipped workflow in API format."""
    return json.loads((API_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def tiny(prompt: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """A workflow on the small checkpoint at a tiny size, and with these values besides."""
    small = {}
    for number, node in prompt.items():
        # A length of one picks the first frame of a clip, whatever the clip's own length.
        fitting = {key: TINY[key] for key, value in node["inputs"].items() if key in TINY and value != 1}
        small[number] = {**node, "inputs": node["inputs"] | fitting}
    return changed(small, **values)


def with_files(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with the latent and every frame saved: by nodes "latent" and "frames"."""
    sampler, decoder = find(prompt, "StableVideoSampler"), find(prompt, "StableVideoDecode")
    latent = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "latent"}}
    frames = {"class_type": "SaveImage", "inputs": {"images": [decoder, 0], "filename_prefix": "frame"}}
    return {**prompt, "latent": latent, "frames": frames}


def find(prompt: Mapping[str, Any], kind: str) -> str:
    """The id of the one node of a kind."""
    (found,) = (number for number, node in prompt.items() if node["class_type"] == kind)
    return found


def saved_latent(comfy: ComfyUI, run: Run) -> Tensor:
    return load(comfy.fetch(run.files("latent")[0]))["latent_tensor"]


def saved_frames(comfy: ComfyUI, run: Run) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    return np.stack([np.asarray(picture(comfy.fetch(file))) for file in run.files("frames")])


def picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def write_still_checkpoint(path: Path) -> Path:
    """A file that ComfyUI takes for Stable Diffusion 1: one level of its UNet, its text encoder, a tiny autoencoder.

    All weights are zero, so the file is a header before a hole that takes no room. Needs the `comfy` fixture.
    """
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.taesd.taesd import TAESD

    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=1,
        channel_mult=(1,),
        num_heads=8,
        use_spatial_transformer=True,
        context_dim=768,
        transformer_depth=[1],
        transformer_depth_middle=1,
        transformer_depth_output=[1, 1],
        legacy=False,
        device=torch.device("meta"),
        operations=comfy.ops.disable_weight_init,
    )
    shapes = {f"model.diffusion_model.{key}": tuple(tensor.shape) for key, tensor in unet.state_dict().items()}
    shapes |= {f"first_stage_model.{key}": tuple(tensor.shape) for key, tensor in TAESD().state_dict().items()}
    return write_zeros(path, shapes | text_shapes())


def text_shapes() -> dict[str, tuple[int, ...]]:
    """CLIP-L's text encoder under Stable Diffusion 1's names."""
    stem, width = "cond_stage_model.transformer.text_model", 768
    square, wide = (width, width), (4 * width, width)
    layer = {f"self_attn.{part}_proj.weight": square for part in ("q", "k", "v", "out")}
    layer |= {"mlp.fc1.weight": wide, "mlp.fc2.weight": wide[::-1], "layer_norm1.weight": (width,)}
    layer["layer_norm2.weight"] = (width,)
    layer |= {key.replace("weight", "bias"): shape[:1] for key, shape in layer.items()}
    shapes = {f"{stem}.encoder.layers.{n}.{key}": shape for n in range(12) for key, shape in layer.items()}
    shapes |= {f"{stem}.final_layer_norm.{kind}": (width,) for kind in ("weight", "bias")}
    embeddings = {"token_embedding": (49408, width), "position_embedding": (77, width)}
    return shapes | {f"{stem}.embeddings.{name}.weight": shape for name, shape in embeddings.items()}


def write_zeros(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A safetensors file of half precision zeros."""
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path
