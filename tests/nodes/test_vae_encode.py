"""Pictures in, latents out: the core's encoder behind ComfyUI's VAE, whatever memory is free."""

import pytest
import torch


@pytest.fixture(scope="module")
def still() -> torch.Tensor:
    """Two pictures (2, 264, 328, 3), large enough to be encoded in bands."""
    return torch.rand(2, 264, 328, 3, generator=torch.Generator().manual_seed(4))


@torch.inference_mode()
def test_latents_are_the_cores(loaded, reference, still, pictures):
    for images in (still, pictures):
        expected = torch.cat([reference.vae.encode(one.movedim(-1, 1) * 2 - 1) for one in images.split(1)])
        latents = loaded.vae.encode(images)
        assert latents.shape == expected.shape
        assert (latents - expected).norm() <= 1e-5 * expected.norm()


@torch.inference_mode()
def test_free_memory_changes_no_bit(loaded, still, monkeypatch, part):
    monkeypatch.setattr(part("svd_core.model.vae"), "band_bytes", lambda device: 2**20)
    network, encode = type(loaded.vae.first_stage_model), type(loaded.vae.first_stage_model).encode
    expected, ways = loaded.vae.encode(still), []

    def watched(self, pixels, **settings):
        ways.append(self.encode_plan(pixels.shape, pixels.device, **settings).mode)
        return encode(self, pixels, **settings)

    monkeypatch.setattr(network, "encode", watched)
    for free in (10**12, 1):
        monkeypatch.setattr(loaded.vae.patcher, "get_free_memory", lambda _, free=free: free)
        assert torch.equal(loaded.vae.encode(still), expected)
    assert ways == ["device", "device", "host", "host"]


@torch.inference_mode()
def test_a_batch_is_encoded_picture_by_picture_and_tiles_are_not_needed(loaded, still):
    apart = torch.cat([loaded.vae.encode(one) for one in still.split(1)])
    assert torch.equal(loaded.vae.encode(still), apart)
    assert torch.equal(loaded.vae.encode_tiled(still, tile_x=64, tile_y=64, overlap=16), apart)
    assert torch.equal(loaded.vae.encode_tiled(still, 64, 64, 16), apart)


@torch.inference_mode()
def test_what_no_latent_covers_is_cropped_as_comfyui_does(loaded, still):
    assert loaded.vae.encode(still[:1, :261, :325]).shape == (1, 4, 32, 40)


def test_room_is_asked_for_what_is_counted(loaded, still, monkeypatch, part):
    import comfy.model_management

    asked = []
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda models, memory_required: asked.append(memory_required)
    )
    loaded.vae.encode(still)
    network, usable = loaded.vae.first_stage_model, part("svd_core.device_memory").USABLE
    counted = network.encode_plan((1, 3, *still.shape[1:3]), loaded.vae.device).device_bytes
    assert asked == [int(counted / usable) + 3 * 264 * 328 * loaded.vae.vae_dtype.itemsize]


class OnApple(torch.Tensor):
    """A tensor that has no float64 until it is on the CPU, as on Apple's GPUs."""

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_weights_on_a_device_without_float64_can_be_saved(part):
    shapes = {"encoder.conv_out": (8, 6, 3, 3), "quant_conv": (8, 8, 1, 1)}
    tensors = {f"{name}.weight": torch.rand(shape) for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": torch.rand(shape[0]) for name, shape in shapes.items()}
    expected = part("nodes.bridge.vae").fold_quant(tensors)
    folded = part("nodes.bridge.vae").fold_quant({key: each.as_subclass(OnApple) for key, each in tensors.items()})
    assert folded.keys() == expected.keys() == {"encoder.conv_out.weight", "encoder.conv_out.bias"}
    pixels = torch.rand(1, 6, 5, 5)
    apart = torch.nn.functional.conv2d(pixels, tensors["encoder.conv_out.weight"], tensors["encoder.conv_out.bias"])
    apart = torch.nn.functional.conv2d(apart, tensors["quant_conv.weight"], tensors["quant_conv.bias"])
    for found in (expected, folded):
        whole = torch.nn.functional.conv2d(pixels, found["encoder.conv_out.weight"], found["encoder.conv_out.bias"])
        torch.testing.assert_close(whole.as_subclass(torch.Tensor), apart, rtol=1e-5, atol=1e-5)
