"""Sources of training clips: scenes of the synthetic world, drawn on demand, or a folder of the user's clips."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from svd_core.conditioning import MAX_FPS, MicroConditioning
from svd_core.errors import InputError
from svd_core.media.reading import ANIMATIONS, DAMAGE, MOVIES, frames_of, opened, pictures_in

from .randomness import generator_for, seed_for, whole_number
from .recipe import Data
from .world import TRAIN_SEEDS, draw_scene

DEFAULT_FPS = 7
"""Frames per second assumed for clips that do not state any, such as folders of pictures."""

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A training clip: pixels (T, 3, H, W) float32 in [-1, 1]; fps in frames per second; motion_bucket 0 to 255."""

    pixels: Tensor
    fps: float
    motion_bucket: float


class ClipSource(Protocol):
    """An endless source of clips by number; the same number always gives the same clip."""

    def clip(self, number: int) -> Clip: ...


@dataclass(frozen=True, slots=True)
class WorldDataset:
    """Scenes of `training.world`, each with random fps and motion bucket; a share `rockets` of them is forced to be
    rockets, whatever kind the seed gives."""

    data: Data
    seed: int
    rockets: float = 0.0

    def clip(self, number: int) -> Clip:
        generator = generator_for(self.seed, "clip", number)
        fps = self.data.fps[whole_number(0, len(self.data.fps) - 1, generator)]
        bucket = whole_number(*self.data.motion_buckets, generator)
        size = {"frames": self.data.frames, "width": self.data.width, "height": self.data.height}
        kind = "rocket" if self._made_rocket(number) else None
        scene = draw_scene(training_seed(self.seed, number), fps=fps, motion_bucket=bucket, kind=kind, **size)
        return Clip(as_pixels(scene.frames), fps, bucket)

    def _made_rocket(self, number: int) -> bool:
        return float(torch.rand((), generator=generator_for(self.seed, "kind", number))) < self.rockets


def with_rockets(source: ClipSource, share: float) -> ClipSource:
    """The source with the given share of scenes forced to be rockets; a folder of clips is returned unchanged."""
    return replace(source, rockets=share) if isinstance(source, WorldDataset) else source


def training_seed(seed: int, number: int) -> int:
    """The seed of a clip's scene; never a held-out one."""
    return TRAIN_SEEDS[seed_for(seed, "scene", number) % len(TRAIN_SEEDS)]


def as_pixels(frames: np.ndarray) -> Tensor:
    """Frames (T, H, W, 3) in [0, 1], or uint8 -> (T, 3, H, W) float32 in [-1, 1]."""
    scaled = frames.astype(np.float32) / (255 if frames.dtype == np.uint8 else 1)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))) * 2 - 1


@dataclass(frozen=True, slots=True)
class Skipped:
    """A clip that is not used, and the reason."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    frames: int
    size: Size
    fps: float
    bytes: int
    digest: str
    """Digest of its pixels, which identifies the clip even if another file takes its name."""


@dataclass(frozen=True, slots=True)
class ClipFolder:
    """The clips of a folder: movies, GIF and WebP animations, and folders of PNGs in the order of `pictures_in`.

    A longer clip gives a random run of `frames` frames; `motion_bucket` applies to every clip. `skipped` lists the
    unusable ones. Created by `open_folder`.
    """

    files: tuple[_File, ...]
    skipped: tuple[Skipped, ...]
    frames: int
    seed: int
    motion_bucket: float = 127

    @property
    def size(self) -> Size:
        return self.files[0].size

    def clip(self, number: int) -> Clip:
        """A run of frames from a random file. Raises InputError if the file can no longer be read, or has changed."""
        generator = generator_for(self.seed, "clip", number)
        file = self.files[whole_number(0, len(self.files) - 1, generator)]
        start = whole_number(0, file.frames - self.frames, generator)
        try:
            run = list(islice(frames_of(file.path), start, start + self.frames))
            if not run:
                raise FileNotFoundError("its pictures are gone")
            changed = _bytes(file.path) != file.bytes
        except DAMAGE as error:
            raise InputError(f"clip {file.path} can no longer be read ({error}): put it back, or start anew") from error
        if changed or len(run) < self.frames or any(frame.shape[1::-1] != file.size for frame in run):
            raise InputError(f"clip {file.path} has changed since it was looked at: put it back, or start anew")
        return Clip(as_pixels(np.stack(run)), file.fps, self.motion_bucket)


def open_folder(
    folder: str | Path,
    *,
    frames: int,
    size: Size | None = None,
    needed: int = 1,
    seed: int = 0,
    motion_bucket: int = 127,
) -> ClipFolder:
    """Check every clip of a folder. `size` None takes the most common size.

    Clips that cannot be read, are shorter than `frames` or have another size are listed in `skipped`. Raises InputError
    if fewer than `needed` remain, or if the sides are not multiples of 8 pixels.
    """
    folder = Path(folder)
    MicroConditioning(motion_bucket=motion_bucket)
    if not folder.is_dir():
        raise InputError(f"clips {folder} is not a folder: give one that holds movies or folders of PNGs")
    found = [_looked_at(path, frames) for path in sorted(folder.iterdir()) if _is_clip(path)]
    readable = [file for file in found if isinstance(file, _File)]
    size = size or most_common_size(readable)
    files = tuple(file for file in readable if file.size == size)
    others = [Skipped(file.path, _other_size(file.size, size)) for file in readable if file.size != size]
    skipped = tuple(sorted([*(file for file in found if isinstance(file, Skipped)), *others], key=lambda s: s.path))
    _check_count(folder, len(files), len(found), max(needed, 1), skipped)
    if size[0] % 8 or size[1] % 8:
        raise InputError(f"clips of {size[0]}x{size[1]} in {folder}: sides must be multiples of 8 pixels, resize them")
    return ClipFolder(files, skipped, frames, seed, motion_bucket)


def most_common_size(files: Sequence[_File]) -> Size:
    """The size that most files have; (0, 0) for no files."""
    counts = Counter(file.size for file in files)
    return counts.most_common(1)[0][0] if counts else (0, 0)


def _other_size(found: Size, needed: Size) -> str:
    return f"is {found[0]}x{found[1]}, {needed[0]}x{needed[1]} needed"


def _check_count(folder: Path, usable: int, found: int, needed: int, skipped: Sequence[Skipped]) -> None:
    if usable < needed:
        why = "; ".join(f"{each.path.name} {each.reason}" for each in skipped)
        raise InputError(
            f"{usable} of {found} clips in {folder} can be used, {needed} needed: add clips"
            + (f", or repair these: {why}" if why else "")
        )


def _is_clip(path: Path) -> bool:
    """Whether a path in the folder is meant to be a clip; hidden files and other file types are not."""
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return bool(pictures_in(path))
    return path.suffix.lower() in (*MOVIES, *ANIMATIONS) and path.is_file()


def _looked_at(path: Path, frames: int) -> _File | Skipped:
    """Read the whole clip, so that damage anywhere in it is found before training begins."""
    try:
        sizes: Counter[Size] = Counter()
        digest = hashlib.sha256()
        for picture in frames_of(path):
            sizes[picture.shape[1::-1]] += 1
            digest.update(picture)
        fps, size = _fps(path), _bytes(path)
    except DAMAGE as error:
        return Skipped(path, f"cannot be read ({_in_short(error, path)})")
    count = sum(sizes.values())
    if count < frames:
        return Skipped(path, f"has {count} frames, {frames} needed")
    if len(sizes) > 1:
        return Skipped(path, f"has frames of {len(sizes)} sizes")
    if fps > MAX_FPS:
        return Skipped(path, f"plays at {fps:g} frames per second, at most {MAX_FPS} can be said")
    return _File(path, count, next(iter(sizes)), fps, size, digest.hexdigest()[:16])


def _bytes(path: Path) -> int:
    """Bytes of a movie, or of a folder's pictures, which tell most changes without decoding. Raises OSError."""
    return sum(file.stat().st_size for file in (pictures_in(path) if path.is_dir() else [path]))


def _in_short(error: Exception, path: Path) -> str:
    """A decoder's error message as one line, without the path, which is already named."""
    return " ".join(str(error).replace(repr(str(path)), "").split())[:80] or type(error).__name__


def _fps(path: Path) -> float:
    """Frames per second, at least 1."""
    if path.is_dir():
        return DEFAULT_FPS
    return max(1.0, _animation_fps(path) if path.suffix.lower() in ANIMATIONS else _movie_fps(path))


def _animation_fps(path: Path) -> float:
    with Image.open(path, formats=("GIF", "WEBP")) as animation:
        shown = [_milliseconds(picture) for picture in ImageSequence.Iterator(animation)]
    return 1000 * len(shown) / sum(shown) if sum(shown) else DEFAULT_FPS


def _milliseconds(picture: Image.Image) -> float:
    picture.load()  # WebP sets the duration only on load
    return picture.info.get("duration", 0)


def _movie_fps(path: Path) -> float:
    with opened(path) as movie:
        rate = movie.streams.video[0].average_rate
    return float(rate) if rate else DEFAULT_FPS


def open_source(data: Data, seed: int, report: Callable[[Skipped], None]) -> ClipSource:
    """The recipe's clips. `report` is called for each skipped one. Raises InputError."""
    if data.clips is None:
        return WorldDataset(data, seed)
    middle = sum(data.motion_buckets) // 2
    size = (data.width, data.height)
    folder = open_folder(data.clips, frames=data.frames, size=size, seed=seed, motion_bucket=middle)
    for skipped in folder.skipped:
        report(skipped)
    return folder
