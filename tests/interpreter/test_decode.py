"""The streamed decoder with its kernels, in Triton's interpreter: the plain decoder's pictures, in every mode the same
bits."""

import pytest
import torch
from weights import randomise, relative

import svd_core.model.vae
from svd_core.config import VAEConfig
from svd_core.decode.places import MODES
from svd_core.kernels import choice
from svd_core.kernels.choice import Choices
from svd_core.model.vae import VideoVAE

CONFIG = VAEConfig(channels=32, res_blocks=1)


@pytest.fixture(autouse=True)
def kernels_everywhere(monkeypatch):
    class Always(Choices):
        def form(self, operation, args):
            return operation.reference if operation.refusal(*args) else next(iter(operation.kernels().values()))

    always = Always(lambda device: "")
    monkeypatch.setattr(choice, "choices", lambda: always)
    monkeypatch.setattr(svd_core.model.vae, "band_bytes", lambda device: 2**15)


@torch.inference_mode()
def test_kernels_decode_as_torch_does():
    vae = randomise(VideoVAE(CONFIG))
    z = torch.randn(2, 4, 2, 3)
    first = vae.decode(z, 2, mode="device", chunk=2)
    assert relative(first, vae.decode_whole(z, 2)) <= 1e-5
    assert all(torch.equal(vae.decode(z, 2, mode=mode, chunk=1), first) for mode in MODES)
