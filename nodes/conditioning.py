"""The node that turns a picture into native CONDITIONING and LATENT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..svd_core.conditioning import MicroConditioning, augment, draw_noise, warnings_for
from ..svd_core.config import PIXELS_PER_LATENT
from ..svd_core.errors import InputError
from ..svd_core.media import as_image
from ..svd_core.settings import MAX_FRAMES, SIZE_MULTIPLE
from .bridge.clip_vision import embed
from .bridge.variant import vae_variant
from .checks import require_vae, show
from .inputs import checked
from .widgets import augmentation_input, motion_bucket_input, seed_input, vae_input

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel
    from comfy.sd import VAE
    from torch import Tensor

    from ..svd_core.config import Variant


class StableVideoConditioning(io.ComfyNode):
    """Tells the model which picture to animate, and how."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoConditioning",
            display_name="Stable Video Conditioning",
            category="video/stable video",
            description=(
                "Shows the model the picture and says how long the clip is and how much it moves. A batch of pictures "
                "gives a batch of clips. The outputs fit any sampler."
            ),
            search_aliases=["svd", "svd img2vid conditioning", "image to video", "animate image", "motion bucket"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="From the video checkpoint."),
                vae_input(),
                io.Image.Input(
                    "image",
                    tooltip="First frame, at the size of the clip: Fit Picture brings any picture to it.",
                ),
                *_length_inputs(),
                motion_bucket_input("How much moves: near 0 almost nothing, 127 usual, above 255 things come apart."),
                augmentation_input(
                    "Noise on the picture. More lets the clip depart from it and move more; from 0.2 on details "
                    "and faces change.",
                    rounded_to=0.0001,
                ),
                seed_input("Of the noise on the picture. Another one varies small details of the same scene."),
                io.Combo.Input(
                    "numerics",
                    options=list(NUMERICS),
                    default="reference",
                    advanced=True,
                    tooltip=(
                        "Whose results to match. comfyui doubles the noise and shows the model the middle square of "
                        "the picture only, as SVD_img2vid_Conditioning does; diffusers rounds the level of the noise "
                        "to half precision."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The clip with its picture."),
                io.Conditioning.Output(display_name="negative", tooltip="The same clip without it, for guidance."),
                io.Latent.Output(display_name="latent", tooltip="Empty frames at the picture's size."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        clip_vision: ClipVisionModel,
        vae: VAE,
        image: Tensor,
        frames: int,
        fps: int,
        motion_bucket: int,
        augmentation: float,
        seed: int,
        numerics: str,
    ) -> io.NodeOutput:
        micro, recipe = MicroConditioning(fps, motion_bucket, augmentation), NUMERICS[numerics]
        require_picture(image)
        require_vae(vae)
        trained = vae_variant(vae)
        num_frames = frames or trained.frames
        image = flattened(image)
        show(cls, *advice(micro, image, trained))
        context = embedding(recipe.embed(clip_vision, image))
        first = vae.encode(noisy_image(image, recipe.noise * micro.augmentation, seed)).float()
        numbers = {
            "fps": fps,
            "motion_bucket_id": motion_bucket,
            "augmentation_level": recipe.level(micro.augmentation),
            "num_video_frames": num_frames,
        }
        positive = entry(context, first, num_frames, numbers)
        negative = entry(torch.zeros_like(context), torch.zeros_like(first), num_frames, numbers)
        return io.NodeOutput([positive], [negative], empty_latent(first, num_frames))


# Widgets


def _length_inputs() -> list[io.Input]:
    """Widgets for the number of frames and the frame rate."""
    return [
        io.Int.Input(
            "frames",
            default=0,
            min=0,
            max=MAX_FRAMES,
            tooltip=(
                "Length of the clip. 0 takes the checkpoint's own: 14 for SVD, 25 for SVD-XT. Far more than "
                "that, and the clip falls apart or stands still."
            ),
        ),
        io.Int.Input(
            "fps",
            default=7,
            min=1,
            max=1024,
            tooltip=(
                "Playback speed to imagine, in frames per second: the higher, the less happens from one frame "
                "to the next. 6 to 30 look natural. Save the video at any speed you like."
            ),
        ),
    ]


# Numerics


def whole_frame(clip_vision: ClipVisionModel, image: Tensor) -> Tensor:
    return embed(clip_vision, image.movedim(-1, 1) * 2 - 1)


def middle_square(clip_vision: ClipVisionModel, image: Tensor) -> Tensor:
    return clip_vision.encode_image(image).image_embeds


def as_given(augmentation: float) -> float:
    return augmentation


def in_half(augmentation: float) -> float:
    return torch.tensor(augmentation, dtype=torch.float16).item()


@dataclass(frozen=True, slots=True)
class Numerics:
    """Differences between implementations (spec 10): embed, how CLIP embeds images (B, H, W, 3) in [0, 1]; noise, the
    standard deviation of pixel noise on the [-1, 1] scale per unit of augmentation; level, augmentation -> the level
    passed to the network."""

    embed: Callable[[ClipVisionModel, Tensor], Tensor] = whole_frame
    noise: float = 1.0
    level: Callable[[float], float] = as_given


NUMERICS: dict[str, Numerics] = {
    "reference": Numerics(),
    "diffusers": Numerics(level=in_half),
    "comfyui": Numerics(embed=middle_square, noise=2.0),
}
"""User-facing names. ComfyUI adds its noise on the [0, 1] scale, where the same deviation is twice as strong."""


# Pictures


def require_picture(image: Tensor) -> None:
    """Raise InputError unless image (B, H, W, C) is finite, has 3 or more channels and a size that the autoencoder
    preserves."""
    height, width = image.shape[1:3]
    if height % PIXELS_PER_LATENT or width % PIXELS_PER_LATENT or min(height, width) < SIZE_MULTIPLE:
        raise InputError(
            f"the picture is {width}x{height}; sides must be multiples of {PIXELS_PER_LATENT}, at least "
            f"{SIZE_MULTIPLE}: put Fit Picture for Stable Video before this node"
        )
    if image.shape[-1] < 3:
        raise InputError(f"the picture has {image.shape[-1]} channels, needed 3: put Fit Picture before this node")
    if not torch.isfinite(image).all():
        raise InputError("the picture holds NaN or infinity, needed numbers from 0 to 1: repair or replace it")


def flattened(image: Tensor) -> Tensor:
    """Pictures (B, H, W, C) as (B, H, W, 3) float32, transparent parts on white, as Fit Picture shows them."""
    if image.shape[-1] != 4:
        return image[..., :3].float()
    white = [torch.from_numpy(as_image(picture.detach().float().cpu().clamp(0, 1).numpy())) for picture in image]
    return torch.stack(white).to(image.device)


def advice(micro: MicroConditioning, image: Tensor, trained: Variant) -> list[str]:
    """Sentences for the user about settings far from those that the model was trained on."""
    height, width = image.shape[1:3]
    sentences = warnings_for(micro, height, width, trained)
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        sentences.append(f"Sides of {width}x{height} are not multiples of {SIZE_MULTIPLE}: edges may look worse.")
    return sentences


def embedding(embedded: Tensor | None) -> Tensor:
    """The image embedding (B, D) as context (B, 1, D). Raises InputError for an embedding of another kind."""
    if embedded is None or embedded.ndim != 2:
        raise InputError("this CLIP_VISION gives no projected embedding: connect that of the video checkpoint")
    return embedded.float()[:, None]


def noisy_image(image: Tensor, amount: float, seed: int) -> Tensor:
    """Images (B, H, W, 3) in [0, 1] plus noise of standard deviation `amount` on the [-1, 1] scale."""
    pixels = image.movedim(-1, 1) * 2 - 1
    noisy = augment(pixels, amount, draw_noise(pixels.shape, seed))
    return ((noisy + 1) / 2).movedim(1, -1)


# Native types


def entry(context: Tensor, first: Tensor, num_frames: int, numbers: dict[str, Any]) -> list[Any]:
    """One entry of CONDITIONING as ComfyUI's SVD model reads it; for several clips it has one row per frame."""
    if first.shape[0] > 1:
        context, first = (rows.repeat_interleave(num_frames, dim=0) for rows in (context, first))
    return [context, {**numbers, "concat_latent_image": first}]


def empty_latent(first: Tensor, num_frames: int) -> dict[str, Any]:
    """An empty LATENT with one clip per picture. It carries the length of one clip, which native samplers pass on."""
    frames = first.shape[0] * num_frames
    samples = torch.zeros(frames, *first.shape[1:])
    return {"samples": samples, "num_video_frames": num_frames}
