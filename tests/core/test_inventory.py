"""The inventory equals the released files, both ways and at full size, and every other format maps onto it."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from svd_core.checkpoint.detect import detect
from svd_core.checkpoint.header import Header, TensorInfo
from svd_core.checkpoint.inventory import difference, inventory
from svd_core.checkpoint.keymaps import (
    CLIP,
    CONDITIONER_VAE,
    FIRST_STAGE,
    UNET,
    VISUAL,
    diffusers_unet,
    diffusers_vae,
    official,
    transformers_clip,
)
from svd_core.checkpoint.source import Component, TensorSource
from svd_core.config import VARIANTS, ModelConfig, VAEConfig

DATA = Path(__file__).parent / "data"
IMAGE_DECODER = ModelConfig(vae=VAEConfig(temporal=False, decoder_quant=True), variant=VARIANTS["svd_image_decoder"])
RELEASED = [
    pytest.param("svd_keys.txt", ModelConfig(), 2446, id="svd"),
    pytest.param("svd_image_decoder_keys.txt", IMAGE_DECODER, 2322, id="svd_image_decoder"),
]


def released_shapes(name):
    shapes = {}
    for line in (DATA / name).read_text().splitlines():
        key, sides = line.split()
        shapes[key] = () if sides == "scalar" else tuple(int(side) for side in sides.split("x"))
    return shapes


class HeaderOnly:
    """Stands in for a file of which only the header is at hand."""

    def __init__(self, shapes, dtype):
        self.path = Path("released.safetensors")
        self.header = Header({name: TensorInfo(shape, dtype) for name, shape in shapes.items()}, {})


def source_of(shapes, dtype=torch.float32):
    component = Component.of([HeaderOnly(shapes, dtype)])
    return TensorSource(
        Path("released.safetensors"), "single file", {k: (component, r) for k, r in official(shapes).items()}
    )


def numel(shapes, prefix):
    return sum(TensorInfo(shape, torch.float32).numel for key, shape in shapes.items() if key.startswith(prefix))


@pytest.mark.parametrize(("keys", "config", "count"), RELEASED)
def test_the_inventory_is_the_released_file(keys, config, count):
    ours = {key: expected.shape for key, expected in inventory(config).items()}
    theirs = released_shapes(keys)
    assert len(theirs) == count
    assert ours == theirs


@pytest.mark.parametrize(("keys", "config", "count"), RELEASED)
def test_the_released_shapes_are_detected_as_the_released_configuration(keys, config, count):
    source = source_of(released_shapes(keys))
    detection = detect(source)
    assert detection.config == config
    assert detection.variant_assumed
    found = difference(source, detection)
    assert (found.missing, found.unknown, found.misshapen) == ((), (), {})


def test_parameters_add_up_to_the_published_figures():
    shapes = {key: expected.shape for key, expected in inventory(ModelConfig()).items()}
    assert numel(shapes, "") == 2_389_819_785
    assert numel(shapes, UNET) == 1_524_623_082
    assert numel(shapes, VISUAL) == 632_076_800
    assert numel(shapes, FIRST_STAGE + "decoder.") == 63_579_183
    assert numel(shapes, FIRST_STAGE + "encoder.") == numel(shapes, CONDITIONER_VAE + "encoder.") == 34_163_592
    assert numel(shapes, CONDITIONER_VAE) == 83_653_863


def test_what_inference_never_reads_is_optional():
    expected = inventory(ModelConfig())
    optional = {key for key, spec in expected.items() if not spec.required}
    text = {key for key in expected if key.startswith(CLIP) and not key.startswith(VISUAL)}
    assert len(text) == 6
    assert optional == text | {
        key
        for key in expected
        if key.startswith(
            (CONDITIONER_VAE + "decoder.", CONDITIONER_VAE + "post_quant_conv.", FIRST_STAGE + "encoder.")
        )
    }


def test_without_the_conditioners_encoder_the_first_stages_is_required():
    expected = inventory(IMAGE_DECODER, FIRST_STAGE)
    assert expected[FIRST_STAGE + "encoder.conv_in.weight"].required
    assert expected[FIRST_STAGE + "quant_conv.weight"].required
    assert not any(spec.required for key, spec in expected.items() if key.startswith(CONDITIONER_VAE))


def diffusers_shapes():
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel()
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2
        )
        clip = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=16,
                patch_size=14,
                projection_dim=1024,
            )
        )
    return unet.state_dict(), vae.state_dict(), clip.state_dict()


def test_every_diffusers_tensor_has_an_official_place_of_its_shape():
    required = {key: spec.shape for key, spec in inventory(ModelConfig()).items() if spec.required}
    maps = ((diffusers_unet, 1428), (diffusers_vae, 374), (transformers_clip, 392))
    made = {}
    for state, (keymap, count) in zip(diffusers_shapes(), maps, strict=True):
        found = keymap(state.keys())
        assert len(found) == count
        made |= {key: tuple(r.arrange(*(state[name] for name in r.names)).shape) for key, r in found.items()}
    assert made == required


def test_half_precision_and_whole_means_svd_xt_1_1_and_says_that_it_is_assumed():
    detection = detect(source_of(released_shapes("svd_keys.txt"), torch.float16))
    assert detection.config.variant == VARIANTS["svd_xt_1_1"]
    assert detection.variant_assumed
    assert "float16" in detection.variant_reason


def test_an_absurd_count_in_a_name_is_not_built():
    shapes = released_shapes("svd_keys.txt")
    shapes[UNET + "middle_block.1.transformer_blocks.999999999.norm1.weight"] = (1280,)
    found = difference(source := source_of(shapes), detect(source))
    assert found.unknown == (UNET + "middle_block.1.transformer_blocks.999999999.norm1.weight",)
    assert all(".transformer_blocks.1." in key or ".time_stack.1." in key for key in found.missing)
