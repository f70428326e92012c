"""GPU memory of LoRA finetuning, counted on the meta device without computing anything.

The network runs once without storage, and autograd reports which tensors it keeps for the backward pass. With
checkpointing, a block's tensors are freed and recomputed one block at a time, so the inputs of all blocks and the
largest block count. Not counted: gradients inside a block, workspaces, fragmentation and CUDA's own memory. Allow 3 GiB
for those.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from svd_core.checkpoint.load import of_encoder
from svd_core.config import ModelConfig
from svd_core.model.backend import Backend
from svd_core.model.clip_vision import CLIPVision
from svd_core.model.resblock import VideoResBlock
from svd_core.model.transformer import SpatialVideoTransformer
from svd_core.model.unet import VideoUNet
from svd_core.model.vae import VideoVAE

from .lora import LoRAConfig, add_lora

GIBIBYTE = 2**30
ADAM_BYTES = 4 * 5
"""Bytes per trained value: the value, its gradient, two moments and the average, in float32."""


class FlashAttention(torch.autograd.Function):
    """Stand-in that saves for the backward pass what a fused attention kernel saves (q, k, v, the output and one float
    per row), without computing a result."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out


@dataclass(frozen=True, slots=True)
class Requirement:
    """Bytes on the GPU, and the FLOPs of one step. weights: all frozen networks; trained: the update, its gradient,
    moments and average; kept: tensors kept for the backward pass, with or without checkpointing."""

    weights: int
    trained: int
    kept: int
    flops: float

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.kept


@dataclass(slots=True)
class _Tally:
    """Bytes that autograd keeps, by block. `known` are storages that were already counted, because blocks share
    tensors, or are weights, which are counted elsewhere."""

    known: set[int]
    alive: list[Tensor] = field(default_factory=list)
    current: str = ""
    by_block: dict[str, int] = field(default_factory=dict)
    inputs: int = 0

    def add(self, tensor: Tensor) -> Tensor:
        size = self._new(tensor)
        self.by_block[self.current] = self.by_block.get(self.current, 0) + size
        return tensor

    def enter(self, name: str, given: Tensor) -> None:
        self.current = name
        self.inputs += given.numel() * given.element_size()

    def leave(self) -> None:
        self.current = ""

    def _new(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata in self.known:
            return 0
        self.known.add(storage._cdata)
        self.alive.append(tensor)  # keep it alive: the address of a freed storage could be reused
        return storage.nbytes()


def requirement(model: ModelConfig, config: LoRAConfig, height: int, width: int) -> Requirement:
    """Requirement for one clip of config.frames pictures of height x width pixels, in bfloat16, but for the encoder of
    pictures, which is always in float32."""
    backend = Backend(device="meta", dtype=torch.bfloat16, attention=FlashAttention.apply)
    unet = VideoUNet(model.unet, backend=backend)
    frozen = (unet, VideoVAE(model.vae, backend=backend), CLIPVision(model.clip_vision, backend=backend))
    named = (each for network in frozen for each in network.named_parameters())
    weights = sum((4 if of_encoder(name) else 2) * parameter.numel() for name, parameter in named)
    added = add_lora(unet, config)
    trained = sum(layer.up.numel() + layer.down.numel() for layer in added.values())
    tally = _run(unet, config.frames, height // 8, width // 8)
    kept = _checkpointed(tally) if config.checkpointing else sum(tally.by_block.values())
    forward = _flops(model, config.frames, height // 8, width // 8)
    # Frozen weights have no gradient, so the backward pass costs as much as a forward one.
    passes = 3 if config.checkpointing else 2
    return Requirement(weights, ADAM_BYTES * trained, kept, passes * forward)


def _checkpointed(tally: _Tally) -> int:
    outside = tally.by_block.get("", 0)
    return tally.inputs + outside + max(size for name, size in tally.by_block.items() if name)


def _run(unet: VideoUNet, frames: int, rows: int, columns: int) -> _Tally:
    tally = _Tally({parameter.untyped_storage()._cdata for parameter in unet.parameters()})
    with _watched(unet, tally), saved_tensors_hooks(tally.add, lambda tensor: tensor):
        unet(**_inputs(unet, frames, rows, columns))
    return tally


@contextmanager
def _watched(unet: VideoUNet, tally: _Tally) -> Iterator[None]:
    hooks = []
    for name, module in unet.named_modules():
        if isinstance(module, VideoResBlock | SpatialVideoTransformer):
            hooks.append(module.register_forward_pre_hook(_enterer(tally, name)))
            hooks.append(module.register_forward_hook(lambda *_: tally.leave()))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _enterer(tally: _Tally, name: str) -> Any:
    def enter(_: nn.Module, given: tuple[Any, ...]) -> None:
        tally.enter(name, given[0])

    return enter


def _inputs(unet: VideoUNet, frames: int, rows: int, columns: int) -> dict[str, Any]:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    config = unet.config
    return {
        "x": empty(frames, config.in_channels, rows, columns),
        "c_noise": empty(frames),
        "context": empty(frames, 1, config.context_dim),
        "vector": empty(frames, config.vector_dim),
        "num_frames": frames,
    }


def _flops(model: ModelConfig, frames: int, rows: int, columns: int) -> float:
    """FLOPs of one forward pass; a multiply-add counts as two."""
    unet = VideoUNet(model.unet, backend=Backend(device="meta", dtype=torch.bfloat16))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(**_inputs(unet, frames, rows, columns))
    return counter.get_total_flops()


def in_words(found: Requirement, tflops: float = 70, share: float = 0.4) -> str:
    """A one-line summary; the time assumes a GPU of `tflops` dense bf16 TFLOP/s at utilisation `share`."""
    parts = {"weights": found.weights, "LoRA and AdamW": found.trained, "activations": found.kept}
    listed = ", ".join(f"{name} {size / GIBIBYTE:.1f}" for name, size in parts.items())
    seconds = found.flops / (tflops * 1e12 * share)
    work = f"{found.flops / 1e12:.0f} TFLOP a step, {seconds:.1f} s at {share:.0%} of {tflops:g} TFLOP/s"
    return f"{found.total / GIBIBYTE:.1f} GiB ({listed}); {work}"
