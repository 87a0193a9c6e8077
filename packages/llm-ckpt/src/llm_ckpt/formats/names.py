"""Megatron-core's parameter names: local spec, Transformer Engine's fused names, stacked keys."""

import re

# Transformer Engine keeps the norm inside the linear that follows it.
_FUSED_TO_LOCAL = (
    ("self_attention.linear_qkv.layer_norm_", "input_layernorm."),
    ("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."),
)
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_STACKED = re.compile(r"decoder\.layers\.(?!\d)(.+)")
_WEIGHTS = ("embedding.", "decoder.", "output_layer.", "mtp.")


def is_weight(key: str) -> bool:
    """Whether a checkpoint key is a parameter (not optimizer state, not an extra state)."""
    return key.startswith(_WEIGHTS) and "._extra_state" not in key


def to_canonical(name: str) -> str:
    """Either spec's name → the local spec's; a `module.` prefix is dropped."""
    name = name.removeprefix("module.")
    for fused, local in _FUSED_TO_LOCAL:
        name = name.replace("." + fused, "." + local)
    return name


def to_fused(name: str) -> str:
    """The local spec's name → the one Transformer Engine and torch_dist use."""
    for fused, local in _FUSED_TO_LOCAL:
        name = name.replace("." + local, "." + fused)
    return name


def split_layer(name: str) -> tuple[int, str] | None:
    """Layer number and the rest of a per-layer name, or None."""
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def join_layer(layer: int, rest: str) -> str:
    """The inverse of `split_layer`."""
    return f"decoder.layers.{layer}.{rest}"


def stacked_rest(key: str) -> str | None:
    """What follows `decoder.layers.` in a key whose layers are stacked on axis 0, or None."""
    match = _STACKED.fullmatch(key)
    return match[1] if match else None
