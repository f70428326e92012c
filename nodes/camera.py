"""The node that moves the camera: it shows the model its own view of the picture in every frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..svd_core.config import PIXELS_PER_LATENT
from ..svd_core.errors import InputError
from ..svd_core.motion import CameraMove, check_depth, view_latents
from ..svd_core.motion.camera import MAX_PAN, MAX_ROLL, MAX_ZOOM
from .checks import require_vae
from .conditioning import flattened, require_picture
from .inputs import checked
from .motion import frames_of_one_clip, require_one_picture
from .widgets import vae_input

if TYPE_CHECKING:
    from comfy.sd import VAE
    from torch import Tensor


class StableVideoCamera(io.ComfyNode):
    """Pans, zooms and turns the camera along the clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoCamera",
            display_name="Stable Video Camera",
            category="video/stable video",
            description=(
                "Moves the camera over the picture while the model moves what is in it. Put it between conditioning "
                "and sampler; any model and sampler will do. Takes no more steps, and encodes one view for each frame."
            ),
            search_aliases=["camera control", "pan", "zoom", "dolly", "camera motion", "ken burns", "motionctrl"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="From Stable Video Conditioning."),
                vae_input(),
                io.Latent.Input("latent", tooltip="From Stable Video Conditioning; says how long the clip is."),
                io.Image.Input("image", tooltip="The fitted picture that the conditioning was given."),
                *_way_inputs(),
                io.Boolean.Input("ease", default=False, tooltip="Turn on to start and end gently, not evenly."),
                io.Mask.Input(
                    "depth",
                    optional=True,
                    tooltip="Depth of the picture, white near: near things then pass faster. Any depth node makes one.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="positive", tooltip="For the sampler.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        positive: list,
        vae: VAE,
        latent: dict[str, Any],
        image: Tensor,
        pan_x: float,
        pan_y: float,
        zoom: float,
        roll: float,
        ease: bool,
        depth: Tensor | None = None,
    ) -> io.NodeOutput:
        frames = frames_of_one_clip(latent)
        require_vae(vae)
        height, width = (PIXELS_PER_LATENT * side for side in latent["samples"].shape[-2:])
        require_one_picture(image, height, width)
        require_picture(image)
        nearness = None if depth is None else one_depth(depth, height, width)
        first = one_still(positive, latent["samples"])
        require_length(positive, frames)
        move = CameraMove(pan_x, pan_y, zoom, roll, ease)
        pixels = flattened(image).cpu().movedim(-1, 1) * 2 - 1
        views = view_latents(first, pixels, move, frames, _encoder(vae, frames), nearness)[0]
        shown = {"concat_latent_image": views, "num_video_frames": frames}
        return io.NodeOutput([[context, {**held, **shown}] for context, held in positive])


def _way_inputs() -> list[io.Input]:
    """The widgets that say where the camera is at the end of the clip."""
    share = {"default": 0.0, "min": -MAX_PAN, "max": MAX_PAN, "step": 0.05}
    return [
        io.Float.Input(
            "pan_x", **share, tooltip="Widths that the camera travels to the right, below 0 left. 0.2 is usual."
        ),
        io.Float.Input("pan_y", **share, tooltip="Heights that the camera travels down, below 0 up."),
        io.Float.Input(
            "zoom",
            default=1.0,
            min=1 / MAX_ZOOM,
            max=MAX_ZOOM,
            step=0.05,
            tooltip="How much larger the picture's middle is at the end: 1.2 comes closer, 0.8 goes back, 1 does not.",
        ),
        io.Float.Input(
            "roll",
            default=0.0,
            min=-MAX_ROLL,
            max=MAX_ROLL,
            step=1.0,
            tooltip="Degrees that the camera turns clockwise; the picture turns the other way.",
        ),
    ]


def one_depth(depth: Tensor, height: int, width: int) -> Tensor:
    """The depth map (H, W) of a MASK. Raises InputError for several, or for another size."""
    maps = depth.reshape(-1, *depth.shape[-2:])
    if len(maps) != 1:
        raise InputError(f"{len(maps)} depth maps for one picture: connect the depth of the fitted picture alone")
    nearness = maps[0].float().cpu()
    check_depth(nearness, height, width)
    return nearness


def one_still(positive: list, samples: Tensor) -> Tensor:
    """The latent (1, 4, h, w) of the one still that all entries of positive show. Raises InputError."""
    stills = [held.get("concat_latent_image") for _, held in positive]
    if not stills or stills[0] is None:
        raise InputError("positive holds no picture: connect positive of Stable Video Conditioning")
    first = stills[0]
    if any(each is None or not torch.equal(each, first) for each in stills[1:]):
        raise InputError("positive shows several pictures: move the camera over one, before they are combined")
    if len(first) != 1:
        raise InputError(
            f"positive shows {len(first)} pictures, or a camera's views: connect that of Stable Video Conditioning for "
            "one picture, through one Stable Video Camera"
        )
    if first.shape[-2:] != samples.shape[-2:]:
        given, needed = (
            f"{PIXELS_PER_LATENT * each.shape[-1]}x{PIXELS_PER_LATENT * each.shape[-2]}" for each in (first, samples)
        )
        raise InputError(f"positive is for {given} pixels and the latent for {needed}: take both from one conditioning")
    return first.float().cpu()


def require_length(positive: list, frames: int) -> None:
    """Raise InputError if an entry of positive is for clips of another length."""
    for wanted in (held.get("num_video_frames", frames) for _, held in positive):
        if wanted != frames:
            raise InputError(
                f"the latent is for a clip of {frames} frames and positive for {wanted}: take both from one Stable "
                "Video Conditioning"
            )


def _encoder(vae: VAE, views: int) -> Callable[[Tensor], Tensor]:
    """Pixels (1, 3, H, W) in [-1, 1] -> unscaled latents on the CPU. Shows progress, and can be interrupted."""
    bar = comfy.utils.ProgressBar(views)

    def encode(pixels: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        latent = vae.encode((pixels.movedim(1, -1) + 1) / 2).float().cpu()
        bar.update(1)
        return latent

    return encode
