"""The node that decodes a LATENT into frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..svd_core.errors import InputError, precision_notices
from ..svd_core.motion import require_loop
from .bridge.plan import decoding_in_words
from .bridge.vae import StableVideoVAE
from .checks import damaged_frames, require_latents, require_vae, show, whole_clips
from .finish import finished, is_loop
from .inputs import checked

if TYPE_CHECKING:
    from comfy.sd import VAE
    from torch import Tensor

    from ..svd_core.decode.plan import DecodePlan


WHOLE = "connect the whole clip, and choose frames from the images that come out"


class StableVideoDecode(io.ComfyNode):
    """Turns latents into frames, without seams."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoDecode",
            display_name="Stable Video Decode",
            category="video/stable video",
            description=(
                "Turns the sampled latent into frames. With the VAE of Load Stable Video the frames are the same "
                "whatever memory is free: no seams, no flicker between chunks. Clips of a batch follow one another."
            ),
            search_aliases=["svd decode", "vae decode", "video decode", "latent to frames"],
            inputs=[
                io.Latent.Input("latent", tooltip="From a sampler."),
                io.Vae.Input("vae", tooltip="That of Load Stable Video decodes exactly; a native one works too."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames of the clip, or of all clips in turn.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(cls, latent: dict[str, Any], vae: VAE) -> io.NodeOutput:
        samples = latent["samples"]
        require_latents(samples)
        require_vae(vae)
        num_frames = latent.get("num_video_frames", samples.shape[0])
        clips = whole_clips(samples.shape[0], num_frames, WHOLE)
        require_finite(samples)
        if is_loop(latent):
            require_whole_loop(samples.shape[0], clips)
        images, said = decode_finished(vae, samples, num_frames, latent, partial(show, cls))
        show(cls, *said)
        return io.NodeOutput(images)


def decode_finished(
    vae: VAE, samples: Tensor, num_frames: int, latent: dict[str, Any], tell: Callable[..., None]
) -> tuple[Tensor, list[str]]:
    """Images from `decode`, finished as the LATENT asks (see `finish`), and sentences about them. `latent` is the one
    that the samples come from."""
    loop = is_loop(latent)
    if loop:
        samples, num_frames = samples[:-1], num_frames - 1  # the last frame repeats the first
    images = decode(vae, samples, num_frames, tell, circular=loop)
    require_finite_images(images)
    return finished(images, latent)


def decode(vae: VAE, samples: Tensor, num_frames: int, tell: Callable[..., None], *, circular: bool = False) -> Tensor:
    """Latents (B * T, 4, h, w), unscaled -> images (B * T, H, W, 3). A native VAE decodes clip by clip and ignores
    `circular`. `tell` gets the plan before the work, and again with any frames that had to be decoded again."""
    if not isinstance(vae, StableVideoVAE):
        return torch.cat([vae.decode(clip) for clip in samples.split(num_frames)])
    said: list[str] = []

    def planned(plan: DecodePlan) -> None:
        said.append(decoding_in_words(plan))
        tell(*said)

    notices: list[str] = []
    with precision_notices(notices.append):
        images = vae.decode_clips(samples, num_frames, planned, circular=circular)
    if notices:
        tell(*said, *notices)
    return images


def require_whole_loop(frames: int, clips: int) -> None:
    """Raise InputError unless the latent is one clip that can loop."""
    if clips > 1:
        raise InputError(f"the latent holds {clips} clips and is marked as a loop: decode one loop at a time")
    require_loop(frames)


def require_finite(samples: Tensor) -> None:
    bad = damaged_frames(samples)
    if bad:
        raise InputError(
            f"the latent's frames {bad} hold NaN or infinity and cannot be decoded: sample again, and if it stays so "
            "start ComfyUI with --bf16-unet or --fp32-unet"
        )


def require_finite_images(images: Tensor) -> None:
    bad = damaged_frames(images)
    if bad:
        raise InputError(
            f"decoded frames {bad} hold NaN or infinity, so the VAE overflowed: start ComfyUI with --fp32-vae"
        )
