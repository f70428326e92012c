"""The three stages of a recipe, each starting from the results of the previous ones in the run's folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from svd_core.errors import CheckpointError
from svd_core.model.clip_vision import CLIPVision
from svd_core.model.unet import VideoUNet
from svd_core.model.vae import VideoVAE

from .autoencoder import (
    FrameSamples,
    ImageObjective,
    TemporalObjective,
    copy_spatial,
    image_config,
    latent_rms,
    rescale_latents,
)
from .checkpoint import check_state, digest_of, load_tensors, not_finite, require_same, save_tensors
from .data import ClipSource, with_rockets
from .distributed import Group
from .initialise import freeze_unread, new_clip_vision, new_unet, new_vae
from .loop import Machine, Place, Run, alone, describe
from .randomness import generator_for
from .recipe import Recipe
from .start import Start, read_start
from .video import CachedSamples, VideoObjective, VideoSamples, cached_shards

KEPT_KEY = "training.kept"
_UNSAID = "mean"
"""The posterior of runs and encoded clips that name none, from before there was a choice: they can go on."""

CLIPS_FOR_SCALE = 8
"""Number of clips whose latents are measured to scale latents to unit variance."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Result of a stage: averaged weights of whole networks, and how far it was trained."""

    weights: Mapping[str, Tensor]
    step: int
    steps: int
    configuration: Mapping[str, Any]


def train_autoencoder(recipe: Recipe, source: ClipSource, folder: Path, machine: Machine, group: Group) -> Run:
    """Train stage 1 on single frames, and rescale the autoencoder's latents to unit variance in sampler units. Raises
    CheckpointError in a folder set up by `begin_from`, which already has its autoencoder."""
    stage, place = recipe.autoencoder, Place(folder, "autoencoder")
    vae = new_vae(image_config(recipe.model.vae), generator_for(recipe.seed, "weights", "autoencoder"))
    samples = FrameSamples(source, stage.frames, recipe.seed, consecutive=False)

    def keep(run: Run) -> None:
        with run.averaged() as objective:
            vae = objective.vae
            stills = (samples[number]["pixels"].to(group.device) for number in range(CLIPS_FOR_SCALE))
            _keep(run, rescale_latents(vae.config, vae.state_dict(), latent_rms(vae, stills)))

    with alone(place, group):
        if read_start(folder) is not None:
            raise CheckpointError(
                f"{folder} was begun from a trained model, whose autoencoder it keeps: give a new folder"
            )
        run = Run(ImageObjective(vae, stage), samples, stage.optimisation, autoencoder_is(recipe), place, group)
        run.train(machine, keep)
    return run


def train_temporal(recipe: Recipe, source: ClipSource, folder: Path, machine: Machine, group: Group) -> Run:
    """Train stage 2 from stage 1's autoencoder. Raises CheckpointError if that is not finished."""
    stage, place = recipe.temporal, Place(folder, "temporal")
    image, digest = finished_autoencoder(recipe, folder)
    vae = new_vae(recipe.model.vae, generator_for(recipe.seed, "weights", "temporal"))
    samples = FrameSamples(source, stage.frames, recipe.seed, consecutive=True)
    objective = TemporalObjective(copy_spatial(image, vae), stage)

    def keep(run: Run) -> None:
        with run.averaged() as objective:
            _keep(run, objective.vae.state_dict())

    with alone(place, group):
        run = Run(objective, samples, stage.optimisation, temporal_is(recipe, digest), place, group)
        run.train(machine, keep)
    return run


def train_video(recipe: Recipe, source: ClipSource, folder: Path, machine: Machine, group: Group) -> Run:
    """Train stage 3 on latents of stage 1's encoder. Raises CheckpointError if that is not finished."""
    stage, place = recipe.video, Place(folder, "video")
    vae, digest = finished_autoencoder(recipe, folder)
    vae = vae.to(group.device).eval()
    unet, clip_vision = new_video_networks(recipe)
    start = read_start(folder)
    if start is not None:
        start.fill(unet=unet, clip_vision=clip_vision)
    configuration = video_is(recipe, digest, start)
    objective = VideoObjective(unet, clip_vision, vae)
    with alone(place, group):
        check_state(place.state, configuration)  # refuses another recipe before clips are encoded for it
        samples = _video_samples(recipe, with_rockets(source, stage.rockets), vae, digest, folder, group)
        run = Run(objective, samples, stage.optimisation, configuration, place, group)
        run.train(machine, _keep_video)
    return run


def _video_samples(
    recipe: Recipe, source: ClipSource, vae: VideoVAE, digest: str, folder: Path, group: Group
) -> CachedSamples | VideoSamples:
    stage = recipe.video
    drawn = (stage.noise, recipe.model.unet.vector_dim, recipe.seed)
    if not stage.cached_clips:
        return VideoSamples(source, *drawn)
    posterior = stage.noise.posterior
    said = {} if posterior == _UNSAID else {"posterior": posterior}
    clips = _hash_of(_based_on(autoencoder_is(recipe), digest, "clips", rockets=stage.rockets, **said))
    shards = cached_shards(folder / "latents", source, vae, stage.cached_clips, posterior, clips, group)
    return CachedSamples(shards, *drawn)


def new_video_networks(recipe: Recipe) -> tuple[VideoUNet, CLIPVision]:
    """UNet and image encoder with initial weights; parameters without effect for one token of context are frozen."""
    unet = new_unet(recipe.model.unet, generator_for(recipe.seed, "weights", "unet"))
    return freeze_unread(unet), new_clip_vision(recipe.model.clip_vision, generator_for(recipe.seed, "weights", "clip"))


STAGES: dict[str, Callable[[Recipe, ClipSource, Path, Machine, Group], Run]] = {
    "autoencoder": train_autoencoder,
    "temporal": train_temporal,
    "video": train_video,
}
"""The stages in the order in which they run."""


def finished_autoencoder(recipe: Recipe, folder: Path) -> tuple[VideoVAE, str]:
    """Stage 1's autoencoder, and a digest of its weights. Raises CheckpointError if it is missing, from another
    configuration, or not fully trained."""
    kept = read_kept(folder, "autoencoder", autoencoder_is(recipe))
    if kept.step < kept.steps:
        raise CheckpointError(
            f"the autoencoder in {folder} is at step {kept.step} of {kept.steps}: "
            f"go on with python -m training autoencoder --folder {folder}"
        )
    vae = new_vae(image_config(recipe.model.vae), generator_for(recipe.seed, "weights", "autoencoder"))
    vae.load_state_dict(kept.weights)
    return vae, digest_of(kept.weights)


def read_kept(folder: Path, stage: str, configuration: Mapping[str, Any] | None = None) -> Kept:
    """The result of a stage. Raises CheckpointError if there is none, or only one of another configuration."""
    place = Place(folder, stage)
    if not place.weights.exists():
        if stage != "video" and read_start(folder) is not None:
            raise CheckpointError(f"{place.weights} is not there, for begin was stopped: remove {folder}, begin again")
        raise CheckpointError(f"{place.weights} does not exist: run python -m training {stage} --folder {folder} first")
    weights, metadata = load_tensors(place.weights)
    try:
        note = json.loads(metadata[KEPT_KEY])
        kept = Kept(weights, note["step"], note["steps"], note["configuration"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place.weights} was not written by training: remove it and train again") from error
    if configuration is not None:
        require_same(place.weights, kept.configuration, configuration)
    return kept


def autoencoder_is(recipe: Recipe) -> dict[str, Any]:
    """Everything that decides stage 1's weights."""
    parts = {"seed": recipe.seed, "data": recipe.data, "vae": recipe.model.vae, "autoencoder": recipe.autoencoder}
    return describe("autoencoder", **parts)


def temporal_is(recipe: Recipe, digest: str) -> dict[str, Any]:
    """Everything that decides stage 2's weights; `digest` is that of stage 1's."""
    return _based_on(autoencoder_is(recipe), digest, "temporal", temporal=recipe.temporal)


def video_is(recipe: Recipe, digest: str, start: Start | None) -> dict[str, Any]:
    """Everything that decides stage 3's weights; `digest` is that of stage 1's, `start` comes from `read_start`."""
    video = dataclasses.asdict(recipe.video)
    if recipe.video.noise.posterior == _UNSAID:
        del video["noise"]["posterior"]
    parts = {"unet": recipe.model.unet, "clip_vision": recipe.model.clip_vision, "video": video}
    begun = {} if start is None else {"start": start.digest}
    return _based_on(autoencoder_is(recipe), digest, "video", **parts, **begun)


def _based_on(base: Mapping[str, Any], digest: str, stage: str, **parts: Any) -> dict[str, Any]:
    """A later stage's configuration: stage 1's seed, data, VAE config and weights digest, and the stage's own parts."""
    shared = {name: base[name] for name in ("seed", "data", "vae")}
    return describe(stage, autoencoder_weights=digest, **shared, **parts)


def _hash_of(configuration: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]


def _keep_video(run: Run) -> None:
    with run.averaged() as objective:
        networks = {"unet": objective.unet, "clip_vision": objective.clip_vision}
        weights = {f"{part}.{key}": each for part, net in networks.items() for key, each in net.state_dict().items()}
        _keep(run, weights)


def _keep(run: Run, weights: Mapping[str, Tensor]) -> None:
    save_kept(run.place.folder, run.place.name, Kept(weights, run.step, run.optimisation.steps, run.configuration))


def save_kept(folder: Path, stage: str, kept: Kept) -> None:
    """Save the result of a stage for the next one and for `export`. Raises CheckpointError if it is not finite."""
    if bad := not_finite(kept.weights):
        raise CheckpointError(
            f"{bad} of the stage {stage} is not finite: start in a new folder with a lower learning rate"
        )
    note = {"step": kept.step, "steps": kept.steps, "configuration": kept.configuration}
    save_tensors(Place(folder, stage).weights, kept.weights, {KEPT_KEY: json.dumps(note)})
