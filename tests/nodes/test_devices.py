"""A VAE on another device: ComfyUI makes a second one from what made the first."""

import importlib

import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture
def clips(loaded):
    """What a VAE decodes of a latent."""
    latents = torch.randn(3, 4, 8, 16, generator=torch.Generator().manual_seed(3))

    @torch.inference_mode()
    def run(vae) -> torch.Tensor:
        return vae.decode(latents)

    return run


def as_the_node_does(vae, patcher):
    """ComfyUI's node changes these of a copy."""
    import copy

    moved = copy.copy(vae)
    moved.patcher, moved.first_stage_model = patcher, patcher.model
    return moved


def test_a_vae_can_be_made_again(part, loaded, clips):
    make, arguments = loaded.vae.patcher.cached_patcher_init
    again = make(*arguments)
    assert again.model is not loaded.vae.first_stage_model
    assert torch.equal(clips(as_the_node_does(loaded.vae, again)), clips(loaded.vae))


def test_a_vae_may_be_made_without_dynamic_memory(monkeypatch, loaded):
    import comfy.model_patcher

    class Dynamic(comfy.model_patcher.ModelPatcher):
        pass

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    make, arguments = loaded.vae.patcher.cached_patcher_init
    assert type(make(*arguments)) is Dynamic
    assert type(make(*arguments, disable_dynamic=True)) is comfy.model_patcher.ModelPatcher


def test_comfyui_makes_a_second_vae_for_another_device(loaded, clips):
    if not hasattr(loaded.vae.patcher, "deepclone_multigpu"):
        pytest.skip("this ComfyUI keeps a model on one device")
    second = loaded.vae.patcher.deepclone_multigpu(CPU)
    assert second.load_device == CPU
    assert second.model is not loaded.vae.first_stage_model
    assert torch.equal(clips(as_the_node_does(loaded.vae, second)), clips(loaded.vae))


def test_select_vae_device_moves_it_and_leaves_the_first_where_it_was(loaded, clips, monkeypatch):
    pytest.importorskip("comfy_extras.nodes_multigpu", reason="this ComfyUI has no such node")
    import comfy.model_management as management

    node = importlib.import_module("comfy_extras.nodes_multigpu").SelectVAEDeviceNode
    before, place = clips(loaded.vae), loaded.vae.device
    monkeypatch.setattr(management, "resolve_gpu_device_option", lambda option: torch.device("meta"))
    moved = node.execute(vae=loaded.vae, device="gpu:1").result[0]
    assert (moved.device.type, moved.patcher.load_device.type) == ("meta", "meta")
    assert moved.first_stage_model is moved.patcher.model is not loaded.vae.first_stage_model
    assert loaded.vae.device == place
    assert torch.equal(clips(loaded.vae), before)
