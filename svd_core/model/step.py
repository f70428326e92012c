"""What a layer of the UNet may read during one call, and where a host may step in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from .attention import Attention


class BlockHooks:
    """Where a host may change what the UNet computes. This base changes nothing; a host overrides what it needs.

    One object serves one UNet call. `enter` comes first for each block, so the others know where they are. Tokens given
    to the attention hooks are (rows, tokens, C): rows are frames in spatial layers and pixels, clip-major, in temporal
    ones.
    """

    changes_attention: bool = False
    """True sends attention through the hooks below, in full and in that layout; False keeps the shortcuts."""

    def enter(self, section: str, index: int) -> None:
        """Block `index` of "input", "middle" or "output" begins."""

    def embedding(self, emb: Tensor) -> Tensor:
        """The embedded noise level (N, E), before the vector joins."""
        return emb

    def enter_transformer(self, depth: int, images_shape: tuple[int, ...]) -> None:
        """Spatial and temporal block `depth` of a transformer begin; images_shape is (N, C, H, W)."""

    def leave_transformer(self) -> None:
        """A transformer of the current block has ended."""

    def self_attention(self, attn: Attention, tokens: Tensor) -> Tensor:
        return attn(tokens, tokens)

    def between_attentions(self, tokens: Tensor) -> Tensor:
        """The residual stream after self-attention."""
        return tokens

    def cross_attention(self, attn: Attention, tokens: Tensor, context: Tensor) -> Tensor:
        return attn(tokens, context)

    def after_input(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """After an input block: (what goes on, what is kept as the skip)."""
        return images, images

    def after_middle(self, images: Tensor) -> Tensor:
        return images

    def before_output(self, images: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Before an output block joins its skip."""
        return images, skip


NO_HOOKS = BlockHooks()


@dataclass(frozen=True, slots=True)
class StepContext:
    """emb (N, E) embeds noise level and vector; context (N, L, D) is the picture's embedding; N = B * num_frames.

    `activated` is SiLU(emb), which all residual blocks read: worked out once. Class: exact."""

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
