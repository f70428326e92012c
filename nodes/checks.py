"""Checks shared by several nodes, and messages shown on the node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from comfy_api.latest import io
from server import PromptServer

from ..svd_core.config import LATENT_CHANNELS
from ..svd_core.errors import InputError

if TYPE_CHECKING:
    from comfy.sd import VAE
    from torch import Tensor


Result = TypeVar("Result")


def verdict(check: Callable[[], object]) -> bool | str:
    """The result for `validate_inputs`, before the workflow runs: True, or the message of the InputError raised."""
    try:
        check()
    except InputError as error:
        return str(error)
    return True


def in_widget(name: str, check: Callable[[], Result]) -> Result:
    """The check's result. Names the widget in its InputError: ComfyUI marks all that `validate_inputs` takes."""
    try:
        return check()
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def words_of(text: str | None) -> list[str]:
    """The words separated by commas or spaces. Raises InputError for a list, which ComfyUI lets a widget hold."""
    if not isinstance(text, str | None):
        raise InputError(f"{str(text)[:40]!r} is no text: write numbers with commas between")
    return (text or "").replace(",", " ").split()


def number_from(word: str, name: str) -> float:
    """The number that a word of a widget's text stands for. Raises InputError, with this name, if it is none."""
    try:
        return float(word)
    except ValueError as error:
        raise InputError(f"{word!r} in {name} is not a number: write numbers such as 0.5") from error


def show(node: type[io.ComfyNode], *sentences: str) -> None:
    """Show text on the running node in the front end; does nothing without one. Empty sentences are left out."""
    said = [sentence for sentence in sentences if sentence]
    server = getattr(PromptServer, "instance", None)  # absent if nodes run without ComfyUI's server
    if said and server is not None and node.hidden is not None and node.hidden.unique_id:
        server.send_progress_text("\n".join(said), node.hidden.unique_id)


def require_latents(samples: Tensor) -> None:
    """Raise InputError unless samples are frames (N, 4, h, w)."""
    if samples.is_nested or samples.ndim != 4 or samples.shape[1] != LATENT_CHANNELS:
        shape = "several latents" if samples.is_nested else f"shape {tuple(samples.shape)}"
        raise InputError(
            f"the latent is {shape}; needed (frames, {LATENT_CHANNELS}, height, width): "
            "connect the latent of Stable Video Conditioning, or pictures encoded with the checkpoint's VAE"
        )


def require_vae(vae: VAE) -> None:
    """Raise InputError, before it is loaded, for an autoencoder with a different kind of latents."""
    if (vae.latent_channels, vae.latent_dim) != (LATENT_CHANNELS, 2):
        raise InputError(
            f"this VAE makes latents of {vae.latent_channels} channels, Stable Video needs {LATENT_CHANNELS}: "
            "connect the VAE of the video checkpoint"
        )


def whole_clips(frames: int, num_frames: int, advice: str = "") -> int:
    """The number of clips of num_frames in a batch of frames. Raises InputError, with this advice, if not whole."""
    if num_frames < 1 or frames < 1 or frames % num_frames:
        raise InputError(
            f"the latent holds {frames} frames, which is not a whole number of clips of {num_frames}: "
            + (advice or f"give {num_frames} frames for each picture")
        )
    return frames // num_frames


def damaged_frames(frames: Tensor) -> list[int]:
    """Indices, from 0, of the frames (N, ...) that hold NaN or infinity."""
    finite = torch.isfinite(frames.flatten(1)).all(1)
    return (~finite).nonzero().flatten().tolist()
