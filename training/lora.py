"""LoRA finetuning of a released checkpoint on a folder of clips (Hu et al., arXiv 2106.09685).

alpha / rank * up(down(x)) is added to each chosen projection W x; up starts at zero, and only up and down are trained.
The file uses the names by which ComfyUI's LoRA loader finds the weights of its models:

    diffusion_model.<module>.lora_up.weight, .lora_down.weight, .alpha

For memory and time see `training.memory`, or `python -m training lora --help`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from svd_core.checkpoint import load_modules
from svd_core.errors import InputError
from svd_core.model.resblock import VideoResBlock
from svd_core.model.transformer import SpatialVideoTransformer
from svd_core.model.unet import VideoUNet
from svd_core.recipe import sha256_of

from .checkpoint import as_half, save_tensors
from .data import ClipFolder
from .distributed import Group
from .limits import check_noise, check_optimisation
from .loop import Machine, Place, Run, alone, describe
from .randomness import generator_for
from .recipe import Noise, Optimisation
from .video import VideoObjective, VideoSamples

Layers = Literal["spatial", "temporal", "both"]
DTypeName = Literal["float32", "bfloat16"]

DTYPES: dict[DTypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODEL_PREFIX = "diffusion_model."

_STACKS: dict[Layers, tuple[str, ...]] = {
    "spatial": ("transformer_blocks",),
    "temporal": ("time_stack",),
    "both": ("transformer_blocks", "time_stack"),
}
_PROJECTIONS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_v", "attn2.to_out.0")
"""Projections to train. attn2's queries and keys are left out: with one token of context they have no effect
(spec 11a)."""


@dataclass(frozen=True, slots=True)
class LoRAConfig:
    """LoRA settings. `rank` of the update, whose scale is `alpha` / `rank`; `dtype` of the frozen networks;
    `checkpointing` computes each block twice, to hold one block's intermediate results at a time."""

    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(steps=1000, batch=1, learning_rate=1e-4, decay="constant", ema=0.99)
    )
    noise: Noise = field(default_factory=lambda: Noise(p_mean=1.0, posterior="sample"))
    rank: int = 16
    alpha: float = 16.0
    layers: Layers = "both"
    frames: int = 14
    motion_bucket: int = 127
    dtype: DTypeName = "float32"
    checkpointing: bool = True
    seed: int = 0

    def check(self) -> None:
        """Raise InputError for the first invalid value."""
        for name in ("rank", "alpha", "frames"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(
                    f"{name} {getattr(self, name)} is not above 0, or not finite: 16 is usual for a rank, 14 for frames"
                )
        check_noise(self.noise, "noise")
        check_optimisation(self.optimisation, "optimisation")


class LoRALinear(nn.Module):
    """A frozen linear layer with a low-rank update, stored in float32 and computed in the dtype of the input."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        down = torch.empty(rank, base.in_features)
        nn.init.kaiming_uniform_(down, a=5**0.5, generator=generator)
        self.down = nn.Parameter(down.to(base.weight.device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (..., inputs) -> (..., outputs)."""
        low = nn.functional.linear(tokens, self.down.to(tokens))
        return self.base(tokens) + self.scale * nn.functional.linear(low, self.up.to(tokens))


def targets(unet: VideoUNet, layers: Layers) -> Iterator[str]:
    """Names of the projections to train."""
    for name, module in unet.named_modules():
        inside = any(f".{stack}." in name for stack in _STACKS[layers])
        if inside and name.endswith(_PROJECTIONS) and isinstance(module, nn.Linear):
            yield name


def add_lora(unet: VideoUNet, config: LoRAConfig) -> dict[str, LoRALinear]:
    """Freeze the network and put a `LoRALinear` around each target, in place. Returns them by the target's name."""
    unet.requires_grad_(False)
    added = {}
    for name in list(targets(unet, config.layers)):
        parent, _, leaf = name.rpartition(".")
        generator = generator_for(config.seed, "lora", name)
        added[name] = LoRALinear(unet.get_submodule(name), config.rank, config.alpha, generator)
        setattr(unet.get_submodule(parent), leaf, added[name])
    return added


def checkpoint_blocks(unet: VideoUNet) -> VideoUNet:
    """Keep only the input of each residual block and transformer for the backward pass, which recomputes the block.
    Changes memory and time, not the result. Returns the network."""
    for module in unet.modules():
        if isinstance(module, VideoResBlock | SpatialVideoTransformer):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)
    return unet


def lora_tensors(added: Mapping[str, LoRALinear], alpha: float) -> dict[str, Tensor]:
    """The file's tensors, in float16 except alpha."""
    tensors = {}
    for name, layer in added.items():
        stem = MODEL_PREFIX + name
        tensors[f"{stem}.lora_up.weight"] = as_half(f"{stem}.lora_up", layer.up)
        tensors[f"{stem}.lora_down.weight"] = as_half(f"{stem}.lora_down", layer.down)
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


def train_lora(
    path: str | Path, clips: ClipFolder, config: LoRAConfig, folder: Path, machine: Machine, group: Group
) -> Run:
    """Train on a checkpoint that `svd_core` opens and write `lora.safetensors` to the folder. Raises CheckpointError if
    the checkpoint cannot be opened, InputError for values out of range."""
    config.check()
    with alone(Place(folder, "lora"), group):
        run, added = lora_run(path, clips, config, folder, group)
        run.train(machine, lambda run: _keep(run, added, config))
    return run


def lora_run(
    path: str | Path, clips: ClipFolder, config: LoRAConfig, folder: Path, group: Group
) -> tuple[Run, dict[str, LoRALinear]]:
    """The run, at its first step or resumed from the folder's state, and its `LoRALinear` layers by name."""
    dtype = DTYPES[config.dtype]
    modules = load_modules(path, device=group.device, dtype=dtype)
    added = add_lora(modules.unet, config)
    if config.checkpointing:
        checkpoint_blocks(modules.unet)
    objective = VideoObjective(modules.unet, modules.clip_vision.requires_grad_(False), modules.vae.eval(), dtype)
    samples = VideoSamples(clips, config.noise, modules.config.unet.vector_dim, config.seed)
    files = {file.path.name: [file.digest, file.fps] for file in clips.files}
    base = {"checkpoint": sha256_of(Path(path)), "clips": files, "size": list(clips.size)}
    configuration = describe("lora", lora=config, **base)
    run = Run(objective, samples, config.optimisation, configuration, Place(folder, "lora"), group)
    return run, added


def _keep(run: Run, added: Mapping[str, LoRALinear], config: LoRAConfig) -> None:
    note = {"ss_network_dim": str(config.rank), "ss_network_alpha": str(config.alpha), "format": "pt"}
    with run.averaged():
        save_tensors(run.place.weights, lora_tensors(added, config.alpha), note)


def with_dtype(config: LoRAConfig, device: str) -> LoRAConfig:
    """The config with bfloat16 on a GPU, float32 elsewhere."""
    name: DTypeName = "bfloat16" if device.startswith("cuda") else "float32"
    return dataclasses.replace(config, dtype=name)
