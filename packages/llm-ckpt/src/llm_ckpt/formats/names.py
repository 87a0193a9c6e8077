"""Megatron-core's parameter names: local spec, Transformer Engine's fused names, stacked keys."""

import re
from collections.abc import Container

# Transformer Engine keeps a norm inside the linear that follows it, when the layer has that one.
_LINEAR_TO_NORM = (
    ("self_attention.linear_qkv", "input_layernorm"),
    ("self_attention.in_proj", "input_layernorm"),
    ("mixer.in_proj", "input_layernorm"),
    ("mlp.linear_fc1", "pre_mlp_layernorm"),
    ("self_attention.linear_q_up_proj", "self_attention.q_layernorm"),
    ("self_attention.linear_kv_up_proj", "self_attention.kv_layernorm"),
)
# Megatron-core's MambaStack runs every model that has Mamba2 layers; its norms have other names.
_FINAL_NORM, _STACK_FINAL_NORM = "decoder.final_layernorm.", "decoder.final_norm."
_MIXER_NORM = re.compile(r"(decoder\.layers\.\d+)\.norm\.")
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_STACKED = re.compile(r"decoder\.layers\.(?!\d)(.+)")
_WEIGHTS = ("embedding.", "decoder.", "output_layer.", "mtp.")


def is_weight(key: str) -> bool:
    """Whether a checkpoint key is a parameter (not optimizer state, not an extra state)."""
    return key.startswith(_WEIGHTS) and "._extra_state" not in key


def to_canonical(name: str) -> str:
    """Any spec's name → the local spec's of a transformer; a `module.` prefix is dropped."""
    name = name.removeprefix("module.").replace(_STACK_FINAL_NORM, _FINAL_NORM)
    name = _MIXER_NORM.sub(r"\1.input_layernorm.", name)
    for linear, norm in _LINEAR_TO_NORM:
        name = name.replace(f".{linear}.layer_norm_", f".{norm}.")
    return name


def to_fused(name: str, present: Container[str], *, is_mamba: bool) -> str:
    """The local spec's name → the one Transformer Engine and torch_dist use.

    `present` are the local spec's names of all parameters; `is_mamba`: a MambaStack runs them.
    """
    if is_mamba:
        name = name.replace(_FINAL_NORM, _STACK_FINAL_NORM)
    for linear, norm in _LINEAR_TO_NORM:
        head, found, end = name.rpartition(f".{norm}.")
        if found and f"{head}.{linear}.weight" in present:
            return f"{head}.{linear}.layer_norm_{end}"
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
