"""Nodes that control what moves, where and for how long: each patches a MODEL, and a LATENT if the clip changes.

They can be chained in any order, and work with any sampler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..svd_core.conditioning import Conditioning
from ..svd_core.config import LATENT_SCALE, PIXELS_PER_LATENT
from ..svd_core.errors import InputError
from ..svd_core.motion import MAX_FEATHER, Brush, Windows, require_loop, unstuck
from ..svd_core.settings import MAX_FRAMES
from .bridge.guider import require_video_model
from .bridge.motion.combined import methods_of, with_method
from .bridge.motion.in_turns import directions_in_turns, windows_in_turns, with_chosen_sampler
from .bridge.motion.methods import BetweenMethod, BrushMethod, CurveMethod, LongTakeMethod
from .bridge.motion.runs import reserve_for_windows, start_lower
from .bridge.variant import model_variant
from .checks import require_latents, require_vae, verdict, whole_clips
from .conditioning import flattened
from .curves import CURVED, CurvedSetting
from .finish import HOLD, LOOP, STILL, Still, with_request, without_loop
from .inputs import checked
from .widgets import (
    augmentation_input,
    conditioning_inputs,
    model_input,
    motion_bucket_input,
    patched_model_output,
    vae_input,
)

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE
    from torch import Tensor

FUSION, IN_TURNS = "fusion", "in turns"
"""Methods of joining separate model results: blended at every step, or made one after the other."""


class StableVideoMotionBrush(io.ComfyNode):
    """Limits motion to painted parts of the picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoMotionBrush",
            display_name="Stable Video Motion Brush",
            category="video/stable video",
            description=(
                "Paint what moves and how much: white is free, grey moves little, black stands still and keeps the "
                "picture's own pixels. Put it between conditioning and sampler; decode with Stable Video Decode."
            ),
            search_aliases=["motion mask", "motion brush", "svd mask", "cinemagraph", "freeze background"],
            inputs=[
                model_input(),
                vae_input(),
                _latent_input(),
                io.Image.Input("image", tooltip="The fitted picture that the conditioning was given."),
                io.Mask.Input(
                    "mask", tooltip="At the picture's size: one mask for all frames, or one for each. 0 stands still."
                ),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=MAX_FEATHER,
                    tooltip="Pixels over which the clip fades in beside what stands still. 0 is a hard edge.",
                ),
                io.Boolean.Input(
                    "invert", default=False, tooltip="Turn on where the mask shows what stands still.", advanced=True
                ),
            ],
            outputs=[patched_model_output(), _latent_output()],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        vae: VAE,
        latent: dict[str, Any],
        image: Tensor,
        mask: Tensor,
        feather: int,
        invert: bool = False,
    ) -> io.NodeOutput:
        frames = one_clip(model, latent)
        require_vae(vae)
        brush = Brush((1 - mask.float() if invert else mask.float()).cpu())
        height, width = (PIXELS_PER_LATENT * side for side in latent["samples"].shape[-2:])
        require_one_picture(image, height, width)
        brush.check(frames, height, width)
        picture = flattened(image).cpu()
        method = BrushMethod(brush, vae.encode(picture).float().cpu() * LATENT_SCALE)
        still = Still(picture[0], brush.opacity(feather))
        return io.NodeOutput(with_method(model, method), with_request(latent, STILL, still))


class StableVideoInBetween(io.ComfyNode):
    """Makes a clip from one picture to another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoInBetween",
            display_name="Stable Video In-Between",
            category="video/stable video",
            description=(
                "Moves from the picture of the sampler's conditioning to that of another one: start frame, end frame "
                "and the motion between. Two model calls for one, so it takes twice as long."
            ),
            search_aliases=["end frame", "first last frame", "interpolation", "keyframes", "tween", "flf2v"],
            inputs=[
                model_input(),
                io.Conditioning.Input(
                    "end",
                    tooltip="Positive of another Stable Video Conditioning, of the end picture with the same widgets.",
                ),
                _latent_input(),
                _between_method_input(),
            ],
            outputs=[patched_model_output(), _latent_output()],
        )

    @classmethod
    @checked
    def execute(cls, model: ModelPatcher, end: list, latent: dict[str, Any], method: str) -> io.NodeOutput:
        one_clip(model, latent)
        last = end_conditioning(end, latent["samples"])
        return io.NodeOutput(between_pictures(model, last, method), without_loop(latent))


class StableVideoLoop(io.ComfyNode):
    """Makes a clip that ends with its first frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoLoop",
            display_name="Stable Video Loop",
            category="video/stable video",
            description=(
                "Makes a clip that plays round and round without a cut: it leaves its picture and comes back to it. "
                "Stable Video Decode leaves out the repeated last frame and shows how well the ends meet. Takes twice "
                "as long."
            ),
            search_aliases=["seamless loop", "gif loop", "cinemagraph", "looping video", "cyclic"],
            inputs=[
                model_input(),
                _latent_input(),
                _between_method_input(),
            ],
            outputs=[patched_model_output(), _latent_output()],
        )

    @classmethod
    @checked
    def execute(cls, model: ModelPatcher, latent: dict[str, Any], method: str) -> io.NodeOutput:
        require_loop(one_clip(model, latent))
        return io.NodeOutput(between_pictures(model, None, method), with_request(latent, LOOP, True))


class StableVideoLongTake(io.ComfyNode):
    """Makes clips longer than the model's own length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoLongTake",
            display_name="Stable Video Long Take",
            category="video/stable video",
            description=(
                "Makes a clip of any length in the memory of a short one: windows, each going on from the one before. "
                "Give it the end of an existing clip to continue that."
            ),
            search_aliases=["long video", "extend video", "continue video", "context windows", "more frames"],
            inputs=[
                model_input(),
                *conditioning_inputs(),
                io.Latent.Input("latent", tooltip="From Stable Video Conditioning; its size is kept."),
                io.Int.Input("frames", default=50, min=2, max=MAX_FRAMES, tooltip="Length of the whole clip."),
                *_window_inputs(),
                io.Image.Input(
                    "continued",
                    optional=True,
                    tooltip=(
                        "A clip to go on from. Its last frame begins the new one, in fusion as many as overlap; show "
                        "the first of those to the conditioning."
                    ),
                ),
                io.Vae.Input("vae", optional=True, tooltip="Needed where a clip is continued."),
            ],
            outputs=[
                patched_model_output(),
                io.Conditioning.Output(display_name="positive", tooltip="The same, for the whole clip."),
                io.Conditioning.Output(display_name="negative", tooltip="The same, for the whole clip."),
                _latent_output(),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        latent: dict[str, Any],
        frames: int,
        window: int,
        overlap: int,
        colour_hold: float,
        method: str = IN_TURNS,
        continued: Tensor | None = None,
        vae: VAE | None = None,
    ) -> io.NodeOutput:
        one_clip(model, latent)
        require_for_frames(model, latent, frames)
        windows = windows_for(window or model_variant(model).frames, method, overlap, frames)
        given = None if continued is None else last_latents(continued, vae, windows.overlap, latent["samples"])
        patched = with_method(model, LongTakeMethod(windows, colour_hold, given))
        if method == FUSION:
            with_chosen_sampler(patched)
        else:
            windows_in_turns(patched, windows)
        reserve_for_windows(patched, windows.length)
        samples = torch.zeros(frames, *latent["samples"].shape[1:])
        longer = {**without_loop(latent), "samples": samples, "num_video_frames": frames}
        longer.pop("batch_index", None)  # it numbers the short clip's frames
        held = with_request(longer, HOLD, colour_hold)
        return io.NodeOutput(patched, for_frames(positive, frames), for_frames(negative, frames), held)


class StableVideoUnstick(io.ComfyNode):
    """A single control for more motion in clips that stand still."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoUnstick",
            display_name="Stable Video Un-stick",
            category="video/stable video",
            description=(
                "For clips that will not move: starts sampling at a lower noise level, from the picture, and raises "
                "motion bucket and augmentation along with it. Connect those two to Stable Video Conditioning."
            ),
            search_aliases=["more motion", "frozen video", "motion slider", "static video", "motion strength"],
            inputs=[
                model_input(),
                io.Float.Input(
                    "strength",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="0 changes nothing. The higher, the more moves and the less the clip keeps to its picture.",
                ),
                motion_bucket_input("At strength 0; rises to 255 at strength 1."),
                augmentation_input("At strength 0; rises with the strength.", rounded_to=0.001),
            ],
            outputs=[
                patched_model_output(),
                io.Int.Output(display_name="motion_bucket", tooltip="For Stable Video Conditioning."),
                io.Float.Output(display_name="augmentation", tooltip="For Stable Video Conditioning."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: ModelPatcher, strength: float, motion_bucket: int, augmentation: float) -> io.NodeOutput:
        require_video_model(model)
        settings = unstuck(strength, motion_bucket, augmentation)
        patched = model.clone()
        if strength > 0:
            start_lower(patched, settings.sigma_start)
        return io.NodeOutput(patched, settings.motion_bucket, settings.augmentation)


class StableVideoCurves(io.ComfyNode):
    """Settings that change along the clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StableVideoCurves",
            display_name="Stable Video Curves",
            category="video/stable video",
            description=(
                "Guidance, motion bucket and augmentation for each frame, drawn as points or connected as lists of "
                "numbers. The model learned with constants: keep changes gentle."
            ),
            search_aliases=["motion curve", "keyframe", "schedule", "ease in", "float list", "cfg curve"],
            inputs=[model_input(), *(each for setting in CURVED for each in _curve_inputs(setting))],
            outputs=[patched_model_output()],
        )

    @classmethod
    def validate_inputs(
        cls,
        guidance_points: str | None = "",
        motion_bucket_points: str | None = "",
        augmentation_points: str | None = "",
    ) -> bool | str:
        texts = (guidance_points, motion_bucket_points, augmentation_points)
        return verdict(lambda: [setting.points(text) for setting, text in zip(CURVED, texts, strict=True)])

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        guidance_points: str = "",
        guidance_values: Any = None,
        motion_bucket_points: str = "",
        motion_bucket_values: Any = None,
        augmentation_points: str = "",
        augmentation_values: Any = None,
    ) -> io.NodeOutput:
        require_video_model(model)
        drawn = (
            (guidance_points, guidance_values),
            (motion_bucket_points, motion_bucket_values),
            (augmentation_points, augmentation_values),
        )
        curves = (setting.curve(*inputs) for setting, inputs in zip(CURVED, drawn, strict=True))
        return io.NodeOutput(with_method(model, CurveMethod(*curves)))


# Sockets and widgets


def _latent_input() -> io.Latent.Input:
    return io.Latent.Input("latent", tooltip="From Stable Video Conditioning.")


def _latent_output() -> io.Latent.Output:
    return io.Latent.Output(display_name="latent", tooltip="For the sampler.")


def _between_method_input() -> io.Combo.Input:
    return io.Combo.Input(
        "method",
        options=[FUSION, IN_TURNS],
        default=FUSION,
        tooltip=(
            "fusion blends both directions at every step and runs with any sampler; in turns takes them one after the "
            "other with Euler steps and fresh noise between, in place of the sampler."
        ),
    )


def _window_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "window",
            default=0,
            min=0,
            max=MAX_FRAMES,
            tooltip="Frames at a time; what memory and time for a step depend on. 0 is what the checkpoint learned.",
        ),
        io.Int.Input(
            "overlap",
            default=0,
            min=0,
            max=MAX_FRAMES,
            tooltip="Only for fusion: frames that neighbouring windows share, 0 is half a window. More is slower.",
        ),
        io.Float.Input(
            "colour_hold",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="How firmly colours are held to the first frame's. Lower it where the light is meant to change.",
        ),
        io.Combo.Input(
            "method",
            options=[IN_TURNS, FUSION],
            default=IN_TURNS,
            optional=True,
            tooltip=(
                "in turns makes one window after the other, each from the last frame of the one before; fusion blends "
                "overlapping windows at every step, which takes nearly twice as long."
            ),
        ),
    ]


def _curve_inputs(setting: CurvedSetting) -> list[io.Input]:
    name, example = setting.name, setting.example
    return [
        io.String.Input(
            f"{name}_points",
            default="",
            optional=True,
            tooltip=f"The {name} along the clip as position:value, such as {example}. Empty leaves it alone.",
        ),
        io.Float.Input(
            f"{name}_values",
            optional=True,
            force_input=True,
            tooltip="A list of numbers, one for each frame, or one for all. Replaces the points.",
        ),
    ]


# Checks and values for the nodes


def one_clip(model: ModelPatcher, latent: dict[str, Any]) -> int:
    """Number of frames of the one clip in a LATENT. Raises InputError for several clips or the wrong model."""
    require_video_model(model)
    return frames_of_one_clip(latent)


def frames_of_one_clip(latent: dict[str, Any]) -> int:
    """Number of frames of the one clip in a LATENT. Raises InputError for several clips."""
    samples = latent["samples"]
    require_latents(samples)
    frames = latent.get("num_video_frames", samples.shape[0])
    clips = whole_clips(samples.shape[0], frames)
    if clips > 1:
        raise InputError(f"the latent holds {clips} clips: control one at a time, from one picture")
    return frames


def require_for_frames(model: ModelPatcher, latent: dict[str, Any], frames: int) -> None:
    """Raise InputError if per-frame masks do not match a clip of `frames` frames."""
    height, width = (side * PIXELS_PER_LATENT for side in latent["samples"].shape[-2:])
    for method in methods_of(model):
        if isinstance(method, BrushMethod):
            method.brush.check(frames, height, width)
    mask = latent.get("noise_mask")
    masked = 1 if mask is None else mask.shape[:-2].numel()  # ComfyUI counts all dimensions but two as frames
    if masked not in (1, frames):
        raise InputError(
            f"a noise mask for {masked} frames and a Long Take of {frames}: give one mask, or set it on the "
            "latent that Stable Video Long Take gives"
        )


def require_one_picture(image: Tensor, height: int, width: int) -> None:
    """Raise InputError unless image is one picture of the clip's size."""
    if image.shape[0] != 1 or image.shape[1:3] != (height, width):
        count, given_height, given_width = image.shape[:3]
        raise InputError(
            f"{count} pictures of {given_width}x{given_height} for a clip of {width}x{height}: connect the one fitted "
            "picture that the conditioning was given"
        )


def end_conditioning(end: list, samples: Tensor) -> Conditioning:
    """Conditioning for the end picture. Raises InputError if it does not fit the clip."""
    context, numbers = end[0]
    first = numbers.get("concat_latent_image")
    if first is None:
        raise InputError("end holds no picture: connect positive of a Stable Video Conditioning with the end picture")
    if first.shape[-2:] != samples.shape[-2:]:
        given, needed = (
            f"{PIXELS_PER_LATENT * each.shape[-1]}x{PIXELS_PER_LATENT * each.shape[-2]}" for each in (first, samples)
        )
        raise InputError(f"the end picture is {given} and the clip {needed}: fit both pictures to the same size")
    if len(first) > 1:
        raise InputError("end holds several pictures: give one end picture")
    return Conditioning(context[:1].float(), first.float(), torch.zeros(1, 3))


def between_pictures(model: ModelPatcher, end: Conditioning | None, method: str) -> ModelPatcher:
    sequential = method == IN_TURNS
    patched = with_method(model, BetweenMethod(end, sequential))
    (directions_in_turns if sequential else with_chosen_sampler)(patched)
    return patched


def windows_for(length: int, method: str, overlap: int, frames: int) -> Windows:
    """Windows for a clip of `frames` frames. Raises InputError if they do not fit it."""
    windows = Windows.of(length, method == FUSION, overlap)
    windows.starts(frames)
    return windows


def last_latents(clip: Tensor, vae: VAE | None, count: int, samples: Tensor) -> Tensor:
    """The last `count` frames (n, H, W, 3) of a clip as latents in sampler units. Raises InputError."""
    if vae is None:
        raise InputError("a clip is continued and vae is not connected: connect that of the video checkpoint")
    require_vae(vae)
    height, width = (PIXELS_PER_LATENT * side for side in samples.shape[-2:])
    if clip.shape[1:3] != (height, width) or len(clip) < count:
        given = f"{len(clip)} frames of {clip.shape[2]}x{clip.shape[1]}"
        raise InputError(f"{given} to continue: give at least {count} of {width}x{height}, or a smaller overlap")
    return vae.encode(flattened(clip[-count:])).float().cpu() * LATENT_SCALE


def for_frames(conditioning: list, frames: int) -> list:
    return [[context, {**numbers, "num_video_frames": frames}] for context, numbers in conditioning]
