"""The autoencoder against diffusers, and the properties that make it the reference's (spec 2, 14)."""

import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch.utils.flop_counter import FlopCounterMode
from weights import randomise, relative

from svd_core.config import VAEConfig
from svd_core.errors import InputError
from svd_core.model.backend import Backend
from svd_core.model.layout import from_clips, to_clips
from svd_core.model.vae import VideoVAE
from svd_core.model.vae_blocks import VideoBlock
from svd_core.model.vae_networks import ImageDecoder, TemporalDecoder

SMALL = VAEConfig(channels=32)
SMALL_IMAGE = VAEConfig(channels=32, temporal=False, decoder_quant=True)
PICTURES = [(2, 3, 64, 64), (1, 3, 40, 72), (1, 3, 8, 24)]  # the last two have odd latents
CLIPS = [(2, 3, 4, 6), (1, 5, 5, 9), (1, 1, 1, 3)]  # clips, frames, h, w

LEVELS = 4
RENAMED = [
    (r"down\.(\d)\.block\.(\d)\.", r"down_blocks.\1.resnets.\2."),
    (r"down\.(\d)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"up\.(\d)\.block\.(\d)\.", lambda m: f"up_blocks.{LEVELS - 1 - int(m[1])}.resnets.{m[2]}."),
    (r"up\.(\d)\.upsample\.", lambda m: f"up_blocks.{LEVELS - 1 - int(m[1])}.upsamplers.0."),
    (r"mid\.block_(\d)\.", lambda m: f"mid_block.resnets.{int(m[1]) - 1}."),
    (r"mid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"mid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1."),
    (r"mid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."),
    (r"nin_shortcut", "conv_shortcut"),
    (r"norm_out", "conv_norm_out"),
    (r"conv_out\.time_mix_conv", "time_conv_out"),
]
RENAMED_IN_VIDEO_BLOCKS = [
    (r"time_stack\.in_layers\.0", "temporal_res_block.norm1"),
    (r"time_stack\.in_layers\.2", "temporal_res_block.conv1"),
    (r"time_stack\.out_layers\.0", "temporal_res_block.norm2"),
    (r"time_stack\.out_layers\.3", "temporal_res_block.conv2"),
    (r"mix_factor", "time_mixer.mix_factor"),
    (r"(resnets\.\d)\.(norm\d|conv\d|conv_shortcut)\b", r"\1.spatial_res_block.\2"),
]


def diffusers_name(name: str, temporal: bool) -> str:
    """Spec 9.2, from the official name to that of diffusers."""
    rules = RENAMED + (RENAMED_IN_VIDEO_BLOCKS if temporal and name.startswith("decoder.") else [])
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def fill(theirs: torch.nn.Module, ours: VideoVAE) -> torch.nn.Module:
    """Their module on our weights; their attention is linear layers where ours is 1x1 convolutions."""
    named = {diffusers_name(name, ours.config.temporal): value for name, value in ours.state_dict().items()}
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    theirs.load_state_dict({name: value.reshape(shapes[name]) for name, value in named.items()}, strict=True)
    return theirs.eval()


@pytest.fixture(scope="module")
def video_pair():
    ours = randomise(VideoVAE(SMALL))
    theirs = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * LEVELS, block_out_channels=SMALL.level_channels, layers_per_block=2
    )
    return ours, fill(theirs, ours)


@pytest.fixture(scope="module")
def image_pair():
    ours = randomise(VideoVAE(SMALL_IMAGE), seed=1)
    theirs = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * LEVELS,
        up_block_types=("UpDecoderBlock2D",) * LEVELS,
        block_out_channels=SMALL_IMAGE.level_channels,
        layers_per_block=2,
        norm_num_groups=32,
    )
    return ours, fill(theirs, ours)


def latents(clips: int, frames: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(clips * frames, 4, height, width)


@pytest.mark.parametrize("shape", PICTURES)
@torch.inference_mode()
def test_encoder_equals_diffusers(video_pair, shape):
    ours, theirs = video_pair
    pixels = torch.rand(shape) * 2 - 1
    mean = ours.encode(pixels)
    assert mean.shape == (shape[0], 4, shape[2] // 8, shape[3] // 8)
    assert relative(mean, theirs.encode(pixels).latent_dist.mean) <= 5e-6


@pytest.mark.parametrize("shape", CLIPS)
@torch.inference_mode()
def test_temporal_decoder_equals_diffusers(video_pair, shape):
    ours, theirs = video_pair
    z = latents(*shape)
    frames = ours.decode_whole(z, num_frames=shape[1])
    assert frames.shape == (len(z), 3, 8 * shape[2], 8 * shape[3])
    assert relative(frames, theirs.decode(z, num_frames=shape[1]).sample) <= 5e-6


@pytest.mark.parametrize("shape", CLIPS)
@torch.inference_mode()
def test_image_decoder_equals_diffusers(image_pair, shape):
    ours, theirs = image_pair
    z = latents(*shape)
    assert relative(ours.decode_whole(z, num_frames=shape[1]), theirs.decode(z).sample) <= 5e-6


@torch.inference_mode()
def test_quant_conv_folds_into_the_encoders_last_convolution(video_pair):
    """Spec 2.1: what lets a file leave `quant_conv` out."""
    ours, _ = video_pair
    folded = VideoVAE(VAEConfig(channels=32, encoder_quant=False))
    state = ours.state_dict()
    quant, bias = state.pop("quant_conv.weight")[:, :, 0, 0], state.pop("quant_conv.bias")
    state["encoder.conv_out.weight"] = torch.einsum("oi,ikhw->okhw", quant, state["encoder.conv_out.weight"])
    state["encoder.conv_out.bias"] = quant @ state["encoder.conv_out.bias"] + bias
    folded.load_state_dict(state, strict=True)
    pixels = torch.rand(1, 3, 32, 40) * 2 - 1
    assert relative(folded.encode(pixels), ours.encode(pixels)) <= 5e-6


def video_block(mix_factor: float) -> tuple[VideoBlock, torch.Tensor, torch.Tensor]:
    """A block, its input, and what its part inside a frame makes of it."""
    block = randomise(VideoBlock(32, 64, backend=Backend()))
    block.mix_factor.data.fill_(mix_factor)
    images = torch.randn(6, 32, 5, 7)
    return block, images, block.spatial(images)


def temporal_path(block: VideoBlock, spatial: torch.Tensor) -> torch.Tensor:
    return spatial + from_clips(block.time_stack(to_clips(spatial, 3)), 5)


@torch.inference_mode()
def test_an_infinite_mix_factor_leaves_the_temporal_path():
    """Spec 14, test 6; the UNet's blocks, with the opposite operands, would keep the spatial one."""
    block, images, spatial = video_block(torch.inf)
    assert relative(block(images, 3), temporal_path(block, spatial)) <= 1e-7
    assert relative(block(images, 3), spatial) > 0.1


@torch.inference_mode()
def test_a_negative_infinite_mix_factor_leaves_the_spatial_path():
    block, images, spatial = video_block(-torch.inf)
    assert torch.equal(block(images, 3), spatial)


@torch.inference_mode()
def test_the_folded_blend_equals_the_blend_as_published():
    block, images, spatial = video_block(0.7)
    alpha = torch.sigmoid(torch.tensor(0.7))
    blended = alpha * temporal_path(block, spatial) + (1 - alpha) * spatial
    assert relative(block(images, 3), blended) <= 1e-6


@torch.inference_mode()
def test_permuting_clips_permutes_frames(video_pair):
    ours, _ = video_pair
    z = latents(3, 2, 3, 5)
    order = torch.tensor([4, 5, 0, 1, 2, 3])
    assert relative(ours.decode(z[order], 2), ours.decode(z, 2)[order]) <= 2e-6


@torch.inference_mode()
def test_the_result_does_not_depend_on_the_inputs_memory_format(video_pair):
    ours, _ = video_pair
    z = latents(1, 3, 3, 5)
    assert torch.equal(ours.decode(z.to(memory_format=torch.channels_last), 3), ours.decode(z, 3))


@torch.inference_mode()
def test_nothing_is_written_to_the_input(video_pair):
    ours, _ = video_pair
    z, pixels = latents(1, 2, 3, 5), torch.rand(1, 3, 16, 24)
    before = z.clone(), pixels.clone()
    ours.decode_whole(z, 2), ours.decode(z, 2, chunk=1), ours.encode(pixels)
    assert torch.equal(z, before[0])
    assert torch.equal(pixels, before[1])


def test_a_training_step_reaches_every_weight():
    ours = randomise(VideoVAE(SMALL))
    z = ours.encode(torch.rand(2, 3, 16, 24) * 2 - 1)
    (ours.decode_whole(z, 2).square().sum() + z.square().sum()).backward()
    assert [name for name, weight in ours.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize(
    ("module", "parameters", "tensors"),
    [("encoder", 34_163_592, 106), ("decoder", 63_579_183, 266), ("quant_conv", 72, 2)],
)
def test_full_size_counts(module, parameters, tensors):
    part = VideoVAE(VAEConfig(), backend=Backend(device="meta")).get_submodule(module)
    assert sum(value.numel() for value in part.parameters()) == parameters
    assert len(part.state_dict()) == tensors


def test_the_image_decoder_has_the_temporal_decoders_weights_less_those_across_frames():
    meta = Backend(device="meta")
    image = set(ImageDecoder(VAEConfig(temporal=False), backend=meta).state_dict())
    temporal = set(TemporalDecoder(VAEConfig(), backend=meta).state_dict())
    across = {name for name in temporal if "time_stack" in name or "mix_factor" in name or "time_mix_conv" in name}
    assert temporal - across == image
    assert len(image) == 138


def flops(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@torch.inference_mode()
def test_full_size_work():
    """Spec 12.2, with the shapes of spec 14, test 3; counted on the meta device."""
    vae = VideoVAE(VAEConfig(encoder_quant=False), backend=Backend(device="meta"))
    z = torch.empty(14, 4, 72, 128, device="meta")
    assert vae.decode_whole(z, 14).shape == (14, 3, 576, 1024)
    assert flops(lambda: vae.decode_whole(z, 14)) == pytest.approx(97.2016e12, abs=0.00005e12)
    pixels = torch.empty(1, 3, 576, 1024, device="meta")
    assert flops(lambda: vae.encoder(pixels)) == pytest.approx(2.6091e12, abs=0.00005e12)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 3, 65, 64), "65x64"),
        ((1, 3, 64, 4), "64x4"),
        ((1, 4, 64, 64), r"\(1, 4, 64, 64\)"),
        ((3, 64, 64), r"\(3, 64, 64\)"),
        ((1, 3, 0, 64), r"\(1, 3, 0, 64\)"),
    ],
)
def test_bad_pixels_are_refused(video_pair, shape, said):
    with pytest.raises(InputError, match=said):
        video_pair[0].encode(torch.zeros(shape))


def test_a_batch_is_one_clip_unless_its_length_is_given(video_pair):
    ours, z = video_pair[0], latents(1, 4, 2, 3)
    assert torch.equal(ours.decode(z), ours.decode(z, num_frames=4))
    assert not torch.equal(ours.decode(z), ours.decode(z, num_frames=2))


@pytest.mark.parametrize(
    ("shape", "settings", "said"),
    [
        ((5, 4, 2, 2), {"num_frames": 2}, "5 latents for clips of 2"),
        ((6, 4, 2, 2), {"num_frames": 3.0}, "6 latents for clips of 3.0 frames; it needs whole clips"),
        ((5, 4, 2, 2), {"num_frames": 0}, "clips of 0"),
        ((5, 4, 2, 2), {"num_frames": -5}, "clips of -5"),
        ((0, 4, 2, 2), {"num_frames": 1}, r"\(0, 4, 2, 2\)"),
        ((2, 8, 2, 2), {"num_frames": 2}, r"\(2, 8, 2, 2\)"),
        ((2, 4, 2), {"num_frames": 2}, r"\(2, 4, 2\)"),
        ((2, 4, 2), {}, r"\(2, 4, 2\)"),
        ((), {}, r"\(\)"),
        ((1, 4, 2, 2, 2), {"num_frames": 2}, r"\(1, 4, 2, 2, 2\).*join clips and frames in the first axis"),
        ((2, 4, 2, 2), {"num_frames": 2, "chunk": 0}, "chunk is 0"),
        ((2, 4, 2, 2), {"num_frames": 2, "budget": -1}, "budget is -1"),
    ],
)
def test_bad_latents_are_refused(video_pair, shape, settings, said):
    with pytest.raises(InputError, match=said):
        video_pair[0].decode(torch.zeros(shape), **settings)


@torch.inference_mode()
def test_frames_may_be_counted_by_numpy_and_arrays_are_refused(video_pair):
    ours, z = video_pair[0], torch.zeros(4, 4, 2, 2)
    assert torch.equal(ours.decode(z, np.int64(2)), ours.decode(z, 2))
    assert torch.equal(ours.decode_whole(z, np.int64(2)), ours.decode_whole(z, 2))
    with pytest.raises(InputError, match="latents of class ndarray"):
        ours.decode(z.numpy(), 2)
