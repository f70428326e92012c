"""Residual blocks of the video UNet: a 2-D block within each frame, then one across frames (spec 1.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backend import Backend
from .fused import NormActivated, WeightsFn, blended_with, short_of_bias
from .layout import from_clips, joined, to_clips
from .step import StepContext


class TimeMixer(nn.Module):
    """The learned blend `a * spatial + (1 - a) * temporal`, `a = sigmoid(mix_factor)` (spec 1.7)."""

    def __init__(self, *, backend: Backend) -> None:
        super().__init__()
        self.mix_factor = backend.parameter(1)

    def temporal_share(self, like: Tensor) -> Tensor:
        """1 - a. Blending x with x + change is x + (1 - a) * change, so callers scale the change (spec 11e)."""
        return torch.sigmoid(-self.mix_factor.float()).to(like)


class _Residual(nn.Module):
    """(GroupNorm, SiLU, convolution) twice with the embedding added in between; abstract, without `forward`."""

    def __init__(
        self,
        norm_in: nn.Module,
        conv_in: nn.Module,
        emb: nn.Module,
        norm_out: nn.Module,
        conv_out: nn.Module,
        weights: WeightsFn,
    ):
        super().__init__()
        self.in_layers = NormActivated(weights, norm_in, nn.SiLU(inplace=True), conv_in)
        # Identity keeps the slot of the SiLU, which has already run: `StepContext.activated`.
        self.emb_layers = nn.Sequential(nn.Identity(), emb)
        self.weights = weights
        # Identity keeps the slot of the dropout: the released files call the next layer out_layers.3.
        self.out_layers = NormActivated(weights, norm_out, nn.SiLU(inplace=True), nn.Identity(), conv_out)


class TemporalResBlock(_Residual):
    """Mixes neighbouring frames but not neighbouring pixels; statistics span the clip."""

    def __init__(self, channels: int, emb: int, *, backend: Backend) -> None:
        super().__init__(
            backend.group_norm(channels),
            backend.frame_conv(channels, channels),
            backend.linear(emb, channels),
            backend.group_norm(channels),
            backend.frame_conv(channels, channels),
            backend.weights,
        )

    def change(self, clips: Tensor, emb: Tensor, owed: Tensor | None = None) -> Tensor:
        """clips (B, C, T, H*W), emb (B * T, E) activated, owed (C,) a bias not yet added to the clips -> the residual
        branch, same shape."""
        hidden = self.in_layers(clips, None if owed is None else owed[None], fresh=False)
        return self.out_layers(hidden, self.emb_layers(emb))


class VideoResBlock(_Residual):
    """A spatial residual block whose output is blended with a temporal one."""

    def __init__(self, channels: int, out: int, emb: int, *, backend: Backend) -> None:
        super().__init__(
            backend.group_norm(channels),
            backend.conv(channels, out),
            backend.linear(emb, out),
            backend.group_norm(out),
            backend.conv(out, out),
            backend.weights,
        )
        self.skip_connection = nn.Identity() if channels == out else backend.conv(channels, out, 1)
        self.time_stack = TemporalResBlock(out, emb, backend=backend)
        self.time_mixer = TimeMixer(backend=backend)

    def forward(self, images: Tensor, step: StepContext) -> Tensor:
        """images (N, C, H, W) -> (N, C', H, W)."""
        spatial, owed = self.spatial(images, step.activated)
        change = self.time_stack.change(to_clips(spatial, step.num_frames), step.activated, owed)
        share = self.time_mixer.temporal_share(spatial)
        return blended_with(spatial, from_clips(change, images.shape[-2]), share, owed)

    def spatial(self, images: Tensor, emb: Tensor) -> tuple[Tensor, Tensor | None]:
        """The 2-D part alone, frame by frame: images (N, C, H, W), emb (N, E) activated -> (N, C', H, W), and the bias
        (C',) still to be added to it, or None."""
        hidden, owed = self.in_layers.short(images)
        branch, later = self.out_layers.short(hidden, _both(self.emb_layers(emb), owed))
        if isinstance(self.skip_connection, nn.Identity):
            return joined(images, branch), later
        skip, more = short_of_bias(self.weights, self.skip_connection, images)
        return joined(skip, branch), _both(later, more)


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of the given tensors; None if both are None."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
