"""Channels last throughout, as torch reads it, and in every decode mode the same layout for every call.

Torch calls a tensor channels last by the strides of all axes, those of size 1 too, and a convolution that is handed
another layout turns its input and its result. Where that depends on the mode, so do the forms of operations that run,
and with them the bits.
"""

from collections import Counter

import pytest
import torch
from synthetic import TINY
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from weights import randomise

from svd_core.decode.places import MODES
from svd_core.kernels import choice
from svd_core.kernels.choice import Choices
from svd_core.model.layout import to_clips
from svd_core.model.unet import VideoUNet
from svd_core.model.vae import VideoVAE


class Convolutions(TorchDispatchMode):
    """Counts convolutions, and notes those whose result torch does not take for channels last."""

    def __init__(self):
        super().__init__()
        self.count, self.turned = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name == "aten::convolution":
            self.count += 1
            if suggest_memory_format(result) != torch.channels_last:
                self.turned.append((tuple(args[0].shape), args[0].stride(), result.stride()))
        return result


@pytest.mark.parametrize("clips", [1, 2])
@torch.no_grad()
def test_no_convolution_of_a_step_turns_its_images(clips):
    config, frames = TINY.unet, 3
    unet, n = VideoUNet(config), clips * frames
    x = torch.randn(n, config.in_channels, 8, 16)
    with Convolutions() as seen:
        unet(x, torch.zeros(n), torch.randn(n, 1, config.context_dim), torch.randn(n, config.vector_dim), frames)
    assert seen.count > 16
    assert not seen.turned


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_no_convolution_of_a_decode_turns_its_frames(mode):
    vae = VideoVAE(TINY.vae)
    with Convolutions() as seen:
        vae.decode(torch.randn(3, 4, 8, 16), 3, mode=mode)
        vae.encode(torch.rand(1, 3, 64, 128), mode=mode)
    assert seen.count > 100
    assert not seen.turned


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_clips_are_channels_last_to_torch_however_few_there_are(frames):
    images = torch.randn(6, 8, 4, 5).contiguous(memory_format=torch.channels_last)
    clips = to_clips(images, frames)
    assert suggest_memory_format(clips) == torch.channels_last
    assert clips.data_ptr() == images.data_ptr()
    assert torch.equal(clips[0, :, 0].reshape(8, 4, 5), images[0])


@pytest.fixture
def asked(monkeypatch):
    """Every call of a fused operation on a device that is told to be capable: its name, whether kernels take it, and
    how its tensors lie, axes of size 1 left out."""
    calls = Counter()

    class Recording(Choices):
        def form(self, operation, args):
            layouts = tuple(_layout(arg) for arg in args if isinstance(arg, torch.Tensor))
            calls[operation.name, operation.refusal(*args) == "", layouts] += 1
            return operation.reference

    recording = Recording(lambda device: "")
    monkeypatch.setattr(choice, "choices", lambda: recording)
    return calls


def _layout(tensor):
    return tuple((size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_every_mode_hands_the_operations_the_same_layouts(asked, dtype):
    vae, z = randomise(VideoVAE(TINY.vae)).to(dtype), torch.randn(5, 4, 8, 16).to(dtype)
    by_mode = []
    for mode in MODES:
        asked.clear()
        vae.decode(z, 5, mode=mode)
        by_mode.append(Counter(asked))
    assert len(by_mode[0]) > 20
    assert all(taken for _, taken, _ in by_mode[0])
    assert by_mode[1] == by_mode[2] == by_mode[0]
