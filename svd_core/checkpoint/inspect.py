"""Inspecting a checkpoint from its headers alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..config import ModelConfig, Variant
from ..errors import printable
from .detect import Detection, detect
from .families import SVD
from .formats import open_source
from .header import some
from .inventory import Difference, difference
from .keymaps import CLIP, CONDITIONER_VAE, FIRST_STAGE, UNET, VISUAL
from .source import TensorSource

_PARTS = (
    ("UNet", UNET),
    ("CLIP image encoder", VISUAL),
    ("CLIP text leftovers", CLIP),
    ("conditioner encoder", CONDITIONER_VAE + "encoder."),
    ("conditioner VAE rest", CONDITIONER_VAE),
    ("first-stage encoder", FIRST_STAGE + "encoder."),
    ("first-stage decoder", FIRST_STAGE + "decoder."),
    ("first-stage rest", FIRST_STAGE),
)
"""Each tensor is counted under the first prefix that matches."""

_OTHER = "other"


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors and parameters under one prefix."""

    name: str
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result of `inspect_checkpoint`. Its `str()` is the report that the command line prints."""

    path: Path
    format: str
    family: str
    config: ModelConfig
    variant_assumed: bool
    variant_reason: str
    encoder_prefix: str
    dtypes: dict[str, int]
    parts: tuple[Part, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    misshapen: tuple[str, ...]
    mistyped: tuple[str, ...]

    @property
    def variant(self) -> Variant:
        return self.config.variant

    @property
    def decoder(self) -> str:
        return "temporal" if self.config.vae.temporal else "image (frame by frame)"

    @property
    def encoder(self) -> str:
        home = "the conditioner's own" if self.encoder_prefix == CONDITIONER_VAE else "the first stage's"
        return f"{home}, {'with' if self.config.vae.encoder_quant else 'without'} quant_conv"

    @property
    def tensors(self) -> int:
        return sum(part.tensors for part in self.parts)

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def loadable(self) -> bool:
        """Whether strict loading would accept the tensors' names, shapes and dtypes; values are not checked."""
        return not (self.missing or self.unknown or self.misshapen or self.mistyped)

    def report(self) -> str:
        """The report as several lines, without a trailing newline."""
        return "\n".join([*self._summary(), *self._table(), *self._verdict()])

    def __str__(self) -> str:
        return self.report()

    def _summary(self) -> list[str]:
        run, unet = self.variant, self.config.unet
        dtypes = ", ".join(f"{dtype} ({count} tensors)" for dtype, count in self.dtypes.items())
        rows = {
            "file": f"{printable(str(self.path))} ({self.format})",
            "family": self.family,
            "variant": f"{run.name} ({'assumed' if self.variant_assumed else 'known'}: {self.variant_reason})",
            "made for": f"{run.frames} frames of {run.width}x{run.height}, {run.steps} steps, "
            f"guidance {run.min_guidance:g} to {run.max_guidance:g}",
            "decoder": self.decoder,
            "encoder": self.encoder,
            "widths": f"UNet {unet.level_channels} in heads of {unet.head_channels}, "
            f"CLIP {self.config.clip_vision.width} in heads of {self.config.clip_vision.head_channels}",
            "dtype": dtypes,
        }
        return [f"{name:<10} {value}" for name, value in rows.items()]

    def _table(self) -> list[str]:
        rows = [(part.name, part.tensors, part.parameters, ", ".join(part.dtypes)) for part in self.parts]
        rows.append(("total", self.tensors, self.parameters, ""))
        return ["", f"{'part':<22}{'tensors':>9}{'parameters':>16}  dtype"] + [
            f"{name:<22}{tensors:>9,}{parameters:>16,}  {dtypes}".rstrip() for name, tensors, parameters, dtypes in rows
        ]

    def _verdict(self) -> list[str]:
        lists = {"missing": self.missing, "unknown": self.unknown, "misshapen": self.misshapen}
        if self.mistyped:
            lists["no floats"] = self.mistyped
        rows = [f"{name:<10} {f'{len(keys)}: {some(keys)}' if keys else 'none'}" for name, keys in lists.items()]
        return ["", *rows, f"{'loadable':<10} {'yes, by its header; values were not read' if self.loadable else 'no'}"]


def inspect_checkpoint(path: str | Path, variant: str | Variant | None = None) -> Inspection:
    """Describe a checkpoint file or folder without reading weights.

    Missing and unknown tensors are part of the result. Raises CheckpointError for another family (named in the
    message), another format, or damage.
    """
    source = open_source(path)
    detection = detect(source, variant)
    return _inspection(source, detection, difference(source, detection))


def _inspection(source: TensorSource, detection: Detection, found: Difference) -> Inspection:
    return Inspection(
        path=source.path,
        format=source.format,
        family=SVD,
        config=detection.config,
        variant_assumed=detection.variant_assumed,
        variant_reason=detection.variant_reason,
        encoder_prefix=detection.encoder_prefix,
        dtypes=dict(Counter(_dtype(source, key) for key in source).most_common()),
        parts=_parts(source),
        missing=found.missing,
        unknown=found.unknown,
        misshapen=tuple(sorted(found.misshapen)),
        mistyped=tuple(sorted(found.mistyped)),
    )


def _parts(source: TensorSource) -> tuple[Part, ...]:
    members: dict[str, list[str]] = {name: [] for name, _ in _PARTS} | {_OTHER: []}
    for key in source:
        members[next((name for name, prefix in _PARTS if key.startswith(prefix)), _OTHER)].append(key)
    return tuple(
        Part(
            name=name,
            tensors=len(keys),
            parameters=sum(source.info(key).numel for key in keys),
            dtypes=tuple(sorted({_dtype(source, key) for key in keys})),
        )
        for name, keys in members.items()
        if keys
    )


def _dtype(source: TensorSource, key: str) -> str:
    return str(source.info(key).dtype).removeprefix("torch.")
