"""The autoencoder against ComfyUI's own, on the same random weights and under the same names, and on its layers."""

import pytest
import torch
from weights import randomise, relative

from svd_core.config import VAEConfig
from svd_core.model.backend import Backend
from svd_core.model.vae import VideoVAE
from svd_core.model.vae_networks import TemporalDecoder

SMALL = VAEConfig(channels=32, encoder_quant=False)
SETTINGS = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def ours():
    return randomise(VideoVAE(SMALL))


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 5, 5, 9), (1, 1, 3, 3)])
@torch.inference_mode()
def test_decoder_equals_comfyui(comfy, ours, shape):
    from comfy.ldm.modules.temporal_ae import VideoDecoder

    theirs = VideoDecoder(**SETTINGS, video_kernel_size=[3, 1, 1], alpha=0.0)
    theirs.load_state_dict(ours.decoder.state_dict(), strict=True)
    clips, frames, height, width = shape
    z = torch.randn(clips * frames, 4, height, width)
    expected = torch.cat([theirs.eval()(clip) for clip in z.split(frames)])  # it takes all it is given for one clip
    assert relative(ours.decode_whole(z, frames), expected) <= 5e-6


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 40, 72)])
@torch.inference_mode()
def test_encoder_equals_comfyui(comfy, ours, shape):
    from comfy.ldm.modules.diffusionmodules.model import Encoder

    theirs = Encoder(**SETTINGS)
    theirs.load_state_dict(ours.encoder.state_dict(), strict=True)
    pixels = torch.rand(shape) * 2 - 1
    assert relative(ours.encode(pixels), theirs.eval()(pixels)[:, :4]) <= 5e-6


@torch.inference_mode()
def test_comfyui_layers_that_cast_their_weights_decode_the_same(comfy, ours):
    """Weights kept in float16 under layers that compute in the input's dtype: plain and streamed."""
    import comfy.ops

    backend = Backend(operations=comfy.ops.manual_cast, dtype=torch.float16)
    hosted = TemporalDecoder(SMALL, backend=backend).eval()
    hosted.load_state_dict(ours.decoder.state_dict(), strict=True)
    plain = TemporalDecoder(SMALL).eval()
    plain.load_state_dict({name: value.half() for name, value in ours.decoder.state_dict().items()}, strict=True)
    host, reference = VideoVAE(SMALL, backend=backend), VideoVAE(SMALL)
    host.decoder, reference.decoder = hosted, plain
    z = torch.randn(3, 4, 3, 5)
    expected = reference.decode_whole(z, 3)
    assert relative(host.decode_whole(z, 3), expected) <= 5e-6
    assert relative(host.decode(z, 3, chunk=2), expected) <= 5e-6
