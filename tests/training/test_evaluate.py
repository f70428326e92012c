"""The judge is judged: a model that draws the truth reaches every bar, one that stands still or runs wild does not."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from svd_core.config import VAEConfig
from svd_core.errors import CheckpointError
from training.autoencoder import image_config
from training.checkpoint import save_tensors
from training.evaluate import (
    SHEET_FRAMES,
    Extent,
    Figure,
    Judged,
    contact_sheet,
    evaluate,
    frame_decoder,
    save_figures,
    sheet_rows,
)
from training.initialise import new_vae
from training.recipe import DEMO
from training.world import HELD_OUT_SEEDS, KINDS, draw_scene

SMALL = Extent(stills=4, rockets=6, amounts=4, buckets=4, decoded=2)


class Autoencoder:
    """Latents that are the pixels; decoding adds `flicker` of alternating sign to the frames."""

    def __init__(self, flicker):
        self.flicker = flicker

    def encode(self, pixels):
        return pixels

    def decode(self, latents, num_frames):
        sign = torch.tensor([1.0, -1.0]).repeat(len(latents))[: len(latents)]
        return latents + self.flicker * sign[:, None, None, None]


class Imagined:
    """Stands for a model: `imagine` gets the scene that a still belongs to, the settings and the seed."""

    config = SimpleNamespace(variant=DEMO.model.variant)

    def __init__(self, imagine, flicker=0.0):
        self.imagine, self.vae = imagine, Autoencoder(flicker)

    def animate(self, still, seed, **settings):
        return self.imagine(still, seed, settings)


def scene_of(still, seed, settings):
    for kind in KINDS:
        for number in (seed, 1000):
            scene = draw_scene(HELD_OUT_SEEDS[number], kind=kind, **settings)
            if np.array_equal(scene.still, still):
                return scene
    raise AssertionError("a still that is no held-out scene")


def truth(still, seed, settings):
    frames = scene_of(still, seed, settings).frames
    return np.clip(frames + np.random.default_rng(seed).normal(0, 1e-3, frames.shape), 0, 1)


def frozen(still, seed, settings):
    return np.repeat(still[None] * 0.999, 14, axis=0)


def backwards(still, seed, settings):
    return truth(still, seed, settings)[::-1]


def figures_of(imagine, *, flicker=0.001, theirs=0.02):
    lines = []
    decoder = lambda latents: Autoencoder(theirs).decode(latents, 1)  # noqa: E731
    figures = evaluate(Judged(Imagined(imagine, flicker), decoder, SMALL), lines.append)
    assert len(lines) == len(figures)
    return {figure.name: figure for figure in figures}, "\n".join(lines)


def test_the_truth_reaches_every_bar():
    figures, text = figures_of(truth, flicker=0.01)
    assert all(figure.reached for figure in figures.values()), text
    assert figures["rocket flies where it points"].value == 100
    assert figures["half the fps, flow a frame"].value == pytest.approx(2, abs=0.3)
    assert "MISSED" not in text


def test_a_frozen_model_misses_what_it_should():
    figures, text = figures_of(frozen, flicker=0.03)
    missed = {name for name, figure in figures.items() if not figure.reached}
    assert missed == {
        "other seed, values that differ",
        "frame-to-frame error, times less",
        "rocket flies where it points",
        "flow against motion_bucket",
        "half the fps, flow a frame",
    }
    assert text.count("MISSED") == 5


def test_a_film_run_backwards_is_not_believed():
    figures, _ = figures_of(backwards)
    assert figures["rocket flies where it points"].value == 0
    assert not figures["first frame, PSNR"].reached


def test_not_a_number_reaches_nothing():
    assert not Figure("flow", float("nan"), 0.9, "").reached


def test_figures_are_kept_as_json_and_as_a_table(tmp_path):
    save_figures([Figure("a", 1.0, 2.0, "dB"), Figure("b", 3.0, 2.0, "dB", "seen")], tmp_path)
    table = json.loads((tmp_path / "figures.json").read_text())
    assert [(row["name"], row["reached"]) for row in table] == [("a", False), ("b", True)]
    assert "| a | 1.00 dB | 2 | MISSED |  |" in (tmp_path / "figures.md").read_text().splitlines()


def test_the_sheet_shows_every_kind_beside_its_truth():
    rows = sheet_rows(Imagined(lambda still, seed, settings: np.repeat(still[None], 14, axis=0)), each=1)
    assert [row.scene.kind for row in rows] == list(KINDS)
    sheet = contact_sheet(rows, gap=4)
    assert sheet.shape == (len(KINDS) * 68, 2 * SHEET_FRAMES * 132 + 16, 3)
    still = (rows[0].scene.still * 255).round().astype(np.uint8)
    assert np.array_equal(sheet[:64, :128], still)
    assert np.array_equal(sheet[:64, 5 * 132 + 16 :][:, :128], still)


def test_a_frame_decoder_of_another_model_is_refused(tmp_path):
    config = VAEConfig(channels=32, channel_mult=(1, 1, 1, 1), res_blocks=1)
    vae = new_vae(image_config(config), torch.Generator().manual_seed(0))
    weights = {name: tensor for name, tensor in vae.state_dict().items() if name.startswith("decoder.")}
    save_tensors(tmp_path / "decoder.safetensors", weights, {})
    decode = frame_decoder(tmp_path / "decoder.safetensors", config)
    z = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(decode(z)[:1], decode(z[:1])), "each frame by itself"
    weights.popitem()
    save_tensors(tmp_path / "decoder.safetensors", weights, {})
    with pytest.raises(CheckpointError, match="is no frame-wise decoder of this model"):
        frame_decoder(tmp_path / "decoder.safetensors", config)
