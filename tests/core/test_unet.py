"""The video UNet against other implementations, and the properties that make it the model it is (spec 1, 14)."""

import copy

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch.utils.flop_counter import FlopCounterMode
from unet_keys import diffusers_name
from weights import randomise, relative

import svd_core.model.transformer
from svd_core.config import UNetConfig
from svd_core.errors import InputError
from svd_core.model.attention import Attention
from svd_core.model.backend import TORCH, Backend
from svd_core.model.resblock import VideoResBlock
from svd_core.model.step import NO_HOOKS, BlockHooks, StepContext
from svd_core.model.transformer import SpatialVideoTransformer
from svd_core.model.unet import VideoUNet

SMALL = UNetConfig(model_channels=32, head_channels=8, context_dim=24, vector_dim=48)
SHAPES = [(2, 3, 8, 16), (1, 5, 9, 13), (1, 1, 8, 8)]  # clips, frames, h, w; the second is odd at every level


class FullAttention(BlockHooks):
    """Changes nothing but takes the full path, cross-attention included."""

    changes_attention = True


def inputs(config, clips, frames, height, width, tokens=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = clips * frames
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    context = draw(clips, tokens, config.context_dim).repeat_interleave(frames, 0)
    vector = draw(clips, config.vector_dim).repeat_interleave(frames, 0)
    c_noise = draw(clips).repeat_interleave(frames, 0)
    return {
        "x": draw(n, config.in_channels, height, width),
        "c_noise": c_noise,
        "context": context,
        "vector": vector,
        "num_frames": frames,
    }


@pytest.fixture(scope="module")
def unet():
    return randomise(VideoUNet(SMALL))


@pytest.fixture(scope="module")
def reference_of_diffusers(unet):
    """diffusers' model on our weights, with the reference's GroupNorm eps in its residual blocks (spec 1.6)."""
    widths = SMALL.level_channels
    theirs = UNetSpatioTemporalConditionModel(
        block_out_channels=widths,
        num_attention_heads=tuple(width // SMALL.head_channels for width in widths),
        cross_attention_dim=SMALL.context_dim,
        projection_class_embeddings_input_dim=SMALL.vector_dim,
        addition_time_embed_dim=SMALL.vector_dim // 3,
    )
    theirs.load_state_dict({diffusers_name(key): value for key, value in unet.state_dict().items()}, strict=True)
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.GroupNorm) and "res_block" in name:
            module.eps = 1e-5
    return theirs.eval()


def run_diffusers(model, vector, x, c_noise, context, num_frames):
    """diffusers embeds the vector from three ids itself; hand it the embedded vector instead."""
    model.add_time_proj.forward = lambda ids: vector[::num_frames].reshape(-1, SMALL.vector_dim // 3)
    clips = x.unflatten(0, (-1, num_frames))
    ids = torch.zeros(clips.shape[0], 3)
    out = model(clips, c_noise[::num_frames], context[::num_frames], ids, return_dict=False)[0]
    return out.flatten(0, 1)


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_equals_diffusers(unet, reference_of_diffusers, shape):
    batch = inputs(SMALL, *shape)
    assert relative(unet(**batch), run_diffusers(reference_of_diffusers, **batch)) < 5e-6


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_constant_cross_attention_equals_the_full_path(unet, shape):
    batch = inputs(SMALL, *shape)
    assert relative(unet(**batch), unet(**batch, hooks=FullAttention())) < 5e-6


@torch.inference_mode()
def test_several_context_tokens_take_the_full_path(unet):
    batch = inputs(SMALL, 2, 3, 8, 8, tokens=2)
    full = unet(**batch, hooks=FullAttention())
    assert relative(unet(**batch), full) < 5e-6
    swapped = batch | {"context": batch["context"].flip(1)}
    assert relative(unet(**swapped), full) < 5e-6  # attention does not care about the order of tokens
    first_only = batch | {"context": batch["context"][:, :1]}
    assert relative(unet(**first_only), full) > 1e-3


@torch.inference_mode()
def test_cross_attention_to_nothing_is_the_output_bias_exactly():
    attn = randomise(Attention(32, 24, 8, backend=TORCH))
    assert torch.equal(attn.constant(torch.zeros(2, 1, 24)), attn.to_out[0].bias.expand(2, 1, 32))
    tokens, context = torch.randn(2, 7, 32), torch.randn(2, 1, 24)
    torch.testing.assert_close(attn(tokens, context), attn.constant(context).expand(2, 7, 32))


@torch.inference_mode()
def test_attention_over_frames_equals_attention_by_pixel():
    attn = randomise(Attention(32, 32, 8, backend=TORCH))
    clips = torch.randn(2, 5, 6, 32)  # (B, T, S, C)
    rows = clips.transpose(1, 2).flatten(0, 1)
    expected = attn(rows, rows).unflatten(0, (2, 6)).transpose(1, 2)
    torch.testing.assert_close(attn.over_frames(clips), expected)


@torch.inference_mode()
def test_attention_is_split_below_the_launch_limit_without_changing_it(monkeypatch):
    from svd_core.model import backend

    q = torch.randn(11, 3, 4, 8)
    whole = backend.scaled_dot_product(q, q, q)
    monkeypatch.setattr(backend, "ROWS_PER_CALL", 6)
    torch.testing.assert_close(backend.scaled_dot_product(q, q, q), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scores", [1, 100, 4 * 7 * 3 * 2, 10**6])
@torch.inference_mode()
def test_attention_without_a_fused_kernel_never_holds_more_scores_than_it_may(monkeypatch, scores):
    from svd_core.model import backend

    q, k = torch.randn(5, 3, 4, 8), torch.randn(5, 3, 7, 8)
    whole = backend.scaled_dot_product(q, k, k)
    attend, held = torch.nn.functional.scaled_dot_product_attention, []

    def counting(q, k, v):
        held.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return attend(q, k, v)

    monkeypatch.setattr(backend, "FUSED", ())
    monkeypatch.setattr(backend, "SCORES", scores)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    torch.testing.assert_close(backend.scaled_dot_product(q, k, k), whole, rtol=0, atol=1e-6)
    assert sum(held) == 5 * 3 * 4 * 7
    assert max(held) <= max(scores, 3 * 7)  # one query of one row is the least


@torch.inference_mode()
def test_permuting_clips_permutes_results(unet):
    batch = inputs(SMALL, 3, 4, 8, 8)
    order = torch.tensor([2, 0, 1])
    rows = (order[:, None] * 4 + torch.arange(4)).flatten()
    permuted = {key: value[rows] if torch.is_tensor(value) else value for key, value in batch.items()}
    assert relative(unet(**permuted), unet(**batch)[rows]) < 5e-6


@torch.inference_mode()
def test_clips_together_equal_clips_alone(unet):
    batch = inputs(SMALL, 2, 3, 8, 8)
    alone = [
        unet(**{key: value[part] if torch.is_tensor(value) else value for key, value in batch.items()})
        for part in (slice(0, 3), slice(3, 6))
    ]
    assert relative(torch.cat(alone), unet(**batch)) < 5e-6


@torch.inference_mode()
def test_frames_of_one_clip_read_each_other(unet):
    batch = inputs(SMALL, 1, 4, 8, 8)
    disturbed = batch | {"x": torch.cat([batch["x"][:3], batch["x"][3:] + 1])}
    assert relative(unet(**disturbed)[0], unet(**batch)[0]) > 1e-4


@torch.inference_mode()
def test_all_spatial_blend_is_the_plain_residual_block():
    block = randomise(VideoResBlock(32, 64, 16, backend=TORCH))
    block.time_mixer.mix_factor.fill_(torch.inf)
    images, step = torch.randn(6, 32, 5, 4), StepContext(torch.randn(6, 16), torch.zeros(6, 1, 8), 3, NO_HOOKS)
    spatial, owed = block.spatial(images, step.activated)
    assert owed is None
    assert torch.equal(block(images, step), spatial)


@torch.inference_mode()
def test_all_spatial_blend_is_the_plain_transformer():
    block = randomise(SpatialVideoTransformer(32, 24, 8, 1, backend=TORCH))
    block.time_mixer.mix_factor.fill_(torch.inf)
    step = StepContext(torch.randn(6, 16), torch.randn(2, 1, 24).repeat_interleave(3, 0), 3, NO_HOOKS)
    images = torch.randn(6, 32, 5, 4)
    tokens = block.proj_in(block.norm(images).flatten(2).transpose(1, 2))
    tokens = block.transformer_blocks[0](tokens, step)
    expected = images + block.proj_out(tokens).transpose(1, 2).unflatten(2, (5, 4))
    torch.testing.assert_close(block(images, step), expected)


def test_a_partial_clip_is_refused(unet):
    batch = inputs(SMALL, 1, 5, 8, 8) | {"num_frames": 3}
    with pytest.raises(InputError, match="a batch of 5 frames is not a whole number of clips of 3 frames"):
        unet(**batch)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("x", (4, 4, 8, 8), r"latents of shape \(4, 4, 8, 8\); it needs \(N, 8, h, w\): the noisy ones and"),
        ("x", (8, 8, 8), r"latents of shape \(8, 8, 8\); it needs \(N, 8, h, w\)"),
        ("c_noise", (3,), r"noise levels of shape \(3,\); it needs \(N\), N 4 or 1: one for each frame"),
        ("context", (4, 1, 2048), r"a context of shape \(4, 1, 2048\); it needs \(N, L, 24\), N 4 or 1: use"),
        ("context", (4, 24), r"a context of shape \(4, 24\)"),
        ("vector", (4, 2816), r"a vector of shape \(4, 2816\); it needs \(N, 48\), N 4 or 1: use"),
    ],
)
def test_another_shape_is_refused(unet, name, shape, words):
    """Another model's conditioning, say."""
    with pytest.raises(InputError, match=f"the UNet got {words}"):
        unet(**inputs(SMALL, 2, 2, 8, 8) | {name: torch.zeros(shape)})


@torch.inference_mode()
def test_what_all_frames_share_may_be_given_once(unet):
    batch = inputs(SMALL, 2, 2, 8, 8)
    shared = {name: batch[name][:1] for name in ("c_noise", "context", "vector")}
    repeated = {name: value.repeat(4, *[1] * (value.ndim - 1)) for name, value in shared.items()}
    torch.testing.assert_close(unet(**batch | shared), unet(**batch | repeated))


@pytest.mark.parametrize("num_frames", [0, -3, 3.0])
def test_clips_of_no_frames_are_refused(unet, num_frames):
    batch = inputs(SMALL, 1, 3, 8, 8) | {"num_frames": num_frames}
    with pytest.raises(
        InputError, match=f"clips of {num_frames} frames: pass a whole num_frames of at least 1 that divides 3"
    ):
        unet(**batch)


@torch.inference_mode()
def test_activations_stay_channels_last(unet):
    """The layout the whole network is built on: nothing may silently fall back to a copy."""
    seen = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, out: seen.append(out))
        for module in unet.modules()
        if isinstance(module, VideoResBlock | SpatialVideoTransformer)
    ]
    unet(**inputs(SMALL, 1, 3, 9, 13))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 22 + 16
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


@torch.inference_mode()
def test_the_input_is_not_changed(unet):
    batch = inputs(SMALL, 1, 3, 8, 8)
    before = batch["x"].clone()
    unet(**batch)
    assert torch.equal(batch["x"], before)


@pytest.mark.parametrize(("hooks", "tera"), [(BlockHooks(), 43.08), (FullAttention(), 44.80)])
def test_work_of_a_full_size_forward(hooks, tera):
    """Spec 12.1, counted on the meta device: 14 frames at 576x1024, one guidance branch."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet = VideoUNet(UNetConfig(), backend=Backend(device="meta"))
        unet(
            torch.empty(14, 8, 72, 128),
            torch.empty(14),
            torch.empty(14, 1, 1024),
            torch.empty(14, 768),
            num_frames=14,
            hooks=hooks,
        )
    assert round(counter.get_total_flops() / 1e12, 2) == tera


def test_every_layer_comes_from_the_injected_operations():
    names = ("Linear", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm")
    mine = type("Operations", (), {name: type(name, (getattr(torch.nn, name),), {}) for name in names})
    unet = VideoUNet(SMALL, backend=Backend(operations=mine, device="meta"))
    owned = tuple(getattr(mine, name) for name in names)
    weighted = [module for module in unet.modules() if list(module.parameters(recurse=False))]
    mixers = [module for module in weighted if hasattr(module, "mix_factor")]
    assert len(mixers) == 38
    assert all(isinstance(module, owned) for module in weighted if module not in mixers)


def test_shapes_of_a_guided_full_size_step():
    """Spec 14, test 3: two branches of 14 frames at 576x1024."""
    unet = VideoUNet(UNetConfig(), backend=Backend(device="meta"))
    with torch.device("meta"), torch.no_grad():
        rows = (torch.empty(28), torch.empty(28, 1, 1024), torch.empty(28, 768))
        out = unet(torch.empty(28, 8, 72, 128), *rows, num_frames=14)
    assert out.shape == (28, 4, 72, 128)
    assert len(unet.state_dict()) == 1428
    assert sum(parameter.numel() for parameter in unet.parameters()) == 1_524_623_082


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_call_of_a_frozen_network_has_the_bits_of_one_without_gradients(dtype):
    frozen = randomise(VideoUNet(SMALL, backend=Backend(dtype=dtype))).requires_grad_(False)
    batch = inputs(SMALL, 1, 2, 8, 8)
    plain = frozen(**batch)
    with torch.no_grad():
        assert torch.equal(plain, frozen(**batch))
    with torch.inference_mode():
        assert torch.equal(plain, frozen(**batch))


def test_one_trained_weight_of_a_frozen_network_and_its_input_get_their_gradients(monkeypatch):
    """In whichever layer: what is overwritten in place before it must not be needed again."""
    monkeypatch.setattr(svd_core.model.transformer, "CPU_HIDDEN_VALUES", 2**10)
    unet, batch = randomise(VideoUNet(SMALL)), inputs(SMALL, 1, 2, 8, 8)
    batch["x"].requires_grad_()
    unet(**batch).square().sum().backward()
    unet.requires_grad_(False)
    block = unet.input_blocks[1][1]
    for weight in (block.time_stack[0].norm3.weight, block.time_stack[0].ff.net[2].bias, block.proj_in.weight):
        expected, weight.grad = weight.grad, None
        weight.requires_grad_()
        unet(**batch | {"x": batch["x"].detach()}).square().sum().backward()
        weight.requires_grad_(False)
        assert relative(weight.grad, expected) < 1e-4
    expected, batch["x"].grad = batch["x"].grad, None
    unet(**batch).square().sum().backward()
    assert relative(batch["x"].grad, expected) < 1e-4


@torch.inference_mode()
def test_numbers_arrays_and_empty_batches_are_refused_in_a_line(unet):
    batch = inputs(SMALL, 1, 1, 8, 8)
    with pytest.raises(InputError, match="noise levels of class float"):
        unet(**batch | {"c_noise": 0.5})
    with pytest.raises(InputError, match="none of them 0"):
        unet(**batch | {"x": batch["x"][:0]})


def test_a_network_can_be_copied(unet):
    copied = copy.deepcopy(unet)
    assert copied.backend is unet.backend
    assert copied.out[-1].weight is not unet.out[-1].weight
