"""LoRA finetuning: what is trained, what ComfyUI makes of the file, and what it needs."""

import dataclasses
import re

import pytest
import torch
from moving_square import square, write_pngs
from safetensors.torch import load_file
from synthetic import TINY, write_checkpoint
from weights import randomise

from svd_core.config import ModelConfig, UNetConfig
from svd_core.errors import CheckpointError, InputError
from svd_core.model.unet import VideoUNet
from training import cli, lora
from training.checkpoint import load_tensors
from training.cli import main
from training.data import open_folder
from training.distributed import ALONE
from training.lock import held
from training.loop import Machine
from training.lora import LoRAConfig, add_lora, checkpoint_blocks, lora_run, lora_tensors, targets, train_lora
from training.memory import GIBIBYTE, in_words, requirement
from training.recipe import Optimisation

CONFIG = UNetConfig(
    model_channels=32, channel_mult=(1, 2, 4), res_blocks=1, attention=(True, True, False), head_channels=8
)
"""Narrow, with the released context and vector, which ComfyUI takes for granted."""

LORA = LoRAConfig(
    optimisation=Optimisation(steps=12, batch=1, learning_rate=1e-2, decay="constant", ema=0.5, warmup=1),
    rank=4,
    alpha=2.0,
    frames=3,
)


def network(config: UNetConfig = CONFIG) -> VideoUNet:
    return randomise(VideoUNet(config))


def with_updates(unet: VideoUNet, config: LoRAConfig = LORA):
    """The network wrapped, its updates random numbers that float16 holds exactly."""
    added = add_lora(unet, config)
    for layer in added.values():
        for parameter in (layer.up, layer.down):
            parameter.data = (0.1 * torch.randn(parameter.shape)).half().float()
    return added


def answer(unet: VideoUNet, frames: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    config = unet.config
    shapes = {"x": (frames, 8, 8, 8), "context": (frames, 1, config.context_dim), "vector": (frames, config.vector_dim)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return unet(**inputs, c_noise=torch.zeros(frames), num_frames=frames)


@pytest.fixture(scope="module")
def native(comfy):
    """ComfyUI's own SVD model of this size."""
    import comfy.model_base
    import comfy.model_detection
    import comfy.model_patcher
    import comfy.supported_models

    weights = network().state_dict()
    detected = comfy.model_detection.detect_unet_config(dict(weights), "")
    model_config = comfy.supported_models.SVD_img2vid(detected)
    model_config.unet_config |= {"num_head_channels": CONFIG.head_channels}
    model_config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.SVD_img2vid(model_config)
    model.diffusion_model.load_state_dict(weights, strict=True)
    return model


@pytest.mark.parametrize("layers", ["spatial", "temporal", "both"])
@torch.no_grad()
def test_comfyui_finds_every_tensor_and_merges_to_the_same_network(native, layers, caplog):
    import comfy.lora

    wrapped = network()
    added = with_updates(wrapped, dataclasses.replace(LORA, layers=layers))
    tensors = lora_tensors(added, LORA.alpha)
    patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(native, {}))
    assert "not loaded" not in caplog.text
    assert {key for patch in patches.values() for key in patch.loaded_keys} == set(tensors)
    assert set(patches) == {f"diffusion_model.{name}.weight" for name in added}
    merged = network()
    weights = merged.state_dict()
    for key, patch in patches.items():
        name = key.removeprefix("diffusion_model.")
        entry = [(1.0, patch, 1.0, None, None)]
        weights[name] = comfy.lora.calculate_weight(entry, weights[name].clone(), key)
    merged.load_state_dict(weights)
    expected, plain = answer(merged), answer(network())
    torch.testing.assert_close(answer(wrapped), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert (expected - plain).abs().max() > 0.01 * plain.abs().max(), "the update does something"


@torch.no_grad()
def test_a_new_lora_changes_nothing():
    wrapped = network()
    add_lora(wrapped, LORA)
    assert torch.equal(answer(wrapped), answer(network()))


def test_the_chosen_attention_is_trained_and_nothing_else():
    names = {layers: set(targets(network(), layers)) for layers in ("spatial", "temporal", "both")}
    assert names["spatial"] | names["temporal"] == names["both"]
    assert not names["spatial"] & names["temporal"]
    transformers = 2 + 1 + 4
    assert len(names["spatial"]) == len(names["temporal"]) == 6 * transformers
    assert all(".time_stack." in name for name in names["temporal"])
    unet = network()
    add_lora(unet, LORA)
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.{part}" for name in names["both"] for part in ("up", "down")}


def test_every_update_has_a_gradient_and_checkpointing_changes_none():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        unet = network()
        added = with_updates(unet)
        if checkpointing:
            checkpoint_blocks(unet)
        answer(unet).square().mean().backward()
        gradients.append({name: (layer.up.grad, layer.down.grad) for name, layer in added.items()})
    for name, plain in gradients[0].items():
        assert all(gradient.abs().sum() > 0 for gradient in plain), name
        for gradient, again in zip(plain, gradients[1][name], strict=True):
            torch.testing.assert_close(again, gradient, rtol=1e-5, atol=1e-9)


def test_checkpointing_keeps_less():
    config = ModelConfig(unet=CONFIG, vae=TINY.vae, clip_vision=TINY.clip_vision)
    with_, without = (
        requirement(config, dataclasses.replace(LORA, checkpointing=chosen), 64, 64) for chosen in (True, False)
    )
    assert with_.kept < without.kept / 2
    assert with_.weights == without.weights and with_.trained == without.trained
    assert with_.flops == pytest.approx(1.5 * without.flops)


def test_what_is_kept_is_what_autograd_keeps():
    """The count without storage against the same network on real numbers, whose attention keeps the same tensors."""
    kept: dict[int, torch.Tensor] = {}
    unet = network(TINY.unet)
    add_lora(unet, LORA)
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = answer(unet, frames=3)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    counted = requirement(TINY, dataclasses.replace(LORA, checkpointing=False), 64, 64).kept
    assert result.requires_grad
    assert 2 * counted == pytest.approx(real, rel=0.1), "bfloat16 there, float32 here"


def test_the_figures_of_the_help_are_counted(capsys):
    with pytest.raises(SystemExit):
        main(["lora", "--help"])
    said = capsys.readouterr().out
    assert cli._LORA_MEMORY in said
    figures = [float(each) for each in re.findall(r"([\d.]+) GiB", said)][:4]
    released = ModelConfig()
    cases = [(14, 576, 1024, True), (25, 576, 1024, True), (14, 320, 576, True), (14, 576, 1024, False)]
    for figure, (frames, height, width, chosen) in zip(figures, cases, strict=True):
        config = LoRAConfig(frames=frames, checkpointing=chosen)
        counted = requirement(released, config, height, width)
        assert round(counted.total / GIBIBYTE, 1) == figure
        if (frames, height, chosen) == (14, 576, True):
            assert "129 TFLOP a step, 4.6 s at 40% of 70 TFLOP/s" in in_words(counted)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")


def test_finetuning_lowers_the_loss_resumes_and_leaves_a_file(released, clips, tmp_path):
    folder = open_folder(clips, frames=3)
    untrained, _ = lora_run(released, folder, LORA, tmp_path / "untrained", ALONE)
    whole = train_lora(released, folder, LORA, tmp_path / "whole", Machine(save_every=5), ALONE)
    assert unseen_loss(whole) < 0.92 * unseen_loss(untrained)
    for stop in (5, None):
        train_lora(released, folder, LORA, tmp_path / "parts", Machine(save_every=5, stop_after=stop), ALONE)
    for name in ("lora.safetensors", "lora.state.safetensors"):
        assert_same(tmp_path / "whole" / name, tmp_path / "parts" / name)
    tensors = load_file(tmp_path / "whole" / "lora.safetensors")
    ups = [tensor for name, tensor in tensors.items() if name.endswith("lora_up.weight")]
    assert len(tensors) == 3 * len(ups) and all(up.abs().sum() > 0 for up in ups)
    assert {float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")} == {LORA.alpha}


@torch.no_grad()
def unseen_loss(run) -> float:
    """Mean over samples that no step has used."""
    batches = [{name: tensor[None] for name, tensor in run.samples[number].items()} for number in range(500, 508)]
    return sum(float(run.objective(batch)) for batch in batches) / len(batches)


def assert_same(first, second):
    (tensors, _), (others, _) = load_tensors(first), load_tensors(second)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


def test_a_second_run_is_refused_before_the_checkpoint_is_read(released, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(lora, "load_modules", lambda *_, **__: pytest.fail("the checkpoint was read"))
    with held(tmp_path, "lora"), pytest.raises(InputError, match=r"another run trains the stage lora in .*: wait"):
        train_lora(released, open_folder(clips, frames=3), LORA, tmp_path, Machine(), ALONE)


def test_another_checkpoint_or_rank_is_refused_with_the_difference(released, clips, tmp_path):
    folder = open_folder(clips, frames=3)
    train_lora(released, folder, LORA, tmp_path, Machine(stop_after=1), ALONE)
    with pytest.raises(CheckpointError, match=r"lora.rank 4 in the file, 8 given"):
        lora_run(released, folder, dataclasses.replace(LORA, rank=8), tmp_path, ALONE)
    other = write_checkpoint(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(CheckpointError, match=r"checkpoint .* in the file, .* given"):
        lora_run(other, folder, LORA, tmp_path, ALONE)


def test_the_released_file_is_left_as_it_was(released, clips, tmp_path):
    before = released.read_bytes()
    train_lora(released, open_folder(clips, frames=3), LORA, tmp_path, Machine(stop_after=2), ALONE)
    assert released.read_bytes() == before


def test_other_clips_of_the_same_names_are_refused(released, tmp_path):
    for folder, offset in (("before", 0), ("after", 3)):
        write_pngs(tmp_path / folder / "clip", square(offset, width=32, height=32))
    train = lambda clips: train_lora(  # noqa: E731
        released, open_folder(tmp_path / clips, frames=3), LORA, tmp_path / "run", Machine(stop_after=1), ALONE
    )
    train("before")
    with pytest.raises(CheckpointError, match=r"another configuration \(clips.clip "):
        train("after")
    train("before")


def test_updates_that_files_cannot_hold_are_refused():
    added = with_updates(network())
    next(iter(added.values())).up.data.fill_(1e6)
    with pytest.raises(CheckpointError, match="lora_up does not fit in float16: train it with a lower learning rate"):
        lora_tensors(added, alpha=2.0)


@pytest.mark.parametrize("name", ["rank", "alpha", "frames"])
def test_values_that_cannot_work_are_named(name):
    with pytest.raises(InputError, match=f"{name} 0 is not above 0"):
        dataclasses.replace(LORA, **{name: 0}).check()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(value):
    with pytest.raises(InputError, match=f"alpha {value} is not above 0, or not finite"):
        dataclasses.replace(LORA, alpha=value).check()
    rate = dataclasses.replace(LORA.optimisation, learning_rate=value)
    with pytest.raises(InputError, match=f"optimisation.learning_rate is {value}: needed more than 0, and finite"):
        dataclasses.replace(LORA, optimisation=rate).check()


def test_the_default_alpha_may_be_given_explicitly():
    flags = ["lora", "--checkpoint", "x", "--clips", "y", "--folder", "z", "--rank", "8"]
    default, given = (cli._lora_config(cli.parser().parse_args([*flags, *more])) for more in ([], ["--alpha", "8"]))
    assert default == given and type(default.alpha) is type(given.alpha) is float


def test_half_precision_trains_too(released, clips, tmp_path):
    config = dataclasses.replace(LORA, dtype="bfloat16")
    run = train_lora(released, open_folder(clips, frames=3), config, tmp_path, Machine(stop_after=3), ALONE)
    assert all(0 < loss < 100 for loss in run.losses)
    assert all(parameter.dtype == torch.float32 for parameter in run.names.values()), "updates are kept in full"


def test_the_command_line_finetunes_and_names_what_it_skips(released, clips, tmp_path, capsys):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "good").symlink_to(clips / "clip0")
    (tmp_path / "clips" / "bad.gif").write_bytes(b"no")
    flags = ["--checkpoint", str(released), "--clips", str(tmp_path / "clips"), "--folder", str(tmp_path / "run")]
    small = ["--frames", "3", "--steps", "2", "--rank", "2", "--layers", "temporal"]
    assert main(["lora", *flags, *small]) == 0
    said = capsys.readouterr()
    assert "bad.gif: cannot be read" in said.err
    assert "lora.safetensors: step 2 of 2, loss " in said.out
    assert main(["lora", *flags, *small, "--needed", "2"]) == 2
    assert "1 of 2 clips" in capsys.readouterr().err
