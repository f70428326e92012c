"""Kernels inside ComfyUI: they read what its layers would compute with, and take nothing from an attention it chose."""

import pytest
import torch


@pytest.mark.parametrize("family", ["disable_weight_init", "manual_cast"])
def test_a_kernel_gets_the_weights_that_the_layer_computes_with(part, family):
    """Of the layer that the networks make, which derives from ComfyUI's."""
    import comfy.ops

    layer = part("svd_core.model.backend").Backend(getattr(comfy.ops, family), dtype=torch.float16).linear(4, 6)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    layer.weight_function = [lambda weight: weight * 2]  # as a LoRA that waits for the layer to run
    tokens = torch.randn(3, 4)
    with torch.inference_mode(), part("nodes.bridge.weights").host_weights(layer, tokens) as (weight, bias):
        assert weight.dtype == tokens.dtype
        # Up to rounding: on some CPUs the layer takes another library than torch.nn.functional.linear.
        torch.testing.assert_close(layer(tokens), torch.nn.functional.linear(tokens, weight, bias))


def test_on_a_cpu_convolutions_find_their_weights_channels_last(loaded):
    """They would turn them in every call."""
    kernels = [each for each in loaded.model.model.diffusion_model.parameters() if each.ndim > 3 and each.shape[2] > 1]
    assert {each.ndim for each in kernels} == {4, 5}
    assert all(each.movedim(1, -1).is_contiguous() for each in kernels)


def test_a_layer_that_does_more_is_called_itself(part):
    import comfy.ops

    class Quantised(comfy.ops.manual_cast.Linear):
        pass

    hooked = comfy.ops.manual_cast.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    for layer in (Quantised(4, 4), hooked):
        with part("nodes.bridge.weights").host_weights(layer, torch.zeros(1, 4)) as found:
            assert found is None


def test_a_network_on_kernels_computes_what_its_layers_do(part, loaded, monkeypatch):
    """With a LoRA that waits on some layers, convolutions among them, whose biases kernels take over."""
    network, choice = loaded.model.model.diffusion_model, part("svd_core.kernels.choice")
    kinds = (torch.nn.Conv2d, torch.nn.Linear, torch.nn.GroupNorm)
    for layer in [each for each in network.modules() if isinstance(each, kinds)][::3]:
        monkeypatch.setattr(layer, "weight_function", [lambda weight: weight * 1.5], raising=False)
        monkeypatch.setattr(layer, "bias_function", [lambda bias: bias + 0.1], raising=False)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    width = network.label_emb[0][0].in_features
    call = (draw(3, 8, 8, 16), draw(1).repeat(3), draw(1, 1, 32).repeat(3, 1, 1), draw(1, width).repeat(3, 1))
    asked = set()

    class Recording(choice.Choices):
        def form(self, operation, args):
            asked.add(operation.name)
            return operation.reference

    with torch.inference_mode():
        expected = network(*call, num_video_frames=3)
        monkeypatch.setattr(choice, "choices", lambda: recording)
        recording = Recording(lambda device: "")
        actual = network(*call, num_video_frames=3)
    assert {"blend", "group_norm_silu", "linear_add", "add_layer_norm"} <= asked
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_an_interrupt_ends_a_run_between_kernels_too(part):
    import comfy.model_management as management
    import comfy.ops

    management.interrupt_current_processing()
    weights = part("nodes.bridge.weights").host_weights(comfy.ops.manual_cast.Linear(4, 4), torch.zeros(1, 4))
    with pytest.raises(management.InterruptProcessingException):
        weights.__enter__()


def test_the_users_attention_keeps_the_frames_too(part, monkeypatch):
    attention = part("nodes.bridge.attention")
    asked = []

    def kernel(*args):
        asked.append(args)
        return args[0]

    kernel.reference = attention.frame_attention.reference
    monkeypatch.setattr(attention, "frame_attention", kernel)
    q = torch.randn(1, 3, 2, 8)
    attention.host_frames(q, q, q, 1, attention.host_attention)
    assert len(asked) == 1
    monkeypatch.setattr(attention.args, "use_split_cross_attention", True)
    attention.host_frames(q, q, q, 1, attention.host_attention)
    assert len(asked) == 1
