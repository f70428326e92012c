"""Telling Stable Video Diffusion from related and unrelated models, by tensor names and shapes alone (spec 7, 9.3)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import CheckpointError
from .header import some
from .keymaps import UNET
from .source import TensorSource

SVD = "Stable Video Diffusion"
IDS_IN_VECTOR = 3
"""fps, motion bucket and noise augmentation share the vector in equal parts (spec 4)."""

_GET_SVD = "choose an SVD checkpoint (svd, svd_xt or svd_xt_1_1)"
_USE_NATIVE = f"load it with ComfyUI's own loader, or {_GET_SVD}"
_WHOLE = f"it is only a part of a model: {_GET_SVD}, or a folder that holds unet, vae and image_encoder"


@dataclass(frozen=True, slots=True)
class _Stranger:
    """An unsupported kind of model, recognised if any of `marks` occurs in a tensor's name (after a newline: at its
    start)."""

    name: str
    marks: tuple[str, ...]
    advice: str = _USE_NATIVE


_ADAPTERS = (
    _Stranger(
        "a LoRA",
        ("lora_unet_", "_lora.", ".lora_up.", ".lora_down.", ".lora_A.", ".lora_B.", ".lora.up.", "hada_w1", "lokr_w"),
        "load an SVD checkpoint first and put this on top with a LoRA loader, if it was made for SVD",
    ),
    _Stranger("an IP-Adapter", ("ip_adapter.", "image_proj.")),
    _Stranger("a ControlNet", ("control_model.", "controlnet_cond_embedding", "input_hint_block.")),
    _Stranger("an AnimateDiff motion module", ("motion_modules.",)),
    _Stranger("a textual inversion", ("emb_params", "string_to_param")),
)
"""Checked only without a UNet, so that in a full model such tensors are reported as unknown leftovers of training."""

_STRANGERS = (
    _Stranger("SV4D 2", ("time_mixer_motion.",)),
    _Stranger("SV4D", ("motion_blocks.0.", "time_mix_blocks.")),
    _Stranger("Hunyuan Video", ("txt_in.individual_token_refiner",)),
    _Stranger("Flux", ("double_blocks.0.img_attn",)),
    _Stranger("Stable Diffusion 3", ("joint_blocks.0.",)),
    _Stranger("Wan", ("blocks.0.cross_attn.norm_q", "head.modulation")),
    _Stranger("LTX-Video", ("patchify_proj.",)),
    _Stranger("Mochi", ("blocks.0.attn.qkv_x",)),
    _Stranger("CogVideoX", ("transformer_blocks.0.norm1.linear.",)),
    _Stranger("Stable Cascade", ("down_blocks.0.0.channelwise", "clip_txt_mapper.")),
)

_PARTS = (
    _Stranger("a video VAE in diffusers' naming, alone", ("\ndecoder.time_conv_out.",), _WHOLE),
    _Stranger("a VAE in diffusers' naming, alone", ("\ndecoder.mid_block.", "\nencoder.mid_block."), _WHOLE),
    _Stranger("a VAE alone", ("\ndecoder.conv_in.", "\nencoder.conv_in."), _WHOLE),
    _Stranger("an SVD UNet without its prefix, alone", ("input_blocks.0.0.weight",), _WHOLE),
    _Stranger("a video UNet in diffusers' naming, alone", ("spatial_res_block.",), _WHOLE),
    _Stranger("a UNet in diffusers' naming, alone", ("down_blocks.0.",), _WHOLE),
    _Stranger("an image encoder alone", ("visual.", "vision_model."), _WHOLE),
    _Stranger("a VAE alone", ("decoder.conv_in.", "encoder.conv_in."), _WHOLE),
)
"""VAEs come first, because diffusers names some of their blocks like a UNet's."""

_WITH_VECTOR = {2048: "SDXL", 1280: "the SDXL refiner", 1024: "Stable Diffusion 2 unCLIP"}
_WITHOUT_VECTOR = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
"""Image models by the width of their context, with and without a vector input."""

_SV3D = {256: "SV3D_u", 1280: "SV3D_p"}
"""Video models with camera angles in the vector, by its width (spec 7.1)."""


def require_svd(source: TensorSource) -> None:
    """Raise CheckpointError, naming the family and a remedy, for everything but Stable Video Diffusion."""
    names = "".join(f"\n{name}" for name in source)
    if not len(source):
        raise CheckpointError(f"{source.path} holds no tensors: {_GET_SVD}")
    # Either key is enough, so that a UNet that lacks one of them is reported as having a missing tensor.
    has_unet = any(UNET + key in source for key in ("input_blocks.0.0.weight", "time_embed.0.weight"))
    if not has_unet:
        _raise_first(source, names, _ADAPTERS)
    _raise_first(source, names, _STRANGERS)
    if not has_unet:
        _raise_first(source, names, _PARTS)
        raise CheckpointError(f"{source.path} is not a model we know (it holds {some(source)}): {_GET_SVD}")
    if not any("time_stack." in key and key.startswith(UNET) for key in source):
        _refuse(source, _image_family(source), _USE_NATIVE)
    _require_svd_vector(source)


def _refuse(source: TensorSource, name: str, advice: str) -> None:
    raise CheckpointError(f"{source.path} is {name}, not {SVD}: {advice}")


def _raise_first(source: TensorSource, names: str, strangers: tuple[_Stranger, ...]) -> None:
    for stranger in strangers:
        if any(mark in names for mark in stranger.marks):
            _refuse(source, stranger.name, stranger.advice)


def _image_family(source: TensorSource) -> str:
    """The family of an image UNet, by the width of its text context."""
    width = _second_side(source, "middle_block.1.transformer_blocks.0.attn2.to_k.weight")
    if UNET + "label_emb.0.0.weight" in source:
        return _WITH_VECTOR.get(width, "an SDXL relative")
    name = _WITHOUT_VECTOR.get(width, f"an image model (context {width})")
    return f"{name} for inpainting" if _second_side(source, "input_blocks.0.0.weight") == 9 else name


def _require_svd_vector(source: TensorSource) -> None:
    width = _second_side(source, "label_emb.0.0.weight")
    if width in _SV3D:
        _refuse(source, _SV3D[width], _USE_NATIVE)
    if width % IDS_IN_VECTOR:
        _refuse(source, f"a video model with a vector of {width} numbers (SVD's holds three ids alike)", _GET_SVD)


def _second_side(source: TensorSource, key: str) -> int:
    """The number of inputs of a UNet layer; 0 if it is missing."""
    if UNET + key not in source:
        return 0
    shape = source.info(UNET + key).shape
    return shape[1] if len(shape) > 1 else 0
