"""The streamed decoder as it runs on a device, on the CPU: every fused operation asked for, each as its reference."""

import pytest
import torch
from weights import randomise, relative

import svd_core.decode.pictures
import svd_core.model.vae
from svd_core.config import VAEConfig
from svd_core.decode.places import MODES
from svd_core.kernels import choice
from svd_core.kernels.choice import Choices
from svd_core.model.vae import VideoVAE

CONFIG = VAEConfig(channels=32, res_blocks=1)


@pytest.fixture
def asked(monkeypatch):
    """Names of the operations that were asked for, on a device that is told to be capable."""
    names = set()

    class Recording(Choices):
        def form(self, operation, args):
            names.update([] if operation.refusal(*args) else [operation.name])
            return operation.reference

    recording = Recording(lambda device: "")
    monkeypatch.setattr(choice, "choices", lambda: recording)
    return names


@pytest.fixture
def small_bands(monkeypatch):
    """Several bands and strips even of small frames."""
    monkeypatch.setattr(svd_core.model.vae, "band_bytes", lambda device: 2**14)


@torch.inference_mode()
def test_a_decode_asks_for_every_operation_and_gets_the_same_pictures(asked, small_bands):
    vae = randomise(VideoVAE(CONFIG))
    z = torch.randn(3, 4, 3, 5)
    streamed = vae.decode(z, 3)
    assert asked == {"split_moments", "owed_moments", "owed_sum", "merged_affine", "affine_silu", "frame_conv"}
    assert relative(streamed, vae.decode_whole(z, 3)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_no_bit_depends_on_mode_or_chunk(asked, small_bands, dtype):
    vae = randomise(VideoVAE(CONFIG)).to(dtype)
    z = torch.randn(3, 4, 3, 5).to(dtype)
    first = vae.decode(z, 3, chunk=1)
    assert asked
    assert all(torch.equal(vae.decode(z, 3, chunk=chunk), first) for chunk in (2, 3, None))
    assert all(torch.equal(vae.decode(z, 3, mode=mode), first) for mode in MODES)


@torch.inference_mode()
def test_no_bit_of_an_encoding_depends_on_mode(asked, monkeypatch):
    """Which is where a first convolution's result is worked out twice instead of being kept."""
    vae = randomise(VideoVAE(CONFIG)).bfloat16()
    monkeypatch.setattr(svd_core.decode.pictures, "PLAIN_PIXELS", 0)
    monkeypatch.setattr(svd_core.model.vae, "band_bytes", lambda device: 2**14)
    pixels = torch.rand(1, 3, 40, 56).bfloat16() * 2 - 1
    plain = vae.encode(pixels, mode="device")
    assert "owed_moments" in asked
    assert all(torch.equal(vae.encode(pixels, mode=mode), plain) for mode in MODES)
    assert relative(plain.float(), vae.float().encode(pixels.float())) < 0.05
