"""Mapping of other naming schemes to the official tensor names (spec 9): diffusers folders, and files saved by ComfyUI.

Each function takes the stored names of one component and returns official key -> Origin. An unknown name is kept,
prefixed with the component's name, so that strict loading reports it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import Tensor

from .source import Arrange, Origin, as_stored

UNET = "model.diffusion_model."
CLIP = "conditioner.embedders.0.open_clip.model."
VISUAL = CLIP + "visual."
CONDITIONER_VAE = "conditioner.embedders.3.encoder."
FIRST_STAGE = "first_stage_model."

COMFY_EXTRAS = frozenset({"edm_vpred.sigma_max", "edm_vpred.sigma_min", "v_pred", "ztsnr"})
"""Sampling parameters that ComfyUI stores among the weights; ignored, since the caller chooses the schedule."""

Origins = dict[str, Origin]


def transposed(tensor: Tensor) -> Tensor:
    return tensor.t()


def as_pointwise(tensor: Tensor) -> Tensor:
    """A linear layer's weight (out, in) as a 1x1 convolution's (out, in, 1, 1)."""
    return tensor[..., None, None] if tensor.ndim == 2 else tensor


def joined(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors)


def official(names: Collection[str]) -> Origins:
    """Origins of a single file with official names, or ComfyUI's, which put transformers' names under the visual
    prefix."""
    foreign = {name for name in names if name.startswith((VISUAL + "vision_model.", VISUAL + "visual_projection."))}
    origins = {name: Origin((name,)) for name in names if name not in foreign and name not in COMFY_EXTRAS}
    return origins | transformers_clip(foreign, VISUAL)


# CLIP (spec 3)

_CLIP_TOP = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    "vision_model.pre_layrnorm.weight": "ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "ln_pre.bias",
    "vision_model.post_layernorm.weight": "ln_post.weight",
    "vision_model.post_layernorm.bias": "ln_post.bias",
}
_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_CLIP_LAYER_NAME = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_CLIP_THIRD = re.compile(r"self_attn\.[qkv]_proj")
_POSITION_IDS = "vision_model.embeddings.position_ids"
"""The indices 0, 1, 2, ..., which older transformers versions stored."""


def transformers_clip(names: Collection[str], prefix: str = "") -> Origins:
    """transformers' CLIPVisionModelWithProjection -> OpenCLIP. q, k and v are joined, the projection is transposed."""
    origins: Origins = {}
    for name in names:
        local = name.removeprefix(prefix)
        key, stored, arrange = _clip_rule(local)
        stored = tuple(prefix + part for part in stored)
        if key and set(stored) <= set(names):
            origins[VISUAL + key] = Origin(stored, arrange)
        elif local != _POSITION_IDS:
            origins[f"image_encoder/{name}"] = Origin((name,))
    return origins


def _clip_rule(local: str) -> tuple[str, tuple[str, ...], Arrange]:
    """(official key after `visual.`, stored names, how to arrange them); the key is empty if no rule applies."""
    if local in _CLIP_TOP:
        return _CLIP_TOP[local], (local,), as_stored
    if local == "visual_projection.weight":
        return "proj", (local,), transposed
    if match := _CLIP_LAYER_NAME.fullmatch(local):
        index, module, kind = match.groups()
        layer = f"transformer.resblocks.{index}"
        if module in _CLIP_LAYER:
            return f"{layer}.{_CLIP_LAYER[module]}.{kind}", (local,), as_stored
        if _CLIP_THIRD.fullmatch(module):
            stored = f"vision_model.encoder.layers.{index}.self_attn"
            return f"{layer}.attn.in_proj_{kind}", tuple(f"{stored}.{third}_proj.{kind}" for third in "qkv"), joined
    return "", (local,), as_stored


# UNet (spec 9.1)

_UNET_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_BLOCK = re.compile(
    r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def diffusers_unet(names: Collection[str]) -> Origins:
    """diffusers' UNetSpatioTemporalConditionModel -> the official UNet. Nothing is reshaped."""
    down, up = (_count(names, rf"{way}_blocks\.0\.resnets\.(\d+)\.") for way in ("down", "up"))
    attentive = {match[1] for name in names if (match := re.match(r"up_blocks\.(\d+)\.attentions\.", name))}
    origins: Origins = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        key = _UNET_TOP[module] + "." + kind if module in _UNET_TOP else ""
        if match := _UNET_BLOCK.fullmatch(name):
            key = _unet_block_key(*match.groups(), down=down, up=up, attentive=attentive)
        origins[UNET + key if key else f"unet/{name}"] = Origin((name,))
    return origins


def _unet_block_key(
    way: str | None, level: str | None, layer: str, index: str, rest: str, *, down: int, up: int, attentive: set[str]
) -> str:
    """The official key of a block's tensor. `down` and `up` are residual blocks per level; a downsampler takes one more
    number."""
    if layer == "downsamplers":
        return f"input_blocks.{(int(level or 0) + 1) * (down + 1)}.0.{rest.replace('conv.', 'op.', 1)}"
    if layer == "upsamplers":
        slot = 2 if level in attentive else 1
        return f"output_blocks.{int(level or 0) * up + up - 1}.{slot}.{rest}"
    inner = _residual_key(rest) if layer == "resnets" else _transformer_key(rest)
    if not inner:
        return ""
    if way is None:
        slot = 2 * int(index) if layer == "resnets" else 1
        return f"middle_block.{slot}.{inner}"
    slot = 0 if layer == "resnets" else 1
    if way == "down":
        return f"input_blocks.{int(level or 0) * (down + 1) + int(index) + 1}.{slot}.{inner}"
    return f"output_blocks.{int(level or 0) * up + int(index)}.{slot}.{inner}"


def _residual_key(rest: str) -> str:
    if rest == "time_mixer.mix_factor":
        return rest
    match = re.fullmatch(r"(spatial|temporal)_res_block\.(\w+)\.(weight|bias)", rest)
    if not match or match[2] not in _RESIDUAL:
        return ""
    return f"{'time_stack.' if match[1] == 'temporal' else ''}{_RESIDUAL[match[2]]}.{match[3]}"


def _transformer_key(rest: str) -> str:
    rest = re.sub(r"^temporal_transformer_blocks\.", "time_stack.", rest)
    return re.sub(r"^time_pos_embed\.linear_([12])\.", lambda m: f"time_pos_embed.{2 * (int(m[1]) - 1)}.", rest)


# VAE (spec 9.2)

_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE_BLOCK = re.compile(r"(encoder|decoder)\.(?:(?:down|up)_blocks\.(\d+)|mid_block)\.resnets\.(\d+)\.(.+)")
_VAE_SAMPLER = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.conv\.(weight|bias)")
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.attentions\.0\.(\w+(?:\.0)?)\.(weight|bias)")
_VAE_TOP = re.compile(
    r"(?:(encoder|decoder)\.(conv_in|conv_norm_out|conv_out|time_conv_out)|(quant_conv|post_quant_conv))\.(weight|bias)"
)
_VAE_TOP_NAMES = {"conv_norm_out": "norm_out", "time_conv_out": "conv_out.time_mix_conv"}


def diffusers_vae(names: Collection[str]) -> Origins:
    """diffusers' AutoencoderKLTemporalDecoder, or AutoencoderKL, -> the conditioner's encoder and the first stage's
    decoder (spec 9.2). The four weights of an attention become 1x1 convolutions."""
    levels = _count(names, r"decoder\.up_blocks\.(\d+)\.")
    origins: Origins = {}
    for name in names:
        key = _vae_key(name, levels)
        home = FIRST_STAGE if key.startswith(("decoder.", "post_quant_conv.")) else CONDITIONER_VAE
        pointwise = ".attn_1." in key and key.endswith(".weight") and ".norm." not in key
        origins[home + key if key else f"vae/{name}"] = Origin((name,), as_pointwise if pointwise else as_stored)
    return origins


def _vae_key(name: str, levels: int) -> str:
    if match := _VAE_TOP.fullmatch(name):
        coder, module, quant, kind = match.groups()
        return f"{quant}.{kind}" if quant else f"{coder}.{_VAE_TOP_NAMES.get(module, module)}.{kind}"
    if match := _VAE_MIDDLE.fullmatch(name):
        coder, module, kind = match.groups()
        return f"{coder}.mid.attn_1.{_VAE_ATTENTION[module]}.{kind}" if module in _VAE_ATTENTION else ""
    if match := _VAE_SAMPLER.fullmatch(name):
        coder, level, way, kind = match.groups()
        return f"{coder}.{_vae_level(coder, level, levels)}.{way}sample.conv.{kind}"
    if match := _VAE_BLOCK.fullmatch(name):
        coder, level, index, rest = match.groups()
        inner = _vae_residual_key(rest)
        block = f"mid.block_{int(index) + 1}" if level is None else f"{_vae_level(coder, level, levels)}.block.{index}"
        return f"{coder}.{block}.{inner}" if inner else ""
    return ""


def _vae_level(coder: str, level: str, levels: int) -> str:
    """The official name of a level. Official files number both halves by resolution; diffusers numbers the decoder from
    the deepest level."""
    return f"down.{level}" if coder == "encoder" else f"up.{levels - 1 - int(level)}"


def _vae_residual_key(rest: str) -> str:
    if rest == "time_mixer.mix_factor":
        return "mix_factor"
    if rest.startswith("temporal_res_block."):
        module, _, kind = rest.removeprefix("temporal_res_block.").rpartition(".")
        return f"time_stack.{_RESIDUAL[module]}.{kind}" if module in _RESIDUAL else ""
    return rest.removeprefix("spatial_res_block.").replace("conv_shortcut.", "nin_shortcut.")


def _count(names: Collection[str], numbered: str) -> int:
    """One more than the highest number that the pattern's group finds."""
    return max((int(match[1]) for name in names if (match := re.match(numbered, name))), default=-1) + 1
