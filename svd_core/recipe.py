"""The recipe of a clip: all that is needed to make it again, as a frozen value stored as JSON in the clip's file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

from . import __version__
from .config import Variant
from .errors import InputError
from .moves import CameraMove, ObjectMove
from .settings import AttentionName, Settings, WeightsName
from .strict_json import parse
from .verdicts import Recorded

MAX_PLAYBACK_FPS = 240
MAX_THREADS = 1024
"""More than any machine has cores; keeps a damaged recipe from starting a million threads."""

DType = Literal["float32", "bfloat16", "float16"]

MODEL_FILES, FRAME_FILES = (".safetensors", ".json"), (".png",)
"""Suffixes of the files in a diffusers folder, and in a folder of frames, that their hash covers."""

Points = tuple[tuple[float, float], ...]
"""A curve: (position, value), position 0 the first frame and 1 the last."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 2**22


@dataclass(frozen=True, slots=True)
class Source:
    """A file (or folder) that a clip was made from: its path and the SHA-256 of its contents."""

    path: str
    sha256: str

    @classmethod
    def of(cls, path: str | Path, members: tuple[str, ...] = MODEL_FILES) -> Source:
        """The source at `path`; `members` as in `sha256_of`. Raises InputError if it cannot be read."""
        return cls(str(path), sha256_of(Path(path), members))


@dataclass(frozen=True, slots=True)
class RecordedControls:
    """The `Controls` of a clip as a recipe stores them: pictures and clips as the files that they were read from, and
    curves as points. Guidance is left out, because `Settings` has its curve."""

    brush: Source | None = None
    end: Source | None = None
    continued: Source | None = None
    feather: int = 4
    loop: bool = False
    sequential: bool = False
    window: int | None = None
    fused: bool = False
    overlap: int = 0
    colour_hold: float = 1.0
    unstick: float = 0.0
    motion_bucket: Points | None = None
    augmentation: Points | None = None
    camera: CameraMove | None = None
    depth: Source | None = None
    drag: Source | None = None
    drag_move: ObjectMove | None = None

    @property
    def files(self) -> dict[str, Source]:
        """The files that were given, by the control that they are for."""
        named = {name: getattr(self, name) for name in ("brush", "end", "continued", "depth", "drag")}
        return {name: source for name, source in named.items() if source is not None}

    def for_variant(self, variant: Variant) -> RecordedControls:
        """The controls with a window of the variant's own length filled in."""
        return dataclasses.replace(self, window=variant.frames) if self.window == 0 else self


UNCONTROLLED = RecordedControls()


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of everything that can affect the pixels or the file's bytes."""

    python: str
    svd_core: str
    torch: str
    numpy: str
    pillow: str
    av: str

    @classmethod
    def here(cls) -> Versions:
        libraries = {name: _version_of(name) for name in ("torch", "numpy", "pillow", "av")}
        return cls(python=platform.python_version(), svd_core=__version__, **libraries)

    def differences(self, other: Versions) -> str:
        """The differences as text, such as "torch 2.10.0 -> 2.11.0"; empty if there are none."""
        before, after = dataclasses.asdict(self), dataclasses.asdict(other)
        return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name])


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a clip was made.

    settings: with every default filled in. playback_fps: frames per second of the file. sigmas (n + 1): as sampled.
    device, dtype, attention and weights: as given to `load_checkpoint`. threads: torch's thread count; CPU sums depend
    on how they are split. watermark: library that marked the frames, with its version; empty if none did.
    split_guidance: whether guidance ran in two processes, one pass each. controls: beside the settings, which are those
    that were asked for: Un-stick raises some of them. Chunks and memory budgets never change a pixel and are left out.
    verdicts: what the clock decided (`svd_core.verdicts`). Fields added later have defaults, which describe older
    clips."""

    settings: Settings
    playback_fps: int
    sigmas: tuple[float, ...]
    checkpoint: Source
    image: Source
    device: str
    dtype: DType
    threads: int
    versions: Versions = field(default_factory=Versions.here)
    format: Literal[1] = 1
    watermark: str = ""
    split_guidance: bool = False
    attention: AttentionName = "auto"
    weights: WeightsName = "whole"
    controls: RecordedControls = UNCONTROLLED
    verdicts: Recorded = ()

    def to_json(self) -> str:
        """The recipe as one line of ASCII JSON."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Parse an untrusted JSON text. Raises InputError for anything `to_json` could not have written and for
        settings out of range."""
        recipe = parse(text, cls, "recipe")
        recipe.check()
        return recipe

    def check(self) -> None:
        """Raise InputError for the first value out of range."""
        self.settings.check()
        if not 1 <= self.playback_fps <= MAX_PLAYBACK_FPS:
            raise InputError(f"playback fps {self.playback_fps} is outside 1 to {MAX_PLAYBACK_FPS}: 7 is usual")
        if not 1 <= self.threads <= MAX_THREADS:
            raise InputError(f"threads {self.threads} is outside 1 to {MAX_THREADS}: the recipe was damaged")
        for name, source in {"checkpoint": self.checkpoint, "image": self.image, **self.controls.files}.items():
            if not _SHA256.fullmatch(source.sha256):
                raise InputError(f"recipe.{name}.sha256 is not 64 hexadecimal digits: the recipe was damaged")


def sha256_of(path: Path, members: tuple[str, ...] = MODEL_FILES) -> str:
    """SHA-256 in hexadecimal of a file, or of a folder: of the name, size and bytes of each file in it whose suffix is
    one of `members`, in the order of their names. Raises InputError if it is neither or cannot be read."""
    digest = hashlib.sha256()
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is neither a file nor a folder: check the path")  # reading a device may never end
        if not path.is_dir():
            _feed(digest, path)
            return digest.hexdigest()
        for name in sorted(file.relative_to(path).as_posix() for file in _deciding(path, members)):
            digest.update(f"{name}\0{(path / name).stat().st_size}\0".encode())
            _feed(digest, path / name)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path") from error
    return digest.hexdigest()


def _deciding(folder: Path, members: tuple[str, ...]) -> Iterator[Path]:
    """The files of a folder that decide its hash; download caches live in hidden folders."""
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix.lower() in members and not hidden and file.is_file():
            yield file


def _feed(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"
