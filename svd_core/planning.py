"""Memory planning: what a render needs and how it would run within a given memory, computed before anything runs.

The memory of sampling is counted by running the network on the meta device, that of encoding and decoding by `decode`.
No choice changes a pixel. Library workspaces come on top, so a device should have about a quarter more than a plan
says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .config import JOINT_GUIDANCE_CELLS, PIXELS_PER_LATENT, ModelConfig, UNetConfig
from .decode.pictures import EncodePlan
from .decode.plan import DecodePlan, mebibytes
from .device_memory import has_own_memory
from .errors import InputError
from .live_bytes import LiveBytes
from .model.backend import Backend
from .model.clip_vision import CLIPVision
from .model.reuse import MOST_KEPT, kept_bytes
from .model.storage import STORES
from .model.transformer import FeedForward
from .model.unet import VideoUNet
from .model.vae import VideoVAE
from .model.vae_networks import PIXEL_CHANNELS
from .model.weights import visiting
from .motion import require_loop
from .settings import Settings, WeightsName

META = torch.device("meta")

MOST_BYTES_A_PIXEL = 2**10
"""Upper bound on the bytes held per pixel of the clip while rendering; the released UNet needs 240 in float32 for 25
frames of 1024x576."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one clip would run, and the peak bytes on the device in each stage, weights included."""

    stream_weights: bool
    joint_guidance: bool
    encode: EncodePlan
    decode: DecodePlan
    weight_bytes: int
    encode_bytes: int
    sample_bytes: int
    decode_bytes: int

    def report(self) -> str:
        """The plan as several lines, without a trailing newline."""
        return "\n".join(f"{name + ':':<10}{text}" for name, text in self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        weights = "UNet's on the host, layer by layer on the device" if self.stream_weights else "all on the device"
        yield "weights", f"{gibibytes(self.weight_bytes)} stay on the device ({weights})"
        yield "encoding", f"{gibibytes(self.encode_bytes)} at the peak, {encode_in_words(self.encode)}"
        guidance = "both branches in one pass" if self.joint_guidance else "one branch after the other"
        yield "sampling", f"{gibibytes(self.sample_bytes)} at the peak, {guidance}"
        yield "decoding", f"{gibibytes(self.decode_bytes)} at the peak, {decode_in_words(self.decode)}"
        hosted = {"encoding": self.encode.host_bytes, "decoding": self.decode.host_bytes}
        if any(hosted.values()):
            yield "host", ", ".join(f"{gibibytes(held)} while {stage}" for stage, held in hosted.items() if held)


@dataclass(frozen=True, slots=True)
class Job:
    """What to render and where. `device` META stands for any device with memory of its own; `reuse` says whether deep
    features are kept between steps, `interval` whether some steps are not guided, `weights` how the UNet's weights are
    stored. `window` is the number of frames that the network sees at once (None: all), `both_ends` whether it is called
    from both ends, and `loop` whether the last frame is dropped and the decode wraps around. Raises InputError for a
    window that is no part of the clip, and a loop that is too short."""

    config: ModelConfig
    frames: int
    width: int
    height: int
    dtype: torch.dtype = torch.float16
    device: torch.device = META
    reuse: bool = False
    weights: WeightsName = "whole"
    interval: bool = False
    window: int | None = None
    both_ends: bool = False
    loop: bool = False

    @classmethod
    def of(cls, config: ModelConfig, settings: Settings, **more: Any) -> Job:
        """The job of resolved settings; `more` are the fields that settings do not decide."""
        approximate = {"reuse": settings.reuse > 0, "interval": settings.guidance_interval is not None}
        return cls(config, settings.frames, settings.width, settings.height, **approximate, **more)

    def __post_init__(self) -> None:
        if self.window is not None and not 1 <= self.window <= self.frames:
            raise InputError(f"a window of {self.window} for a clip of {self.frames} frames: give 1 to {self.frames}")
        if self.loop:
            require_loop(self.frames)

    @property
    def size(self) -> tuple[int, int, int]:
        """(frames, h, w) in latent cells of what the network sees at once."""
        seen = self.frames if self.window is None else self.window
        return seen, self.height // PIXELS_PER_LATENT, self.width // PIXELS_PER_LATENT

    @property
    def joint(self) -> bool:
        return math.prod(self.size) <= JOINT_GUIDANCE_CELLS

    @property
    def latents(self) -> tuple[int, int, int, int]:
        """Shape of the latents that are decoded."""
        return self.frames - self.loop, self.config.vae.latent_channels, *self.size[1:]

    @property
    def still(self) -> tuple[int, int, int, int]:
        """Shape of the picture in pixels, each side rounded down to whole latent cells."""
        return 1, PIXEL_CHANNELS, *(PIXELS_PER_LATENT * side for side in self.size[1:])


def plan_render(job: Job, memory: int) -> Plan:
    """The fastest plan that renders a clip within `memory` bytes on the device.

    Raises InputError, naming the least memory that works, if there is none.
    """
    needed = []
    for streamed in _ways(job):
        needed.append(_needed(job, streamed))
        if needed[-1] <= memory:
            return _plan(job, streamed, memory)
    raise InputError(
        f"{gibibytes(memory, _down)} cannot hold {job.frames} frames of {job.width}x{job.height}: "
        f"give at least {gibibytes(min(needed))}, fewer frames or a smaller size"
    )


def plan_or_leanest(job: Job, free: int) -> Plan:
    """`plan_render` for memory that is only an estimate: returns the leanest plan instead of raising if none fits."""
    try:
        return plan_render(job, free)
    except InputError:
        streamed = _ways(job)[-1]
        return _plan(job, streamed, _needed(job, streamed))


def least_beside_weights(job: Job, spare: int) -> int:
    """The least bytes that rendering a clip needs in addition to loaded weights; 0, without counting, if an upper bound
    shows that they fit in `spare`."""
    if MOST_BYTES_A_PIXEL * math.prod((job.frames, job.height, job.width)) <= spare:
        return 0
    return _needed(job, False) - _resident(job, False)


def _ways(job: Job) -> tuple[bool, ...]:
    """Values of `streamed` to try, fastest first. Streaming the UNet's weights layer by layer saves nothing on a device
    that shares the host's memory."""
    return (False, True) if has_own_memory(job.device) else (False,)


def _needed(job: Job, streamed: bool) -> int:
    """The least device memory that renders a clip, in bytes."""
    encoding = _encoder(job.config).least_encode_plan(job.still, job.device).device_bytes
    vae = _vae(job.config, job.dtype)
    decoding = vae.least_plan(job.latents, job.latents[0], job.device, job.loop).device_bytes
    return _resident(job, streamed) + _handed_on(job) + max(encoding, _sampling(job, streamed), decoding)


def _plan(job: Job, streamed: bool, memory: int) -> Plan:
    resident = _resident(job, streamed)
    always = resident + _handed_on(job)
    working = memory - always
    encode = _encoder(job.config).encode_plan(job.still, job.device, budget=working)
    vae = _vae(job.config, job.dtype)
    decode = vae.decode_plan(job.latents, job.latents[0], job.device, budget=working, circular=job.loop)
    stages = (encode.device_bytes, _sampling(job, streamed), decode.device_bytes)
    return Plan(streamed, job.joint, encode, decode, resident, *(always + held for held in stages))


def _handed_on(job: Job) -> int:
    """Bytes passed from stage to stage and held by a sampler, in float32: the still twice, with and without noise, and
    about fourteen times the latents of the frames that the network sees at once. The others stay on the host, if that
    is another memory, until the decoder takes all once."""
    still = 3 * job.width * job.height
    here = job.size[0] if has_own_memory(job.device) else job.frames
    return torch.float32.itemsize * (2 * still + max(14 * here, job.frames) * math.prod(job.latents[1:]))


def _resident(job: Job, streamed: bool) -> int:
    unet, others = _weights(job.config, job.dtype, job.weights)
    return others if streamed else others + unet


def _sampling(job: Job, streamed: bool) -> int:
    how = {"joint": job.joint, "streamed": streamed, "weights": job.weights}
    once = sample_bytes(job.config.unet, job.size, job.dtype, **how)
    if not job.reuse:
        return once
    _, height, width = job.size
    return once + kept_bytes(_kept_rows(job), job.config.unet.level_channels[0], height, width, job.dtype.itemsize)


def _kept_rows(job: Job) -> int:
    """Frames whose features are kept from step to step: those of both guidance branches, from each end. A step that is
    not guided is another call than one that runs both branches in one pass. Of the windows of a longer clip as many
    calls as are kept at all, which one window after the other does not reach."""
    seen = job.size[0]
    if job.window is not None:
        return MOST_KEPT * seen * (2 if job.joint else 1)
    return seen * (3 if job.joint and job.interval else 2) * (2 if job.both_ends else 1)


@cache
def sample_bytes(
    config: UNetConfig,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    joint: bool,
    streamed: bool,
    weights: WeightsName = "whole",
) -> int:
    """Peak bytes of one UNet pass over (frames, h, w) latent cells in addition to resident weights, as counted on the
    meta device."""
    frames, height, width = size
    rows = 2 * frames if joint else frames
    unet = _unet(config, dtype, weights).requires_grad_(False)
    for layer in unet.modules():
        if isinstance(layer, FeedForward):
            layer.only_first_group = True
    shapes = (
        (rows, config.in_channels, height, width),
        (rows,),
        (rows, 1, config.context_dim),
        (rows, config.vector_dim),
    )
    given = [torch.empty(shape, dtype=dtype, device=META) for shape in shapes]
    guests = visiting(unet.layers(), META) if streamed else nullcontext()
    with torch.no_grad(), LiveBytes(unet) as live, guests:
        unet(*given, num_frames=frames)
    return live.peak


@cache
def _weights(config: ModelConfig, dtype: torch.dtype, weights: WeightsName) -> tuple[int, int]:
    """Bytes of the UNet's weights and of all others, among which the VAE's encoder is always float32."""
    backend = _backend(dtype)
    vae = _vae(config, dtype)
    encoder = sum(weight.numel() for weight in vae.encoder.parameters()) * (4 - dtype.itemsize)
    others = _bytes(vae) + encoder + _bytes(CLIPVision(config.clip_vision, backend=backend))
    return _bytes(_unet(config.unet, dtype, weights)), others


def _unet(config: UNetConfig, dtype: torch.dtype, weights: WeightsName) -> VideoUNet:
    unet = VideoUNet(config, backend=_backend(dtype))
    STORES[weights](unet)
    return unet


@cache
def _vae(config: ModelConfig, dtype: torch.dtype) -> VideoVAE:
    return VideoVAE(config.vae, backend=_backend(dtype))


def _encoder(config: ModelConfig) -> VideoVAE:
    """The VAE that encodes, which is always float32."""
    return _vae(config, torch.float32)


def _backend(dtype: torch.dtype) -> Backend:
    return Backend(attention=_fused, dtype=dtype, device=META)


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Stand-in that allocates as a fused attention kernel does; torch's own would count the score matrix here."""
    return torch.empty_like(q)


def _bytes(network: nn.Module) -> int:
    return sum(weight.nbytes for weight in network.parameters())


def encode_in_words(plan: EncodePlan) -> str:
    """User-facing description of what the device holds while encoding."""
    return "bands of the picture on the device" if plan.mode == "bands" else "the whole picture at once"


def decode_in_words(plan: DecodePlan) -> str:
    """User-facing description of what the device holds while decoding."""
    if plan.mode == "device":
        return f"the clip on the device, {plan.keep} frames of intermediate results kept"
    return "the clip on the host, " + ("a frame" if plan.mode == "host" else "bands of a frame") + " on the device"


def gibibytes(count: int, rounded: Callable[[float], int] = math.ceil) -> str:
    """A user-facing size. Round needed sizes up and given sizes down, or both might read the same in a message."""
    hundredths = rounded(count / 2**30 * 100)
    return f"{hundredths / 100:.2f} GiB" if hundredths or not count else mebibytes(count, rounded)


def _down(count: float) -> int:
    """Round down, tolerating the fraction of a byte that a size such as 0.3 GiB lost when converted to an integer."""
    return math.floor(count + 1e-7)
