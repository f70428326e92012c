"""Memory in ComfyUI: what a clip needs is counted, shown on the node, and running out in the middle loses nothing."""

from types import SimpleNamespace

import pytest
import torch

FRAMES = 3
SCALE = 0.18215


@pytest.fixture(scope="module")
def conditioned(call, loaded, pictures):
    names = ("positive", "negative", "latent")
    parts = call("StableVideoConditioning", clip_vision=loaded.clip_vision, vae=loaded.vae, image=pictures[:1])
    return dict(zip(names, parts, strict=True))


@pytest.fixture
def sample(call, loaded, conditioned):
    given = {"model": loaded.model, "seed": 5, **conditioned}
    return lambda **more: call("StableVideoSampler", on_page=True, **given, **more)["samples"]


def latents() -> torch.Tensor:
    return torch.randn(FRAMES, 4, 8, 16, generator=torch.Generator().manual_seed(2)) / SCALE


def test_the_sampler_says_what_it_needs(sample, shown):
    sample()
    (said,) = shown
    assert said.startswith("Sampling: weights 0.01 GiB, activations ")


def test_the_decoder_says_its_plan(call, shown, loaded):
    call("StableVideoDecode", on_page=True, latent={"samples": latents()}, vae=loaded.vae)
    (said,) = shown
    assert said.startswith("Decoding: ") and "the clip on the device, 3 frames of intermediate results kept." in said


def test_a_decode_in_higher_precision_is_told(call, shown, loaded, part, monkeypatch):
    warning = part("svd_core.errors").PrecisionWarning
    network = type(loaded.vae.first_stage_model)
    decode = network.decode

    def overflowing(self, *args, **kwargs):
        import warnings

        warnings.warn("frame 1 overflowed float16, so it had to be decoded again", warning, stacklevel=1)
        return decode(self, *args, **kwargs)

    monkeypatch.setattr(network, "decode", overflowing)
    call("StableVideoDecode", on_page=True, latent={"samples": latents()}, vae=loaded.vae)
    plan, both = shown
    assert both == f"{plan}\nframe 1 overflowed float16, so it had to be decoded again"


@pytest.mark.parametrize("failing", [(1,), (3,), (2, 5), (2, 3, 4)])
def test_sampling_goes_on_with_the_same_bits_when_memory_runs_out(sample, loaded, monkeypatch, part, failing):
    expected = sample()
    network, calls, freed = loaded.model.model.diffusion_model, [], []
    forward = network.forward

    def short_of_memory(*args, **kwargs):
        calls.append(1)
        if len(calls) in failing:
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(network, "forward", short_of_memory)
    monkeypatch.setattr(part("nodes.bridge.model"), "make_room", lambda patcher, share: freed.append((patcher, share)))
    assert torch.equal(sample(), expected)
    assert len(freed) == len(failing)
    assert all(patcher is not None and patcher.model is loaded.model.model for patcher, _ in freed)
    if failing == (2, 3, 4):
        assert [share for _, share in freed] == [0.0, 0.5, 1.0]


def test_memory_that_never_suffices_is_still_an_error(sample, loaded, monkeypatch):
    def short_of_memory(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(loaded.model.model.diffusion_model, "forward", short_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        sample()


def test_other_errors_are_not_tried_again(sample, loaded, monkeypatch):
    calls = []

    def broken(*_, **__):
        calls.append(1)
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(loaded.model.model.diffusion_model, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        sample()
    assert len(calls) == 1


def test_controlnet_residuals_are_there_again_for_a_repeated_call(part):
    residual = torch.ones(1)
    control = {"middle": [residual]}
    call = {"x": torch.zeros(1, 4, 2, 2), "model_channels": 32}
    for _ in range(2):
        hooks = part("nodes.bridge.hooks").HostHooks({}, control, call)
        assert torch.equal(hooks._controlled("middle", torch.ones(1)), torch.full((1,), 2.0))


def test_room_is_made_by_moving_weights_as_comfyui_does(part):
    moved = []
    card, host = torch.device("cuda"), torch.device("cpu")
    patcher = SimpleNamespace(
        load_device=card,
        offload_device=host,
        loaded_size=lambda: 1000,
        partially_unload=lambda *where: moved.append(where),
    )
    make_room = part("nodes.bridge.model").make_room
    for share in (0.0, 0.5, 1.0):
        make_room(patcher, share)
    assert moved == [(host, 500), (host, 1000)]
    patcher.load_device = host
    make_room(patcher, 1.0)
    make_room(None, 1.0)
    assert len(moved) == 2


def test_activations_are_counted_where_attention_is_fused(loaded, monkeypatch, part):
    import comfy.model_base
    import comfy.model_management

    model, shape = loaded.model.model, [FRAMES, 4, 8, 16]
    native = comfy.model_base.BaseModel.memory_required(model, shape)
    assert model.memory_required(shape) == native
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: True)
    planning = part("svd_core.planning")
    config = model.model_config.unet_config["svd_config"]
    counted = planning.sample_bytes(config, (FRAMES, 8, 16), model.get_dtype_inference(), joint=False, streamed=False)
    assert model.memory_required(shape) == pytest.approx(1.25 * counted)
    assert counted < native


def test_what_does_not_fit_is_said_to_stay_on_the_host(loaded, monkeypatch, part):
    import comfy.model_management

    patcher = SimpleNamespace(
        get_wrappers=lambda *_: [],
        model=loaded.model.model,
        model_size=lambda: 3 * 2**30,
        load_device=torch.device("cuda"),
        offload_device=torch.device("cpu"),
    )
    monkeypatch.setattr(type(loaded.model.model), "memory_required", lambda *_: 2**30)
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda _: 4 * 2**30)
    monkeypatch.setattr(comfy.model_management, "extra_reserved_memory", lambda: 2**29)
    words = part("nodes.bridge.plan").sampling_in_words
    (said,) = words(patcher, latents())
    assert said.startswith("Sampling: weights 3.00 GiB, activations 1.00 GiB; 0.50 GiB of the weights stay on the host")
    monkeypatch.setattr(comfy.model_management, "extra_reserved_memory", lambda: 0)
    assert words(patcher, latents())[0].endswith("all on the device.")
