"""The video UNet against ComfyUI's own, on the same random weights."""

import pytest
import torch
from test_unet import SMALL, inputs
from weights import randomise, relative

from svd_core.model.unet import VideoUNet


@pytest.fixture(scope="module")
def pair(comfy):
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    ours = randomise(VideoUNet(SMALL))
    theirs = UNetModel(
        image_size=32,
        in_channels=SMALL.in_channels,
        out_channels=SMALL.out_channels,
        model_channels=SMALL.model_channels,
        num_res_blocks=[SMALL.res_blocks] * 4,
        channel_mult=SMALL.channel_mult,
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3,
        transformer_depth_middle=1,
        num_head_channels=SMALL.head_channels,
        context_dim=SMALL.context_dim,
        num_classes="sequential",
        adm_in_channels=SMALL.vector_dim,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        use_temporal_attention=True,
        use_temporal_resblock=True,
        extra_ff_mix_layer=True,
        use_spatial_context=True,
        merge_strategy="learned_with_images",
        video_kernel_size=[3, 1, 1],
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs.eval()


@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (1, 5, 9, 13)])
@pytest.mark.parametrize("tokens", [1, 2])
@torch.inference_mode()
def test_equals_comfyui(pair, shape, tokens):
    ours, theirs = pair
    batch = inputs(SMALL, *shape, tokens=tokens)
    expected = theirs(
        batch["x"], batch["c_noise"], batch["context"], batch["vector"], num_video_frames=batch["num_frames"]
    )
    assert relative(ours(**batch), expected) < 5e-6
