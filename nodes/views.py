"""Nodes that show the model a picture of its own in every frame: under a moving camera, or with a thing on its way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..svd_core.config import PIXELS_PER_LATENT
from ..svd_core.errors import InputError
from ..svd_core.motion import CameraMove, ObjectMove, dragged, filmed, view_latents
from ..svd_core.moves import MAX_ROLL, MAX_SCALE, MAX_TURN, MAX_WAY, MAX_ZOOM
from .checks import require_vae
from .conditioning import flattened, require_picture
from .inputs import checked
from .motion import frames_of_one_clip
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
                *_shown_inputs(),
                *_camera_inputs(),
                io.Boolean.Input("ease", default=False, tooltip="Turn on to start and end gently, not evenly."),
                io.Mask.Input(
                    "depth",
                    optional=True,
                    tooltip="Depth of the picture, white near: near things then pass faster. Any depth node makes one.",
                ),
            ],
            outputs=_shown_outputs(),
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
        move = CameraMove(pan_x, pan_y, zoom, roll, ease)
        near = None if depth is None else depth.float().cpu().reshape(-1, *depth.shape[-2:])
        return shown(positive, vae, latent, image, partial(_filmed, move, near))


class StableVideoDrag(io.ComfyNode):
    """Sends a painted thing on a way of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoDrag",
            display_name="Stable Video Drag",
            category="video/stable video",
            description=(
                "Paint a thing and say where it goes; the model draws how. Several follow each other by views, and a "
                "camera comes last. Takes no more steps, and encodes one view for each frame."
            ),
            search_aliases=["drag", "trajectory", "move object", "motion direction", "motion brush", "dragnuwa"],
            inputs=[
                *_shown_inputs(),
                io.Mask.Input("mask", tooltip="The thing in white, at the picture's size."),
                *_drag_inputs(),
                io.Boolean.Input("ease", default=False, tooltip="Turn on to start and end gently, not evenly."),
            ],
            outputs=_shown_outputs(),
        )

    @classmethod
    @checked
    def execute(
        cls,
        positive: list,
        vae: VAE,
        latent: dict[str, Any],
        image: Tensor,
        mask: Tensor,
        right: float,
        down: float,
        scale: float,
        turn: float,
        ease: bool,
    ) -> io.NodeOutput:
        move = ObjectMove(right, down, scale, turn, ease)
        painted = one_mask(mask)
        return shown(positive, vae, latent, image, partial(_dragged, move, painted))


# Sockets and widgets


def _shown_inputs() -> list[io.Input]:
    return [
        io.Conditioning.Input("positive", tooltip="From Stable Video Conditioning."),
        vae_input(),
        io.Latent.Input("latent", tooltip="From Stable Video Conditioning; says how long the clip is."),
        io.Image.Input(
            "image",
            tooltip="The fitted picture that the conditioning was given, or views of another node of this kind.",
        ),
    ]


def _shown_outputs() -> list[io.Output]:
    return [
        io.Conditioning.Output(display_name="positive", tooltip="For the sampler."),
        io.Image.Output(
            display_name="views",
            tooltip="What each frame is shown: to look at, or for the image of another node of this kind.",
        ),
    ]


def _camera_inputs() -> list[io.Input]:
    """The widgets that say where the camera is at the end of the clip."""
    share = {"default": 0.0, "min": -MAX_WAY, "max": MAX_WAY, "step": 0.05}
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


def _drag_inputs() -> list[io.Input]:
    """The widgets that say where the thing is at the end of the clip."""
    share = {"default": 0.0, "min": -MAX_WAY, "max": MAX_WAY, "step": 0.05}
    return [
        io.Float.Input("right", **share, tooltip="Widths of the picture that it goes to the right, below 0 left."),
        io.Float.Input("down", **share, tooltip="Heights of the picture that it goes down, below 0 up."),
        io.Float.Input(
            "scale",
            default=1.0,
            min=1 / MAX_SCALE,
            max=MAX_SCALE,
            step=0.05,
            tooltip="How much larger it is at the end: 1.5 comes closer, 0.7 goes away.",
        ),
        io.Float.Input(
            "turn", default=0.0, min=-MAX_TURN, max=MAX_TURN, step=5.0, tooltip="Degrees that it turns clockwise."
        ),
    ]


# Checks and values for the nodes


def _filmed(move: CameraMove, depth: Tensor | None, pictures: Tensor, frames: int) -> Tensor:
    return filmed(pictures, move, frames, depth, watch=_stop_if_asked)


def _dragged(move: ObjectMove, mask: Tensor, pictures: Tensor, frames: int) -> Tensor:
    return dragged(pictures, mask, move, frames, watch=_stop_if_asked)


def _stop_if_asked() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def shown(
    positive: list,
    vae: VAE,
    latent: dict[str, Any],
    image: Tensor,
    moved: Callable[[Tensor, int], Tensor],
) -> io.NodeOutput:
    """positive with a view for each frame, and the views (T, H, W, 3). moved: pictures (1 or T, 3, H, W) in [-1, 1] and
    T -> views (T, 3, H, W). Raises InputError for what does not fit together."""
    frames = frames_of_one_clip(latent)
    require_vae(vae)
    first = one_still(positive, latent["samples"])
    require_length(positive, frames)
    require_picture(image)
    require_pictures(image, frames, *(PIXELS_PER_LATENT * side for side in first.shape[-2:]))
    views = moved(flattened(image).cpu().movedim(-1, 1) * 2 - 1, frames)
    latents = view_latents(first, views, _encoder(vae, frames))[0]
    told = {"concat_latent_image": latents, "num_video_frames": frames}
    entries = [[context, {**held, **told}] for context, held in positive]
    return io.NodeOutput(entries, (views.movedim(1, -1) + 1) / 2)


def require_pictures(image: Tensor, frames: int, height: int, width: int) -> None:
    """Raise InputError unless image is one picture of the clip's size, or one for each frame."""
    if len(image) not in (1, frames) or image.shape[1:3] != (height, width):
        count, given_height, given_width = image.shape[:3]
        raise InputError(
            f"{count} pictures of {given_width}x{given_height} for {frames} frames of {width}x{height}: connect the "
            "one fitted picture that the conditioning was given, or views of a node of this kind"
        )


def one_mask(mask: Tensor) -> Tensor:
    """The mask (H, W) of a MASK. Raises InputError for several."""
    masks = mask.float().cpu().reshape(-1, *mask.shape[-2:])
    if len(masks) != 1:
        raise InputError(f"{len(masks)} masks for one thing: connect one, where the thing is in the picture")
    return masks[0]


def one_still(positive: list, samples: Tensor) -> Tensor:
    """The latent (1, 4, h, w) of the one still that all entries of positive show. Raises InputError."""
    stills = [held.get("concat_latent_image") for _, held in positive]
    if not stills or stills[0] is None:
        raise InputError("positive holds no picture: connect positive of Stable Video Conditioning")
    first = stills[0]
    if any(each is None or not torch.equal(each, first) for each in stills[1:]):
        raise InputError("positive shows several pictures: move what it shows before conditionings are combined")
    if len(first) != 1:
        raise InputError(
            f"positive shows {len(first)} pictures: connect that of Stable Video Conditioning itself, for one picture; "
            "nodes that move it follow each other by views and image"
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
        _stop_if_asked()
        latent = vae.encode((pixels.movedim(1, -1) + 1) / 2).float().cpu()
        bar.update(1)
        return latent

    return encode
