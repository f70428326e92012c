"""What the UNet's layers may read during one call, and the hooks by which a host may change what they compute."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from .attention import Attention


class BlockHooks:
    """Hooks by which a host may change what the UNet computes. This base changes nothing; a host overrides what it
    needs.

    One object serves one UNet call. `enter` comes first for each block, so the other hooks know where they are. The
    attention hooks get tokens (rows, tokens, C): rows are frames in spatial layers and pixels, clip-major, in temporal
    ones.
    """

    changes_attention: bool = False
    """If True, attention goes through the hooks below, in full and in that layout; if False, by the shortcuts."""

    def enter(self, section: str, index: int) -> None:
        """Called before block `index` of section "input", "middle" or "output"."""

    def embedding(self, emb: Tensor) -> Tensor:
        """The embedded noise level (N, E) to use, before the vector is added."""
        return emb

    def enter_transformer(self, depth: int, images_shape: tuple[int, ...]) -> None:
        """Called before spatial and temporal block `depth` of a transformer; images_shape is (N, C, H, W)."""

    def leave_transformer(self) -> None:
        """Called after a transformer of the current block."""

    def self_attention(self, attn: Attention, tokens: Tensor) -> Tensor:
        return attn(tokens, tokens)

    def between_attentions(self, tokens: Tensor) -> Tensor:
        """The residual stream to use after self-attention."""
        return tokens

    def cross_attention(self, attn: Attention, tokens: Tensor, context: Tensor) -> Tensor:
        return attn(tokens, context)

    def after_input(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(images for the next block, images kept as the skip), after an input block."""
        return images, images

    def after_middle(self, images: Tensor) -> Tensor:
        return images

    def before_output(self, images: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """(images, skip) for an output block to concatenate."""
        return images, skip


NO_HOOKS = BlockHooks()


@dataclass(frozen=True, slots=True)
class StepContext:
    """Inputs that all layers share: emb (N, E) embeds noise level and vector; context (N, L, D) is the picture's
    embedding; N = B * num_frames.

    `activated` is SiLU(emb), which all residual blocks read: computed once. Class: exact."""

    emb: Tensor
    context: Tensor
    num_frames: int
    hooks: BlockHooks
    activated: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "activated", nn.functional.silu(self.emb))

    @property
    def clip_context(self) -> Tensor:
        """(B, L, D): the context of each clip, read from its first frame (spec 1.5)."""
        return self.context[:: self.num_frames]
