"""Residual blocks of the video UNet: a 2-D block within each frame, then one across frames (spec 1.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backend import Backend
from .fused import NormActivated, WeightsFn
from .layout import blended, from_clips, joined, to_clips
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
        # Identity keeps the slot of the SiLU, which has run before: `StepContext.activated`.
        self.emb_layers = nn.Sequential(nn.Identity(), emb)
        # Identity keeps the slot of the dropout: the released files call the next layer out_layers.3.
        self.out_layers = NormActivated(weights, norm_out, nn.SiLU(inplace=True), nn.Identity(), conv_out)


class TemporalResBlock(_Residual):
    """Mixes neighbouring frames and never looks sideways; statistics span the clip."""

    def __init__(self, channels: int, emb: int, *, backend: Backend) -> None:
        super().__init__(
            backend.group_norm(channels),
            backend.frame_conv(channels, channels),
            backend.linear(emb, channels),
            backend.group_norm(channels),
            backend.frame_conv(channels, channels),
            backend.weights,
        )

    def change(self, clips: Tensor, emb: Tensor) -> Tensor:
        """clips (B, C, T, H*W), emb (B, T, E) activated -> what the block adds to clips, same shape."""
        shift = self.emb_layers(emb).movedim(-1, 1)  # (B, C, T)
        return self.out_layers(joined(shift[..., None], self.in_layers(clips)))


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
        spatial = self.spatial(images, step.activated)
        clips = to_clips(spatial, step.num_frames)
        change = self.time_stack.change(clips, step.activated.unflatten(0, (-1, step.num_frames)))
        return blended(spatial, from_clips(change, images.shape[-2]), self.time_mixer.temporal_share(spatial))

    def spatial(self, images: Tensor, emb: Tensor) -> Tensor:
        """The 2-D part alone, frame by frame: images (N, C, H, W), emb (N, E) activated -> (N, C', H, W)."""
        shift = self.emb_layers(emb)[..., None, None]
        return joined(self.skip_connection(images), self.out_layers(joined(shift, self.in_layers(images))))
