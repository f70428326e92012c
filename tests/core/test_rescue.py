"""Half precision that overflows is noticed, decoded again in float32 and told."""

from dataclasses import replace

import pytest
import torch
from test_decode import SMALL, ramped
from weights import randomise, relative

from svd_core.cli import _warnings_as_notes
from svd_core.decode.rescue import rescued
from svd_core.errors import InputError, PrecisionWarning
from svd_core.model.vae import VideoVAE


def overflowing(*, temporal: bool = True, factor: float = 1e5) -> tuple[VideoVAE, VideoVAE]:
    """The same weights in float16, whose finest level leaves that type's range, and in float32, where nothing does."""
    config = replace(SMALL, temporal=temporal, decoder_quant=not temporal)
    precise = randomise(VideoVAE(config))
    with torch.no_grad():
        for block in precise.decoder.up[0].block:
            block.conv2.bias.fill_(0.6 * factor)
            block.conv2.weight.mul_(1e3)
    half = VideoVAE(config).half()
    half.load_state_dict(precise.state_dict())
    precise.load_state_dict(half.state_dict())
    return half, precise


@pytest.mark.parametrize("settings", [{}, {"mode": "bands"}, {"budget": 2**30}])
@torch.inference_mode()
def test_a_clip_that_overflows_is_decoded_again_and_told(settings):
    half, precise = overflowing()
    z = ramped(3, 2, 3).half()
    with pytest.warns(PrecisionWarning, match="frames 0 to 2 overflowed float16, so frames 0 to 2 had"):
        pixels = half.decode(z, 3, **settings)
    assert pixels.dtype == torch.float16
    assert torch.equal(pixels, precise.decode(z.float(), 3).half())


@torch.inference_mode()
def test_float32_is_never_decoded_twice():
    pixels = torch.full((1, 3, 8, 8), torch.nan)
    assert rescued(pixels, torch.zeros(1, 4, 1, 1), pytest.fail, together=True) is pixels


@torch.inference_mode()
def test_only_the_frames_concerned_are_decoded_again_where_each_stands_alone():
    pixels = torch.zeros(5, 3, 8, 8).half()
    pixels[1, 0, 3, 3] = torch.inf
    pixels[3] = torch.nan
    latents = torch.arange(5.0).half()[:, None, None, None].expand(5, 4, 1, 1)
    with pytest.warns(PrecisionWarning, match="frames 1 and 3 overflowed float16, so frames 1 and 3 had"):
        mended = rescued(pixels, latents, lambda z: z[:, :3].expand(-1, 3, 8, 8), together=False)
    assert mended[:, 0, 0, 0].tolist() == [0, 1, 0, 3, 0]


@torch.inference_mode()
def test_what_float32_cannot_hold_is_an_error_that_names_the_frames():
    half, _ = overflowing()
    z = ramped(2, 1, 1).half()
    z[1] = torch.nan
    with (
        pytest.warns(PrecisionWarning),
        pytest.raises(InputError, match="NaN or infinity in frames 0 to 1"),
    ):
        half.decode(z, 2)


@torch.inference_mode()
def test_what_fits_is_not_touched():
    half, precise = overflowing(factor=1e-3)
    z = ramped(2, 2, 3).half()
    with torch.no_grad():
        for block in half.decoder.up[0].block:
            block.conv2.weight.div_(1e3)
        precise.load_state_dict(half.state_dict())
    assert relative(half.decode(z, 2), precise.decode(z.float(), 2)) < 0.02


def test_the_command_line_prints_it_as_a_note(capsys):
    half, _ = overflowing()
    with _warnings_as_notes(), torch.inference_mode():
        half.decode(ramped(1, 1, 1).half(), 1)
    assert capsys.readouterr().err.startswith("note: frame 0 overflowed float16")
