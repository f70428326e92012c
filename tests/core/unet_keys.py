"""Official UNet names to diffusers names, for comparisons (spec 9.1). Written apart from the package's own map, so that
the two check each other."""

from __future__ import annotations

_RES = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
        "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}  # fmt: skip


def diffusers_name(key: str) -> str:
    head, *rest = key.split(".")
    tail = ".".join(rest)
    if head in ("time_embed", "label_emb"):
        module = "time_embedding" if head == "time_embed" else "add_embedding"
        index, leaf = tail.removeprefix("0.").split(".") if head == "label_emb" else tail.split(".")
        return f"{module}.linear_{1 if index == '0' else 2}.{leaf}"
    if head == "out":
        return ("conv_norm_out." if rest[0] == "0" else "conv_out.") + rest[1]
    if head == "middle_block":
        place = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[rest[0]]
        return f"mid_block.{place}." + _inner(".".join(rest[1:]), rest[0] == "1")
    number, layer, inner = int(rest[0]), rest[1], ".".join(rest[2:])
    if head == "input_blocks":
        return _input(number, layer, inner)
    level, place = divmod(number, 3)
    if inner.startswith("conv."):
        return f"up_blocks.{level}.upsamplers.0.{inner}"
    kind = "resnets" if layer == "0" else "attentions"
    return f"up_blocks.{level}.{kind}.{place}." + _inner(inner, layer == "1")


def _input(number: int, layer: str, inner: str) -> str:
    if number == 0:
        return "conv_in." + inner
    level, place = divmod(number - 1, 3)
    if inner.startswith("op."):
        return f"down_blocks.{level}.downsamplers.0.conv." + inner.removeprefix("op.")
    kind = "resnets" if layer == "0" else "attentions"
    return f"down_blocks.{level}.{kind}.{place}." + _inner(inner, layer == "1")


def _inner(inner: str, attention: bool) -> str:
    if attention:
        inner = inner.replace("time_stack.0", "temporal_transformer_blocks.0")
        return inner.replace("time_pos_embed.0", "time_pos_embed.linear_1").replace(
            "time_pos_embed.2", "time_pos_embed.linear_2"
        )
    if inner.startswith("time_mixer"):
        return inner
    side = "temporal_res_block" if inner.startswith("time_stack.") else "spatial_res_block"
    name, leaf = inner.removeprefix("time_stack.").rsplit(".", 1)
    return f"{side}.{_RES[name]}.{leaf}"
