"""Every supported file loads strictly, lazily and to the same weights; every other one is refused in one line."""

import dataclasses
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import (
    LEFTOVERS,
    TINY,
    TINY_IMAGE_DECODER,
    head_widths,
    official_tensors,
    transformers_names,
    write_checkpoint,
    write_comfyui_checkpoint,
    write_diffusers_folder,
)
from torch import nn
from weights import relative

from svd_core.checkpoint import inspect_checkpoint, load_modules, open_source
from svd_core.checkpoint.keymaps import CONDITIONER_VAE, FIRST_STAGE, UNET, VISUAL
from svd_core.checkpoint.source import SafetensorsFile
from svd_core.config import VARIANTS, Variant
from svd_core.errors import CheckpointError
from svd_core.model.backend import Backend

CONFIGS = [pytest.param(TINY, id="temporal"), pytest.param(TINY_IMAGE_DECODER, id="image")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An official file of the tiny model, to read only."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A diffusers folder of the tiny model and the modules that wrote it, to read only."""
    path = tmp_path_factory.mktemp("folder")
    return path, write_diffusers_folder(path)


def official_weights(loaded):
    """The weights of loaded modules by official key."""
    prefix = loaded.detection.encoder_prefix
    weights = {UNET + key: tensor for key, tensor in loaded.unet.state_dict().items()}
    weights |= {VISUAL + key: tensor for key, tensor in loaded.clip_vision.state_dict().items()}
    for key, tensor in loaded.vae.state_dict().items():
        home = prefix if key.startswith(("encoder.", "quant_conv.")) else FIRST_STAGE
        weights[home + key] = tensor
    return weights


def assert_holds(loaded, tensors):
    weights = official_weights(loaded)
    for key, weight in weights.items():
        assert torch.equal(weight, tensors[key]), key


# What loads


@pytest.mark.parametrize("config", CONFIGS)
def test_an_official_file_fills_the_modules_it_describes(tmp_path, config):
    loaded = load_modules(write_checkpoint(tmp_path / "a.safetensors", config))
    assert loaded.config == config
    assert_holds(loaded, official_tensors(config))
    for module in (loaded.unet, loaded.vae, loaded.clip_vision):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def test_the_files_name_means_nothing(checkpoint, tmp_path):
    renamed = tmp_path / "sdxl_lora.ckpt"
    os.link(checkpoint, renamed)
    assert load_modules(renamed).config == TINY


@pytest.mark.parametrize("config", CONFIGS)
def test_what_inference_never_reads_may_be_left_out(tmp_path, config):
    path = write_checkpoint(tmp_path / "a.safetensors", config, without=LEFTOVERS)
    assert_holds(load_modules(path), official_tensors(config))
    assert inspect_checkpoint(path).loadable


@pytest.mark.parametrize(("config", "quant"), [(TINY, False), (TINY_IMAGE_DECODER, True)], ids=["temporal", "image"])
def test_the_first_stages_encoder_serves_where_the_conditioner_has_none(tmp_path, config, quant):
    loaded = load_modules(write_checkpoint(tmp_path / "a.safetensors", config, without=[CONDITIONER_VAE]))
    assert loaded.detection.encoder_prefix == FIRST_STAGE
    assert loaded.config.vae.encoder_quant is quant
    assert_holds(loaded, official_tensors(config))


def test_half_precision_is_kept_or_converted_as_asked(tmp_path):
    path = write_checkpoint(tmp_path / "half.safetensors", dtype=torch.float16)
    for dtype, expected in ((None, torch.float16), (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)):
        weights = official_weights(load_modules(path, dtype=dtype))
        rest = [weight.dtype for key, weight in weights.items() if not key.startswith(CONDITIONER_VAE)]
        assert set(rest) == {expected}
        assert torch.equal(weights[VISUAL + "proj"], load_file(path)[VISUAL + "proj"].to(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_converted_weights_lie_as_a_cpus_convolutions_read_them(tmp_path, dtype):
    """Or torch would turn them in every call. In float32 the autoencoder turns its images instead."""
    loaded = load_modules(write_checkpoint(tmp_path / "half.safetensors", dtype=torch.float16), dtype=dtype)
    networks = loaded.unet, loaded.vae.decoder
    for network, turned in zip(networks, (True, dtype == torch.bfloat16), strict=True):
        kernels = [each for each in network.parameters() if each.ndim >= 4 and each.shape[2] > 1 < each.shape[1]]
        assert {each.ndim for each in kernels} == {4, 5}
        assert all(each.movedim(1, -1).is_contiguous() is turned for each in kernels)


def test_the_still_is_encoded_in_float32_whatever_the_rest_runs_in(tmp_path):
    """As the reference does (spec 4, 6)."""
    path = write_checkpoint(tmp_path / "half.safetensors", dtype=torch.float16)
    loaded = load_modules(path, dtype=torch.bfloat16)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.vae.encode(pixels), load_modules(path, dtype=torch.float32).vae.encode(pixels))


def test_eight_bit_floats_are_converted_and_checked(tmp_path):
    key = UNET + "out.2.weight"
    small = official_tensors()[key].to(torch.float8_e4m3fn)
    path = write_checkpoint(tmp_path / "a.safetensors", extra={key: small})
    assert torch.equal(official_weights(load_modules(path))[key], small.float())


def test_layers_come_from_the_given_backend(checkpoint):
    class Mine(nn.Linear):
        pass

    operations = type("Operations", (), {**vars(nn), "Linear": Mine})
    loaded = load_modules(checkpoint, backend=Backend(operations))
    layers = [module for module in loaded.unet.modules() if isinstance(module, nn.Linear)]
    assert layers and all(isinstance(layer, Mine) for layer in layers)


ANONYMOUS = """
import re, sys, torch
from pathlib import Path
from svd_core.checkpoint import load_modules

def anonymous():
    return 1024 * int(re.search(r"Anonymous:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1])

load_modules(sys.argv[1])
before = anonymous()
loaded = load_modules(sys.argv[2], dtype=getattr(torch, sys.argv[3]))
print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's account of memory from /proc")
def test_loading_copies_nothing_that_is_stored_in_the_wanted_type(checkpoint, tmp_path):
    """The reported growth is of memory that no file backs."""
    unet = dataclasses.replace(TINY.unet, model_channels=160)
    big = write_checkpoint(tmp_path / "big.safetensors", dataclasses.replace(TINY, unet=unet), without=LEFTOVERS)
    size = big.stat().st_size
    assert size > 100e6

    def growth(dtype):
        command = [sys.executable, "-c", ANONYMOUS, str(checkpoint), str(big), dtype]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        return int(ran.stdout)

    assert growth("float32") < 0.1 * size
    assert growth("bfloat16") < 0.6 * size


# ComfyUI's files


def test_a_file_saved_by_comfyui_holds_the_same_model(tmp_path):
    loaded = load_modules(write_comfyui_checkpoint(tmp_path / "a.safetensors"))
    assert loaded.detection.encoder_prefix == FIRST_STAGE
    assert_holds(loaded, official_tensors())
    assert "ComfyUI" in inspect_checkpoint(tmp_path / "a.safetensors").format


def test_comfyui_itself_writes_clip_as_the_synthetic_file_does(comfy):
    from comfy.clip_vision import convert_to_transformers

    official = {key: tensor for key, tensor in official_tensors().items() if key.startswith(VISUAL)}
    ours = {}
    for key, tensor in official.items():
        ours |= transformers_names(key.removeprefix(VISUAL), tensor)
    theirs = convert_to_transformers(dict(official), VISUAL)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# diffusers folders


def test_a_diffusers_folder_computes_what_diffusers_computes(folder):
    path, modules = folder
    loaded = load_modules(path)
    assert dataclasses.replace(loaded.config, variant=TINY.variant) == TINY
    assert relative(unet_output(loaded.unet), diffusers_unet_output(modules["unet"])) < 5e-6
    with torch.no_grad():
        z, pixels = torch.randn(3, 4, 4, 6), torch.rand(1, 3, 32, 48) * 2 - 1
        frames = modules["vae"].decode(z, num_frames=3).sample
        assert relative(loaded.vae.decode(z, num_frames=3), frames) < 5e-6
        assert relative(loaded.vae.encode(pixels), modules["vae"].encode(pixels).latent_dist.mode()) < 5e-6
        square = torch.randn(2, 3, 28, 28)
        assert relative(loaded.clip_vision(square), modules["image_encoder"](square).image_embeds) < 5e-6


def unet_inputs():
    generator = torch.Generator().manual_seed(1)
    shapes = ((3, 8, 8, 8), (1, 1, 32), (1, 48))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def unet_output(unet):
    x, context, vector = unet_inputs()
    with torch.no_grad():
        return unet(x, torch.full((3,), 0.5), context.expand(3, -1, -1), vector.expand(3, -1), num_frames=3)


def diffusers_unet_output(unet):
    """With the eps of the reference, and the vector given as it is instead of as three embedded ids."""
    for name, module in unet.named_modules():
        if isinstance(module, nn.GroupNorm) and ".resnets." in name:
            module.eps = 1e-5
    x, context, vector = unet_inputs()
    unet.add_time_proj.forward = lambda ids: vector.reshape(3, 16)
    with torch.no_grad():
        return unet(x[None], torch.tensor(0.5), context, added_time_ids=torch.zeros(1, 3)).sample[0]


@pytest.mark.parametrize(
    ("variant", "shard"),
    [("fp16", "10GB"), (None, "1MB"), ("fp16", "500KB")],
    ids=["fp16", "sharded", "sharded fp16"],
)
def test_shards_and_variants_of_a_folder_hold_the_same_weights(folder, tmp_path, variant, shard):
    dtype = torch.float16 if variant else torch.float32
    write_diffusers_folder(tmp_path, dtype=dtype, variant=variant, max_shard_size=shard)
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1 or shard == "10GB"
    expected = {key: weight.to(dtype) for key, weight in official_weights(load_modules(folder[0])).items()}
    assert_holds(load_modules(tmp_path, dtype=None), expected)


def test_full_precision_wins_where_a_folder_has_both(tmp_path):
    write_diffusers_folder(tmp_path)
    write_diffusers_folder(tmp_path, dtype=torch.float16, variant="fp16")
    assert set(inspect_checkpoint(tmp_path).dtypes) == {"float32"}


def test_the_frame_wise_autoencoder_of_diffusers_is_read_too(folder, tmp_path):
    from diffusers import AutoencoderKL

    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(
        block_out_channels=TINY.vae.level_channels, layers_per_block=2, latent_channels=4, **kinds
    ).eval()
    vae.save_pretrained(tmp_path / "vae")
    for part in ("unet", "image_encoder"):
        (tmp_path / part).symlink_to(folder[0] / part, target_is_directory=True)
    loaded = load_modules(tmp_path)
    assert loaded.config.vae == TINY_IMAGE_DECODER.vae
    with torch.no_grad():
        z = torch.randn(2, 4, 4, 4)
        assert relative(loaded.vae.decode(z, num_frames=2), vae.decode(z).sample) < 5e-6


# The variant


@pytest.mark.parametrize(("frames", "name"), [(14, "svd"), (25, "svd_xt"), (8, "custom")])
def test_a_folder_tells_its_variant_by_its_number_of_frames(folder, tmp_path, frames, name):
    copy_folder(folder[0], tmp_path, unet={"num_frames": frames})
    found = inspect_checkpoint(tmp_path)
    assert (found.variant.name, found.variant.frames, found.variant_assumed) == (name, frames, False)


def copy_folder(original, path, **changes):
    """The same folder through links, with some values of config.json files changed."""
    for part in ("unet", "vae", "image_encoder"):
        (path / part).mkdir()
        for file in (original / part).iterdir():
            (path / part / file.name).symlink_to(file)
        config = path / part / "config.json"
        values = json.loads(config.read_text()) | changes.get(part, {})
        config.unlink()
        config.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("config", "dtype", "name"),
    [
        (TINY, torch.float32, "svd"),
        (TINY, torch.float16, "svd_xt_1_1"),
        (TINY_IMAGE_DECODER, torch.float32, "svd_image_decoder"),
    ],
    ids=["full", "half", "image decoder"],
)
def test_a_bare_files_variant_is_assumed_and_said_to_be(tmp_path, config, dtype, name):
    path = write_checkpoint(tmp_path / "a.safetensors", config, dtype=dtype, metadata=head_widths(config))
    found = inspect_checkpoint(path)
    assert found.variant == VARIANTS[name]
    assert found.variant_assumed
    assert f"{name} (assumed: " in found.report()


def test_half_precision_without_the_leftovers_is_not_taken_for_a_release(tmp_path):
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, dtype=torch.float16, metadata=head_widths(TINY), without=LEFTOVERS)
    assert inspect_checkpoint(path).variant == VARIANTS["svd"]


def test_the_caller_has_the_last_word_on_the_variant(checkpoint):
    assert load_modules(checkpoint, variant="svd_xt").config.variant == VARIANTS["svd_xt"]
    mine = Variant("mine", frames=5, steps=1, min_guidance=1, max_guidance=1)
    assert inspect_checkpoint(checkpoint, variant=mine).variant == mine
    with pytest.raises(CheckpointError, match=r"variant 'svdxt' is not known: choose one of svd, "):
        load_modules(checkpoint, variant="svdxt")


def test_a_variant_taken_against_what_the_checkpoint_says_is_noted(checkpoint, folder, tmp_path):
    note = load_modules(checkpoint, variant="svd_xt").detection.variant_note
    assert note == (
        "the checkpoint says tiny (3 frames of 128x64): svd_xt (25 frames of 1024x576) was taken instead, as was asked"
    )
    assert not load_modules(checkpoint, variant=TINY.variant).detection.variant_note
    copy_folder(folder[0], tmp_path, unet={"num_frames": 25})
    for variant, noted in (("svd_xt", False), ("svd_xt_1_1", False), ("svd", True)):
        assert bool(load_modules(tmp_path, variant=variant).detection.variant_note) == noted


def test_the_metadata_may_name_a_released_variant(tmp_path):
    metadata = head_widths(TINY)
    metadata["svd_core.config"] = metadata["svd_core.config"][:-1] + ', "variant": "svd_xt"}'
    path = write_checkpoint(tmp_path / "a.safetensors", metadata=metadata)
    assert inspect_checkpoint(path).variant == VARIANTS["svd_xt"]
    assert not inspect_checkpoint(path).variant_assumed


# Inspection


def test_inspection_reads_no_weight(checkpoint, monkeypatch):
    def forbidden(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(SafetensorsFile, "get", forbidden)
    found = inspect_checkpoint(checkpoint)
    tensors = official_tensors()
    assert found.tensors == len(tensors)
    assert found.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert found.loadable


def test_the_report_says_what_the_file_is(checkpoint):
    report = str(inspect_checkpoint(checkpoint))
    unet = sum(tensor.numel() for key, tensor in official_tensors().items() if key.startswith(UNET))
    for words in ("Stable Video Diffusion", "tiny (known", "temporal", "float32", f"{unet:,}", "missing    none"):
        assert words in report


def test_inspection_lists_what_loading_would_refuse(tmp_path):
    lost, added = UNET + "input_blocks.1.0.in_layers.2.bias", UNET + "extra.weight"
    path = write_checkpoint(tmp_path / "a.safetensors", without=[lost], extra={added: torch.zeros(2)})
    found = inspect_checkpoint(path)
    assert (found.missing, found.unknown, found.loadable) == ((lost,), (added,), False)
    assert f"missing    1: {lost}" in found.report()


# What is refused: contents that are not Stable Video Diffusion, or not whole


def refused(path, *words):
    """Loading fails in one line that names the file and has all the words."""
    with pytest.raises(CheckpointError) as caught:
        load_modules(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message
    return message


VIDEO = "input_blocks.1.1.time_stack.0.attn1.to_q.weight"
KEYS = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"


def image_unet(context, channels=4, **more):
    shapes = {"input_blocks.0.0.weight": (8, channels, 3, 3), KEYS: (8, context), **more}
    return {UNET + name: shape for name, shape in shapes.items()}


def video_unet(vector, **more):
    shapes = {"input_blocks.0.0.weight": (8, 8, 3, 3), VIDEO: (8, 8), "label_emb.0.0.weight": (8, vector), **more}
    return {UNET + name: shape for name, shape in shapes.items()}


FAMILIES = {
    "Stable Diffusion 1.x": image_unet(768),
    "Stable Diffusion 1.x for inpainting": image_unet(768, 9),
    "Stable Diffusion 2.x": image_unet(1024),
    "SDXL": image_unet(2048, **{"label_emb.0.0.weight": (8, 2816)}),
    "the SDXL refiner": image_unet(1280, **{"label_emb.0.0.weight": (8, 2560)}),
    "SV3D_u": video_unet(256),
    "SV3D_p": video_unet(1280),
    "a video model with a vector of 500 numbers": video_unet(500),
    "SV4D": image_unet(1024, **{"input_blocks.1.1.motion_blocks.0.norm1.weight": (8,)}),
    "SV4D 2": image_unet(1024, **{"input_blocks.1.1.time_mixer_motion.mix_factor": (1,)}),
    "a LoRA": {"lora_unet_input_blocks_1_1_proj_in.lora_up.weight": (8, 4)},
    "a ControlNet": {"control_model.time_embed.0.weight": (8, 8)},
    "an AnimateDiff motion module": {"down_blocks.0.motion_modules.0.proj.weight": (8, 8)},
    "Flux": {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (8, 8)},
    "Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight": (8, 8)},
    "Wan": {"blocks.0.cross_attn.norm_q.weight": (8,)},
    "an SVD UNet without its prefix, alone": {VIDEO: (8, 8), "input_blocks.0.0.weight": (8, 8, 3, 3)},
    "a video UNet in diffusers' naming, alone": {"down_blocks.0.resnets.0.spatial_res_block.norm1.weight": (8,)},
    "an image encoder alone": {"vision_model.post_layernorm.weight": (8,)},
    "a video VAE in diffusers' naming, alone": {
        "decoder.conv_in.weight": (8, 4, 3, 3),
        "decoder.mid_block.resnets.0.spatial_res_block.norm1.weight": (8,),
        "decoder.time_conv_out.weight": (3, 3, 3, 1, 1),
        "encoder.down_blocks.0.resnets.0.norm1.weight": (8,),
    },
    "a VAE in diffusers' naming, alone": {
        "decoder.conv_in.weight": (8, 4, 3, 3),
        "decoder.mid_block.resnets.0.norm1.weight": (8,),
        "encoder.down_blocks.0.resnets.0.norm1.weight": (8,),
    },
    "a VAE alone": {"decoder.conv_in.weight": (8, 4, 3, 3)},
    "not a model we know": {"a.weight": (1,)},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_another_family_is_named_and_told_what_to_do(tmp_path, family):
    path = tmp_path / "svd_xt.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in FAMILIES[family].items()}, path)
    message = refused(path, family, ": ")
    assert ("with a LoRA loader, if it was made for SVD" in message) == (family == "a LoRA")
    assert f"is {family}, not Stable Video Diffusion" in message or family.startswith(("not", "a video"))
    with pytest.raises(CheckpointError, match=r"SVD|Stable Video"):
        inspect_checkpoint(path)


def test_a_torch_that_is_too_old_loads_nothing(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "tiny.safetensors")
    monkeypatch.setattr(torch, "__version__", "2.3.0")
    with pytest.raises(CheckpointError, match=r"tiny.safetensors cannot be used: torch 2.3.0 is too old, install 2.4"):
        load_modules(path)


def test_a_file_without_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "no tensors")


@pytest.mark.parametrize(("prefix", "part"), [(VISUAL, "CLIP image encoder"), (FIRST_STAGE, "VAE decoder")])
def test_a_model_without_one_of_its_parts_is_refused(tmp_path, prefix, part):
    refused(write_checkpoint(tmp_path / "a.safetensors", without=[prefix]), f"no {part}", "ImageOnlyCheckpointSave")


@pytest.mark.parametrize(
    "key",
    [
        UNET + "time_embed.0.weight",
        UNET + "input_blocks.0.0.weight",
        UNET + "input_blocks.2.0.op.weight",
        UNET + "input_blocks.3.0.time_mixer.mix_factor",
        VISUAL + "proj",
        VISUAL + "transformer.resblocks.1.attn.in_proj_bias",
        CONDITIONER_VAE + "quant_conv.bias",
        FIRST_STAGE + "decoder.up.3.block.2.mix_factor",
    ],
)
def test_a_missing_tensor_is_named(tmp_path, key):
    refused(write_checkpoint(tmp_path / "a.safetensors", without=[key]), key, "missing", "again")


@pytest.mark.parametrize("key", [FIRST_STAGE + "post_quant_conv.weight", FIRST_STAGE + "post_quant_conv.bias"])
def test_the_image_decoder_needs_its_post_quant_conv(tmp_path, key):
    refused(write_checkpoint(tmp_path / "a.safetensors", TINY_IMAGE_DECODER, without=[key]), key, "missing")


def test_many_missing_tensors_are_counted(tmp_path):
    path = write_checkpoint(tmp_path / "a.safetensors", without=[UNET + "output_blocks.3."])
    count = sum(key.startswith(UNET + "output_blocks.3.") for key in official_tensors())
    refused(path, f"{count} tensors are missing", f"and {count - 3} more")


def test_an_unknown_tensor_is_named(tmp_path):
    extra = {"model_ema.decay": torch.zeros(1)}
    refused(write_checkpoint(tmp_path / "a.safetensors", extra=extra), "1 tensor is unknown", "model_ema.decay")


def test_an_unknown_tensor_of_a_folder_is_named(folder, tmp_path):
    copy_folder(folder[0], tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights) | {"lora.weight": torch.zeros(1)}
    weights.unlink()
    save_file(tensors, weights)
    refused(tmp_path, "1 tensor is unknown", "unet/lora.weight")


def test_a_folder_with_one_third_of_a_projection_is_refused(folder, tmp_path):
    copy_folder(folder[0], tmp_path)
    weights = tmp_path / "image_encoder" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    weights.unlink()
    save_file(tensors, weights)
    refused(tmp_path, "1 tensor is missing", "resblocks.1.attn.in_proj_weight")


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path):
    key = UNET + "input_blocks.1.0.in_layers.0.weight"
    path = write_checkpoint(tmp_path / "a.safetensors", extra={key: torch.ones(33)})
    refused(path, key, "(33,)", "(32,)")


def test_parts_of_two_models_are_refused(tmp_path):
    wide = dataclasses.replace(TINY.clip_vision, output_dim=64)
    other = official_tensors(dataclasses.replace(TINY, clip_vision=wide))
    visual = {key: tensor for key, tensor in other.items() if key.startswith(VISUAL)}
    refused(write_checkpoint(tmp_path / "a.safetensors", extra=visual), "64 numbers in CLIP's embedding", "needs 32")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", [UNET + "middle_block.0.in_layers.2.weight", VISUAL + "class_embedding"])
def test_a_weight_that_is_not_finite_is_named(tmp_path, key, bad):
    tensor = official_tensors()[key].clone()
    tensor.view(-1)[-1] = bad
    refused(write_checkpoint(tmp_path / "a.safetensors", extra={key: tensor}), key, "not finite")


def test_a_weight_too_large_for_the_wanted_type_is_named(tmp_path):
    key = UNET + "out.2.bias"
    path = write_checkpoint(tmp_path / "a.safetensors", extra={key: torch.full((4,), -7e4)})
    assert official_weights(load_modules(path, dtype=torch.bfloat16))[key].isfinite().all()
    with pytest.raises(CheckpointError, match=r"out\.2\.bias reaches 7e\+04, more than torch\.float16 holds"):
        load_modules(path, dtype=torch.float16)


def test_whole_numbers_are_no_weights(tmp_path):
    key = UNET + "out.2.bias"
    path = write_checkpoint(tmp_path / "a.safetensors", extra={key: torch.zeros(4, dtype=torch.int8)})
    refused(path, key, "int8")
    found = inspect_checkpoint(path)
    assert not found.loadable and found.mistyped == (key,)
    assert f"no floats  1: {key}\nloadable   no" in found.report()


# What is refused: a description that cannot be true

DESCRIPTIONS = {
    "not JSON": "{",
    "is a list": "[]",
    "unknown field 'unett'": '{"unett": {}}',
    "unknown field 'heads'": '{"unet": {"heads": 4}}',
    "needs a whole number": '{"unet": {"head_channels": 0}}',
    "unet.head_channels is '8'": '{"unet": {"head_channels": "8"}}',
    "clip_vision.head_channels is True": '{"clip_vision": {"head_channels": true}}',
    "'svd2' is not known": '{"variant": "svd2"}',
    "frames is -3": '{"variant": {"frames": -3}}',
    "height 60 is not a multiple of 8": '{"variant": {"height": 60}}',
    "max_guidance is nan": '{"variant": {"max_guidance": NaN}}',
    "name is 3": '{"variant": {"name": 3}}',
    "not a multiple of the head width 24": '{"unet": {"head_channels": 24}}',
    "not a multiple of the head width 64": "{}",
}


@pytest.mark.parametrize("words", DESCRIPTIONS)
def test_a_wrong_description_is_refused(tmp_path, words):
    metadata = {"svd_core.config": DESCRIPTIONS[words]}
    refused(write_checkpoint(tmp_path / "a.safetensors", metadata=metadata), words, "svd_core.config")


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("unet", {"num_frames": 0}, "num_frames is 0"),
        ("unet", {"num_attention_heads": [4, 4]}, "not one head width"),
        ("unet", {"num_attention_heads": [4]}, "not one head width"),
        ("image_encoder", {"num_attention_heads": 3}, "not a multiple of num_attention_heads 3"),
    ],
)
def test_a_wrong_config_of_a_folder_is_refused(folder, tmp_path, part, values, words):
    copy_folder(folder[0], tmp_path, **{part: values})
    refused(tmp_path, words, f"{part}/config.json")


# What is refused: things that are no safetensors file


class Boom:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["svd.ckpt", "svd.pt", "svd.bin", "svd.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_unopened_whatever_its_name(tmp_path, name, zipped):
    path, mark = tmp_path / name, tmp_path / "mark"
    if zipped:
        torch.save({"state_dict": Boom(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Boom(mark)))
    refused(path, "pickle", "safetensors.torch.save_file", "weights_only=True")
    assert not mark.exists()


def test_a_zip_archive_is_not_taken_for_a_pickle(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "nothing here")
    refused(tmp_path / "a.zip", "is a zip archive or a pickle (.ckpt")


def test_a_folder_of_pickles_is_refused(folder, tmp_path):
    copy_folder(folder[0], tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    refused(tmp_path, "pickle", "diffusion_pytorch_model.bin", "safe_serialization")


STRANGERS = {
    "is empty": b"",
    "a text file": b"the quick brown fox jumps over the lazy dog",
    "a web page": b"<!DOCTYPE html><html><body>Please log in to download this model.</body></html>",
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9559625980\n",
    "a GGUF file": b"GGUF\x03\x00\x00\x00" + bytes(64),
    "a PNG picture": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "a gzip archive": b"\x1f\x8b\x08" + bytes(64),
    "not a safetensors file": bytes(range(200, 256)),
    "not a safetensors file: ": b"\x00",
}


@pytest.mark.parametrize("words", STRANGERS)
def test_a_stranger_is_named(tmp_path, words):
    path = tmp_path / "svd.safetensors"
    path.write_bytes(STRANGERS[words])
    refused(path, words)


def test_nothing_there_is_said(tmp_path):
    refused(tmp_path / "nothing.safetensors", "does not exist")


@pytest.mark.skipif(os.name != "posix", reason="needs a device file")
def test_a_device_is_not_a_file():
    refused(Path("/dev/null"), "not a regular file")


def test_a_folder_of_another_pipeline_is_named(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    refused(tmp_path, "StableDiffusionXLPipeline", "vae, image_encoder missing")


def test_any_other_folder_is_refused(tmp_path):
    refused(tmp_path, "not a diffusers folder", "unet, vae, image_encoder missing")
    save_file({}, tmp_path / "svd.safetensors")
    refused(tmp_path, "give one of them", "svd.safetensors")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "a video UNet in diffusers'"),
        ("vae", "a video VAE in diffusers'"),
        ("image_encoder", "an image encoder"),
    ],
)
def test_a_part_of_a_folder_alone_is_named_for_what_it_is(folder, part, name):
    (file,) = (folder[0] / part).glob("*.safetensors")
    refused(file, f"is {name}", "a folder that holds unet, vae and image_encoder")


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
def test_for_a_part_of_a_folder_the_folder_above_is_asked_for(folder, monkeypatch, part):
    said = f"is only the {part} of the model in the folder above: give {folder[0]}"
    assert refused(folder[0] / part, said).endswith(said)
    monkeypatch.chdir(folder[0] / part)
    assert refused(Path(), said).endswith(said)


def test_a_folder_of_files_may_be_called_unet(tmp_path):
    """As ComfyUI has it."""
    for name in ("unet", "vae"):
        (tmp_path / name).mkdir()
    save_file({}, tmp_path / "unet" / "svd.safetensors")
    refused(tmp_path / "unet", "give one of them", "svd.safetensors")


def test_a_folder_without_weights_is_refused(folder, tmp_path):
    copy_folder(folder[0], tmp_path)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    refused(tmp_path, "vae holds no complete .safetensors weights")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "not an index"),
        ("[]", "not an index"),
        ('{"weight_map": {}}', "names no shards"),
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "strange ones"),
        ('{"weight_map": {"a": 3}}', "not an index"),
        ('{"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}', "lacks 1 of 1 shards"),
    ],
)
def test_a_bad_index_of_shards_is_refused(folder, tmp_path, index, words):
    copy_folder(folder[0], tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    refused(tmp_path, words)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_diffusers_folder(tmp_path, max_shard_size="1MB")
    first, second, *_ = sorted((tmp_path / "unet").glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    refused(tmp_path, "is in both")


# What is refused: damage


def safetensors_file(path, header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize("keep", [60, 5000, -1000, -1])
def test_a_truncated_file_is_refused(checkpoint, tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:keep])
    refused(path, "is truncated", "again")


@pytest.mark.parametrize("keep", [1, 4, 8])
def test_a_file_cut_before_its_header_is_refused(checkpoint, tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:keep])
    refused(path, "not a safetensors file", "again")


def test_truncation_says_how_much_is_there(tmp_path):
    path = safetensors_file(tmp_path / "a", {"a": entry([4], 0, 16)}, bytes(10))
    refused(path, "header says 16 bytes of weights, the file has 10")


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LIES = {
    "shape needs 16 bytes, range has 8": {"a": entry([4], 0, 8)},
    "shape needs 8 bytes, range has -8": {"a": entry([2], 8, 0)},
    "shape needs 400000000000000000000 bytes": {"a": entry([10**20], 0, 8)},
    "starts at 0, needs 8": {"a": entry([2], 0, 8), "b": entry([2], 0, 8)},
    "starts at 12, needs 8": {"a": entry([2], 0, 8), "b": entry([1], 12, 16)},
    "is truncated": {"a": entry([100], 0, 400)},
    "8 bytes that its header does not mention": {"a": entry([2], 0, 8)},
    "not whole numbers": {"a": entry([-2, -1], 0, 8)},
    "are not whole numbers": {"a": entry([True, 2], 0, 8)},
    "of a are not whole numbers": {"a": entry([2.0], 0, 8)},
    "or offsets of a are not whole": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}},
    "malformed": {"a": {"dtype": "F32"}},
    "entry for a is malformed": {"a": 3},
    "stored as 'Q4'": {"a": entry([2], 0, 8, "Q4")},
    "stored as '[]'": {"a": entry([2], 0, 8, [])},
    "metadata that are not": {"__metadata__": {"a": 1}},
    "a name is given twice": b'{"a": 1, "a": 2}',
    "broken header": b"{nonsense}",
    "nested too deep": b"{" + b'"a":{' * 100_000,
    "broken header (": b'{"\xff\xfe": 1}',
}


@pytest.mark.parametrize("words", LIES)
def test_a_header_that_lies_is_refused(tmp_path, words):
    refused(safetensors_file(tmp_path / "a.safetensors", LIES[words], bytes(16)), words)


@pytest.mark.parametrize(("length", "words"), [(2**63, "more than the format's"), (10**6, "truncated"), (3, "broken")])
def test_an_absurd_header_length_is_refused(tmp_path, length, words):
    path = safetensors_file(tmp_path / "a.safetensors", {"a": entry([2], 0, 8)}, bytes(8), length=length)
    refused(path, words)


def test_names_from_a_file_cannot_break_the_line(tmp_path):
    refused(safetensors_file(tmp_path / "a.safetensors", {"x\ny" * 200: 3}), r"x\ny")


def test_a_header_length_that_looks_like_a_pickle_is_read(tmp_path):
    text = json.dumps({"a": entry([2], 0, 8)}).encode().ljust(0x280)
    path = safetensors_file(tmp_path / "a.safetensors", text, bytes(8))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert open_source(path).info("a").shape == (2,)
