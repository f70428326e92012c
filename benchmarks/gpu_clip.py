"""Complete clips at the released size on a CUDA device, with random weights: the time of each stage, and the behaviour
with only part of the GPU's memory available."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from svd_core.clip import Progress
from svd_core.config import VARIANTS, ModelConfig
from svd_core.model.backend import Backend
from svd_core.model.clip_vision import CLIPVision
from svd_core.model.layout import laid_out
from svd_core.model.unet import VideoUNet
from svd_core.model.vae import VideoVAE
from svd_core.pipeline import StableVideo
from svd_core.settings import Settings
from tools.random_weights import random_like

GIB = 2**30
CARDS = (24, 12, 8, 6, 4)
"""Memory in GiB of the simulated GPUs."""

STAGES = ("condition", "sample", "decode")


@dataclass(frozen=True, slots=True)
class ClipTime:
    """Seconds of each stage and of the whole, the median of several clips."""

    case: str
    stages: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class OnCard:
    """One clip with limited GPU memory: planned and actual peak memory, and whether the frames are bit-identical to
    those with all memory available."""

    card_gib: float
    planned_gib: float
    taken_gib: float
    seconds: float
    weights: str
    decode: str
    same: bool


def random_model(
    device: str, dtype: torch.dtype, config: ModelConfig | None = None, unet_device: str | None = None
) -> StableVideo:
    """A model with random weights, set up as by `load_checkpoint`."""
    config = config or ModelConfig(variant=VARIANTS["svd_xt"])
    backend = Backend(device="meta", dtype=dtype)
    unet = _filled(VideoUNet(config.unet, backend=backend), device).to(unet_device or device)
    vae = _filled(VideoVAE(config.vae, backend=backend), device)
    vae.encoder.float()
    if config.vae.encoder_quant:
        vae.quant_conv.float()
    clip_vision = _filled(CLIPVision(config.clip_vision, backend=backend), device)
    return StableVideo(config, unet, vae, clip_vision, torch.device(device), dtype)


def _filled(network: nn.Module, device: str) -> nn.Module:
    generator = torch.Generator(device).manual_seed(0)
    weights = {
        name: laid_out(random_like(name, like, generator).to(like.dtype)) for name, like in network.state_dict().items()
    }
    network.load_state_dict(weights, strict=True, assign=True)
    return network.requires_grad_(False).eval()


def still(height: int, width: int) -> np.ndarray:
    return np.linspace(0, 1, height * width * 3, dtype=np.float32).reshape(height, width, 3)


def clip_time(svd: StableVideo, steps: int, clips: int = 2) -> ClipTime:
    """Wall time per stage, after a short clip for kernel probes and warm-up."""
    variant = svd.config.variant
    svd.render(still(variant.height, variant.width), Settings(steps=2))
    times = [_stages(svd, steps) for _ in range(clips)]
    stages = {name: statistics.median(each[name] for each in times) for name in STAGES}
    case = f"{variant.frames} frames of {variant.width}x{variant.height}, {steps} steps"
    return ClipTime(case, stages, statistics.median(sum(each.values()) for each in times))


def _stages(svd: StableVideo, steps: int) -> dict[str, float]:
    """Seconds of each stage. Every stage ends with its result on the host, so no explicit synchronisation is needed."""
    variant = svd.config.variant
    ends = [time.perf_counter()]

    def note(progress: Progress) -> None:
        if progress.index == progress.total:
            ends.append(time.perf_counter())

    svd.render(still(variant.height, variant.width), Settings(steps=steps), callback=note)
    ends[-1] = time.perf_counter()  # copying the frames to an array counts as decoding
    return {name: end - start for name, (start, end) in zip(STAGES, pairwise(ends), strict=True)}


@contextmanager
def smaller_card(gib: float, resident: int) -> Iterator[int]:
    """Context that blocks all but `gib` GiB of the GPU's memory; the `resident` bytes already in use count towards
    `gib`. Yields the number of blocked bytes."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = max(0, free + resident - int(gib * GIB))
    blocker: Tensor | None = torch.empty(taken, dtype=torch.uint8, device="cuda")
    try:
        yield taken
    finally:
        del blocker
        torch.cuda.empty_cache()


def card_rows(
    svd: StableVideo, cards: Sequence[float] = CARDS, steps: int = 1, tell: Callable[[OnCard], None] = print
) -> list[OnCard]:
    """One row per GPU size. The UNet's weights start on the host, as for a file loaded with `stream_weights`."""
    settings = Settings(steps=steps)
    expected = _render(svd, settings)
    rows = []
    for gib in cards:
        rows.append(_on_card(svd, gib, settings, expected))
        tell(rows[-1])
    return rows


def _render(svd: StableVideo, settings: Settings) -> np.ndarray:
    frames = svd.render(still(svd.config.variant.height, svd.config.variant.width), settings).frames
    svd.unet.to("cpu")
    return frames


def _on_card(svd: StableVideo, gib: float, settings: Settings, expected: np.ndarray) -> OnCard:
    svd.unet.to("cpu")
    with smaller_card(gib, svd._resident_bytes()) as blocked:
        variant = svd.config.variant
        plan = svd.plan(variant.frames, variant.width, variant.height)
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        frames = _render(svd, settings)
        seconds = time.perf_counter() - start
        taken = torch.cuda.max_memory_allocated() - blocked
    planned = max(plan.encode_bytes, plan.sample_bytes, plan.decode_bytes)
    weights = "visit" if plan.stream_weights else "stay"
    same = bool(np.array_equal(frames, expected))
    return OnCard(gib, planned / GIB, taken / GIB, seconds, weights, plan.decode.mode, same)


def clip_table(times: Sequence[ClipTime], cards: Sequence[OnCard]) -> list[str]:
    lines = ["| clip | condition s | sample s | decode s | whole s |", "|---|---:|---:|---:|---:|"]
    for row in times:
        stages = " | ".join(f"{row.stages[name]:.2f}" for name in STAGES)
        lines.append(f"| {row.case} | {stages} | {row.seconds:.2f} |")
    lines += [
        "",
        "| card GiB | planned GiB | taken GiB | s | weights | decode | same bits |",
        "|---:|" + "---:|" * 3 + "---|" * 3,
    ]
    for card in cards:
        numbers = f"{card.card_gib:g} | {card.planned_gib:.2f} | {card.taken_gib:.2f} | {card.seconds:.1f}"
        lines.append(f"| {numbers} | {card.weights} | {card.decode} | {'yes' if card.same else 'NO'} |")
    return lines
