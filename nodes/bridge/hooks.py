"""ComfyUI's patches and ControlNets, implemented as the UNet's `BlockHooks`.

Names and order of calls are ComfyUI's (`comfy/ldm/modules/attention.py`, `openaimodel.py`), so patches written for the
native model work unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy.ldm.modules.attention import optimized_attention

from ...svd_core.model.step import BlockHooks

if TYPE_CHECKING:
    from torch import Tensor

    from ...svd_core.model.attention import Attention

_ATTENTION_PATCHES = ("attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch", "middle_patch")

Options = dict[str, Any]


class HostHooks(BlockHooks):
    """Patches of one UNet call. `options` is ComfyUI's `transformer_options`, shared with patches and kept current."""

    def __init__(self, options: Options, control: dict[str, list] | None, call: dict[str, Any]) -> None:
        self.options = options
        # Residuals are popped from these lists, so copy them: a repeated call needs them again.
        self.control = {section: list(residuals) for section, residuals in (control or {}).items()}
        self.call = call
        self.patches = options.get("patches", {})
        self.replacements = options.get("patches_replace", {})
        options["original_shape"] = list(call["x"].shape)
        options["transformer_index"] = 0
        self.changes_attention = self._changes_attention()

    def _changes_attention(self) -> bool:
        patched = any(self.patches.get(name) for name in _ATTENTION_PATCHES)
        replaced = any(self.replacements.get(name) for name in ("attn1", "attn2"))
        return patched or replaced or "optimized_attention_override" in self.options

    # Position in the network

    def enter(self, section: str, index: int) -> None:
        self.options["block"] = (section, index)

    def enter_transformer(self, depth: int, images_shape: tuple[int, ...]) -> None:
        self.options["block_index"] = depth
        self.options["activations_shape"] = list(images_shape)

    def leave_transformer(self) -> None:
        self.options["transformer_index"] += 1

    # Attention

    def self_attention(self, attn: Attention, tokens: Tensor) -> Tensor:
        return self._attention("attn1", attn, tokens, tokens)

    def cross_attention(self, attn: Attention, tokens: Tensor, context: Tensor) -> Tensor:
        return self._attention("attn2", attn, tokens, context)

    def between_attentions(self, tokens: Tensor) -> Tensor:
        for patch in self.patches.get("middle_patch", ()):
            tokens = patch(tokens, self._extra(None))
        return tokens

    def _attention(self, kind: str, attn: Attention, tokens: Tensor, context: Tensor) -> Tensor:
        extra, value = self._extra(attn), context
        for patch in self.patches.get(f"{kind}_patch", ()):
            tokens, context, value = patch(tokens, context, value, extra)
        value = context if value is None else value
        q, k, v = attn.to_q(tokens), attn.to_k(context), attn.to_v(value)
        mixed = self._mix(kind, attn, (q, k, v), extra)
        out = attn.to_out(mixed)
        for patch in self.patches.get(f"{kind}_output_patch", ()):
            out = patch(out, extra)
        return out

    def _mix(self, kind: str, attn: Attention, projected: tuple[Tensor, Tensor, Tensor], extra: Options) -> Tensor:
        replacements = self.replacements.get(kind, {})
        block = self.options["block"]
        replacement = replacements.get((*block, self.options["block_index"])) or replacements.get(block)
        if replacement:
            return replacement(*projected, extra)
        return optimized_attention(*projected, attn.heads, transformer_options=self.options)

    def _extra(self, attn: Attention | None) -> Options:
        """The options passed to patches: all but the patches themselves, plus the shape of the heads."""
        extra = {key: value for key, value in self.options.items() if key not in ("patches", "patches_replace")}
        if attn is not None:
            width = attn.to_q.weight.shape[0]
            extra |= {"n_heads": attn.heads, "dim_head": width // attn.heads, "attn_precision": None}
        return extra

    # Embedding and blocks

    def embedding(self, emb: Tensor) -> Tensor:
        for patch in self.patches.get("emb_patch", ()):
            emb = patch(emb, self.call["model_channels"], self.options)
        return emb

    def after_input(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = self._controlled("input", images)
        for patch in self.patches.get("input_block_patch", ()):
            images = patch(images, self.options)
        skip = images
        for patch in self.patches.get("input_block_patch_after_skip", ()):
            images = patch(images, self.options)
        return images, skip

    def after_middle(self, images: Tensor) -> Tensor:
        images = self._controlled("middle", images)
        for patch in self.patches.get("middle_block_after_patch", ()):
            images = patch({**self.call, "h": images, "transformer_options": self.options})["h"]
        return images

    def before_output(self, images: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        skip = self._controlled("output", skip)
        for patch in self.patches.get("output_block_patch", ()):
            images, skip = patch(images, skip, self.options)
        return images, skip

    def _controlled(self, section: str, images: Tensor) -> Tensor:
        """Add the ControlNet's residual for this block; ComfyUI orders them last block first."""
        waiting = self.control.get(section)
        residual = waiting.pop() if waiting else None
        return images if residual is None else images + residual
