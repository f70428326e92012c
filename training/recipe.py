"""Recipes: everything that decides the weights, as one frozen value. `DEMO` is the model that ships with the pack.

Custom recipes are JSON with the same fields (`python -m training recipe` prints one), and `with_settings` changes
single values.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from svd_core.config import CLIPVisionConfig, ModelConfig, UNetConfig, VAEConfig, Variant
from svd_core.errors import InputError
from svd_core.strict_json import parse

from .limits import check_data, check_model, check_noise, check_optimisation, check_stated, require

Decay = Literal["constant", "cosine"]
Posterior = Literal["mean", "sample"]


@dataclass(frozen=True, slots=True)
class Optimisation:
    """Settings of AdamW. `batch` is the samples per step over all processes and `accumulate` rounds together; the rate
    rises linearly to `learning_rate` over `warmup` steps; `ema` is the final decay of the averaged weights (spec 8.3);
    `bf16` runs the networks under autocast, with float32 weights."""

    steps: int
    batch: int
    learning_rate: float = 1e-4
    decay: Decay = "cosine"
    warmup: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.9999
    accumulate: int = 1
    bf16: bool = False


@dataclass(frozen=True, slots=True)
class Data:
    """Training clips: scenes of the synthetic world, or the files of the folder `clips`.

    width and height are in pixels, multiples of 8. Each scene gets a random choice of fps and a random integer in the
    range motion_buckets. A folder's clips have their own fps, and the middle bucket.
    """

    frames: int = 14
    width: int = 128
    height: int = 64
    fps: tuple[int, ...] = (5, 7, 10, 14, 20)
    motion_buckets: tuple[int, int] = (0, 255)
    clips: str | None = None


@dataclass(frozen=True, slots=True)
class AutoencoderStage:
    """Training of encoder and image decoder on `frames` single frames of each clip; squared, edges and kl are weights
    of loss terms."""

    optimisation: Optimisation
    frames: int = 4
    squared: float = 1.0
    edges: float = 0.5
    kl: float = 1e-4


@dataclass(frozen=True, slots=True)
class TemporalStage:
    """Training of the temporal decoder on `frames` consecutive frames, starting from the image decoder's weights."""

    optimisation: Optimisation
    frames: int = 6
    squared: float = 1.0
    edges: float = 0.5
    differences: float = 1.0


@dataclass(frozen=True, slots=True)
class Noise:
    """Random draws for a clip: ln sigma ~ N(p_mean, p_std^2), with 0.7 and 1.6 or 1.0 and 1.6 for image to video; the
    noise on the still, ln a ~ N(augmentation_mean, augmentation_std^2) (spec 8.1); the probabilities of zeroing context
    and first, independently; and what the clean latent is: the posterior's mean, or as in the reference a sample
    (spec 2.1). The mean is what recipes mean that do not say it, the shipped model's among them."""

    p_mean: float = 0.7
    p_std: float = 1.6
    augmentation_mean: float = -3.0
    augmentation_std: float = 0.5
    drop_context: float = 0.1
    drop_first: float = 0.1
    posterior: Posterior = "mean"


@dataclass(frozen=True, slots=True)
class VideoStage:
    """Training of the UNet and the image encoder that gives its context. `cached_clips` clips are encoded once and
    reused; 0 draws and encodes a new clip for every sample. `rockets` is the share of synthetic scenes forced to be
    rockets, in addition to those that are rockets by their seed."""

    optimisation: Optimisation
    noise: Noise = field(default_factory=Noise)
    cached_clips: int = 0
    rockets: float = 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model and its complete training, from random weights to the exported file."""

    name: str
    model: ModelConfig
    data: Data
    autoencoder: AutoencoderStage
    temporal: TemporalStage
    video: VideoStage
    seed: int = 0
    licence: str = "MIT"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    def check(self) -> None:
        """Raise InputError for the first invalid value."""
        check_data(self.data)
        for name in ("autoencoder", "temporal"):
            frames = getattr(self, name).frames
            require(1 <= frames <= self.data.frames, f"{name}.frames", frames, f"1 to data.frames {self.data.frames}")
        for name in ("autoencoder", "temporal", "video"):
            check_optimisation(getattr(self, name).optimisation, f"{name}.optimisation")
        cached = self.video.cached_clips
        require(cached >= 0, "video.cached_clips", cached, "at least 0")
        require(0 <= self.video.rockets <= 1, "video.rockets", self.video.rockets, "a share from 0 to 1")
        check_noise(self.video.noise, "video.noise")
        check_model(self.model)
        check_stated(self.model, self.data)


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from a JSON file. Raises InputError if it is missing, damaged or has values out of range."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} cannot be read ({type(error).__name__}): check the path") from error
    return checked(parse(text, Recipe, "recipe"))


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with values changed, each given as "video.optimisation.steps=200"; values are JSON, or plain text.

    Raises InputError for an unknown field or an invalid value.
    """
    tree = dataclasses.asdict(recipe)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"{setting!r} is no setting: give field=value, such as video.optimisation.steps=200")
        _change(tree, path, _value(text))
    return checked(parse(json.dumps(tree), Recipe, "recipe"))


def checked(recipe: Recipe) -> Recipe:
    recipe.check()
    return recipe


def _change(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        tree = tree.get(parent) if isinstance(tree, Mapping) else None
    if not isinstance(tree, Mapping) or name not in tree:
        raise InputError(f"the recipe has no field {path!r}: see python -m training recipe for all of them")
    tree[name] = value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


DEMO = Recipe(
    name="demo",
    model=ModelConfig(
        unet=UNetConfig(
            model_channels=64,
            channel_mult=(1, 1, 2),
            res_blocks=1,
            attention=(False, True, False),
            head_channels=32,
            context_dim=96,
            vector_dim=96,
        ),
        # Two channels per GroupNorm group: with one, a frame's brightness would be normalised away.
        vae=VAEConfig(channels=64, channel_mult=(1, 1, 1, 1), res_blocks=1, encoder_quant=False),
        clip_vision=CLIPVisionConfig(
            layers=3, width=96, head_channels=32, mlp_width=384, patch=8, image_size=64, output_dim=96
        ),
        variant=Variant("demo", frames=14, steps=16, min_guidance=2.0, max_guidance=2.0, height=64, width=128),
    ),
    data=Data(),
    # Small batches: on two CPU cores, many steps on few frames learn more in the same time than few steps on many.
    autoencoder=AutoencoderStage(
        Optimisation(steps=6000, batch=2, learning_rate=6e-4, warmup=100, ema=0.999), frames=1, squared=4.0
    ),
    temporal=TemporalStage(Optimisation(steps=300, batch=2, learning_rate=2e-4, ema=0.99), frames=4, squared=4.0),
    video=VideoStage(
        Optimisation(steps=8500, batch=4, learning_rate=6e-4, warmup=200, ema=0.999),
        # Noise levels as for image to video at high resolution: the motion of a clip is decided at high sigma.
        noise=Noise(p_mean=1.0, posterior="mean"),
        cached_clips=4400,
        rockets=0.5,
    ),
)
"""The embedded demo model: 7.8 million parameters, 14 frames of 128x64, small enough to train on two CPU cores."""
