"""The image encoder against open_clip and transformers, and its preprocessing against diffusers (spec 3)."""

import open_clip.transformer
import pytest
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from transformers import CLIPVisionConfig as TheirConfig
from transformers import CLIPVisionModelWithProjection
from weights import randomise, relative

from svd_core.config import CLIPVisionConfig
from svd_core.errors import InputError
from svd_core.model.backend import Backend
from svd_core.model.clip_vision import CLIP_MEAN, CLIP_STD, CLIPVision, preprocess

CONFIGS = [
    CLIPVisionConfig(layers=3, width=64, head_channels=16, mlp_width=256, patch=7, image_size=28, output_dim=24),
    CLIPVisionConfig(layers=2, width=160, head_channels=80, mlp_width=640, patch=14, image_size=70, output_dim=32),
]
SIZES = [(576, 1024), (37, 300), (224, 224), (100, 61), (1, 1), (1, 500), (225, 2)]
SPLIT = {"q_proj": 0, "k_proj": 1, "v_proj": 2}


@pytest.fixture(scope="module", params=CONFIGS, ids=["patch7", "patch14"])
def ours(request):
    return randomise(CLIPVision(request.param))


def transformers_state(ours: CLIPVision) -> dict[str, torch.Tensor]:
    """Spec 3's table, from the official names to those of transformers."""
    renamed = {}
    for name, value in ours.state_dict().items():
        if name == "proj":
            renamed["visual_projection.weight"] = value.T
        elif ".attn.in_proj_" in name:
            prefix, kind = name.split(".attn.in_proj_")
            thirds = value.chunk(3)
            renamed |= {transformers_name(f"{prefix}.self_attn.{x}.{kind}"): thirds[i] for x, i in SPLIT.items()}
        else:
            renamed[transformers_name(name)] = value
    return renamed


def transformers_name(name: str) -> str:
    replacements = {
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "conv1": "embeddings.patch_embedding",
        "ln_pre": "pre_layrnorm",
        "ln_post": "post_layernorm",
        "transformer.resblocks": "encoder.layers",
        ".ln_1": ".layer_norm1",
        ".ln_2": ".layer_norm2",
        ".attn.out_proj": ".self_attn.out_proj",
        "c_fc": "fc1",
        "c_proj": "fc2",
    }
    for old, new in replacements.items():
        name = name.replace(old, new)
    return f"vision_model.{name}"


@torch.inference_mode()
def test_equals_open_clip(ours):
    config = ours.config
    theirs = open_clip.transformer.VisionTransformer(
        image_size=config.image_size,
        patch_size=config.patch,
        width=config.width,
        layers=config.layers,
        heads=config.width // config.head_channels,
        mlp_ratio=config.mlp_width / config.width,
        output_dim=config.output_dim,
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    prepared = torch.randn(3, 3, config.image_size, config.image_size)
    assert relative(ours(prepared), theirs.eval()(prepared)) <= 5e-6


@torch.inference_mode()
def test_equals_transformers(ours):
    config = ours.config
    theirs = CLIPVisionModelWithProjection(
        TheirConfig(
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            projection_dim=config.output_dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.width // config.head_channels,
            image_size=config.image_size,
            patch_size=config.patch,
            hidden_act="gelu",
            layer_norm_eps=1e-5,
        )
    )
    missing, unexpected = theirs.load_state_dict(transformers_state(ours), strict=False)
    assert [name for name in missing if "position_ids" not in name] == []
    assert unexpected == []
    prepared = torch.randn(2, 3, config.image_size, config.image_size)
    assert relative(ours(prepared), theirs.eval()(prepared).image_embeds) <= 5e-6


def reference_preprocess(pixels: torch.Tensor, size: int) -> torch.Tensor:
    square = (_resize_with_antialiasing(pixels, (size, size)) + 1) / 2
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (square - mean) / std


@pytest.mark.parametrize("height_width", [size for size in SIZES if min(size) > 1])
@pytest.mark.parametrize("size", [28, 224])
def test_preprocessing_equals_the_reference(height_width, size):
    pixels = torch.rand(2, 3, *height_width) * 2 - 1
    prepared = preprocess(pixels, size)
    assert prepared.shape == (2, 3, size, size)
    assert relative(prepared, reference_preprocess(pixels, size)) <= 5e-6


@pytest.mark.parametrize("height_width", SIZES)
def test_a_plain_colour_stays_that_colour_at_any_size(height_width):
    pixels = torch.full((1, 3, *height_width), 0.25)
    expected = (0.625 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    assert relative(preprocess(pixels, 224), expected[None, :, None, None].expand(1, 3, 224, 224)) <= 1e-5


def test_no_part_of_a_wide_picture_is_cropped():
    """The far left and the far right both reach the encoder."""
    pixels = torch.zeros(1, 3, 64, 640)
    marked = pixels.clone()
    marked[..., :40], marked[..., -40:] = 1, -1
    difference = (preprocess(marked, 28) - preprocess(pixels, 28))[0, 0]
    assert (difference[:, 0] > 1).all()
    assert (difference[:, -1] < -1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_preprocessing_computes_in_float32(dtype):
    pixels = (torch.rand(1, 3, 90, 160) * 2 - 1).to(dtype)
    prepared = preprocess(pixels, 28)
    assert prepared.dtype == torch.float32
    assert relative(prepared, reference_preprocess(pixels.float(), 28)) <= 5e-6


@torch.inference_mode()
def test_pictures_of_a_batch_do_not_leak_into_each_other(ours):
    pixels = torch.rand(3, 3, 50, 90) * 2 - 1
    apart = torch.cat([ours.encode(picture[None]) for picture in pixels])
    assert apart.shape == (3, ours.config.output_dim)
    assert relative(ours.encode(pixels), apart) <= 5e-6


@torch.inference_mode()
def test_the_vector_has_the_weights_dtype(ours):
    half = CLIPVision(ours.config, backend=Backend(dtype=torch.bfloat16))
    half.load_state_dict(ours.state_dict())
    pixels = torch.rand(1, 3, 50, 90) * 2 - 1
    vector = half.encode(pixels)
    assert vector.dtype == torch.bfloat16
    assert relative(vector.float(), ours.encode(pixels)) <= 0.05


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 8, 8), (1, 3, 0, 8)])
def test_bad_pixels_are_refused(shape):
    with pytest.raises(InputError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        preprocess(torch.zeros(shape), 224)


def test_full_size_counts():
    clip = CLIPVision(CLIPVisionConfig(), backend=Backend(device="meta"))
    assert sum(value.numel() for value in clip.parameters()) == 632_076_800
    assert len(clip.state_dict()) == 392
