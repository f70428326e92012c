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


def test_a_layer_that_does_more_is_called_itself(part):
    import comfy.ops

    class Quantised(comfy.ops.manual_cast.Linear):
        pass

    hooked = comfy.ops.manual_cast.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    for layer in (Quantised(4, 4), hooked):
        with part("nodes.bridge.weights").host_weights(layer, torch.zeros(1, 4)) as found:
            assert found is None


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
