"""The one table from `arch.json` fields to megatron-core: config field, module choice, refusal.

A field of `llm_train.arch.Arch` must stand in exactly one entry:
tests/llm_train/test_train_fields.py fails otherwise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F

from llm_train.arch import Arch, Moe


class UnsupportedArchError(ValueError):
    """An architecture fact that llm-train cannot build yet."""


@dataclass(frozen=True, slots=True)
class Config:
    """`field` becomes the TransformerConfig field `target`, through `convert`."""

    field: str
    target: str
    convert: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True, slots=True)
class Module:
    """`field` decides a module or a constructor argument; `where` says which."""

    field: str
    where: str


@dataclass(frozen=True, slots=True)
class Only:
    """`field` may hold only `values` for now."""

    field: str
    values: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Ignored:
    """`field` does not change the model; `reason` says why."""

    field: str
    reason: str


def _relu_squared(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = MappingProxyType(
    {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": _gelu_tanh,
        "quick_gelu": _quick_gelu,
        "relu": F.relu,
        "relu2": _relu_squared,
    }
)
NORMALIZATIONS: Mapping[str, str] = MappingProxyType({"rms": "RMSNorm", "layer": "LayerNorm"})

TABLE: tuple[Config | Module | Only | Ignored, ...] = (
    Ignored("format", "checked when read"),
    Ignored("version", "checked when read"),
    Ignored("family", "provenance: llm-train knows primitives, never families"),
    Module("vocab_size", "GPTModel.vocab_size, padded to a multiple of tp"),
    Config("hidden_size", "hidden_size"),
    Module("max_position_embeddings", "GPTModel.max_sequence_length"),
    Module("tie_embeddings", "GPTModel.share_embeddings_and_output_weights"),
    Only("output_bias", (False,)),
    Only("output_normalized", (False,)),
    Only("embedding_norm", (False,)),
    Config("norm.kind", "normalization", NORMALIZATIONS.__getitem__),
    Config("norm.eps", "layernorm_epsilon"),
    Config("norm.zero_centered", "layernorm_zero_centered_gamma"),
    Only("norm.placement", ("pre",)),
    Module("layers.count", "TransformerConfig.num_layers"),
    Only("layers.mixer", ("attention",)),
    Only("layers.feed_forward", ("dense", "moe")),
    Module("layers.window", "CoreAttention.window of that layer"),
    Only("layers.rope", (True,)),
    Config("attention.heads", "num_attention_heads"),
    Config("attention.query_groups", "num_query_groups"),
    Config("attention.head_dim", "kv_channels"),
    Module("attention.qkv_bias", "linear_qkv class"),
    Module("attention.out_bias", "linear_proj class"),
    Only("attention.qk_norm", ("none", "head")),
    Only("attention.softcap", (None,)),
    Only("attention.sinks", (False,)),
    Config("attention.scale", "softmax_scale"),
    Only("attention.output_gate", (False,)),
    Only("attention.shared_kv", (1,)),
    Only("mla", (None,)),
    Only("gdn", (None,)),
    Only("mamba2", (None,)),
    Only("position.kind", ("rope",)),
    Module("position.base", "llm_train.model.rope"),
    Module("position.fraction", "llm_train.model.rope and GPTModel.rotary_percent"),
    Config("position.interleaved", "rotary_interleaved"),
    Module("position.scaling", "llm_train.model.rope"),
    Module("mlp.activation", "TransformerConfig.activation_func, with moe.activation"),
    Module("mlp.gated", "TransformerConfig.gated_linear_unit, with moe.gated"),
    Config("mlp.ffn_hidden_size", "ffn_hidden_size"),
    Config("mlp.bias", "add_bias_linear"),
    Only("mlp.clamp", (None,)),
    Only("mlp.glu_offset", (0.0,)),
    Config("moe.experts", "num_moe_experts"),
    Config("moe.top_k", "moe_router_topk"),
    Config("moe.ffn_hidden_size", "moe_ffn_hidden_size"),
    Module("moe.activation", "TransformerConfig.activation_func, with mlp.activation"),
    Module("moe.gated", "TransformerConfig.gated_linear_unit, with mlp.gated"),
    Only("moe.bias", (False,)),
    Only("moe.clamp", (None,)),
    Only("moe.glu_offset", (0.0,)),
    Config("moe.shared.ffn_hidden_size", "moe_shared_expert_intermediate_size"),
    Config("moe.shared.gated", "moe_shared_expert_gate"),
    Only("moe.router.score", ("softmax", "sigmoid")),
    Config("moe.router.pre_softmax", "moe_router_pre_softmax"),
    Module("moe.router.normalize", "implied by score and pre_softmax; checked"),
    Module("moe.router.scaling", "TransformerConfig.moe_router_topk_scaling_factor"),
    Config("moe.router.bias", "moe_router_enable_expert_bias"),
    Config("moe.router.groups", "moe_router_num_groups"),
    Config("moe.router.top_groups", "moe_router_group_topk"),
    Module("moe.router.group_score", "implied by top_k and top_groups; checked"),
    Only("moe.router.linear_bias", (False,)),
    Only("moe.router.zero_experts", (0,)),
    Only("mtp", (None,)),
    Only("scalars.embedding", (1.0,)),
    Only("scalars.residual", (1.0,)),
    Only("scalars.logits", (1.0,)),
    Only("scalars.logit_softcap", (None,)),
)


def config_fields(arch: Arch) -> dict[str, Any]:
    """TransformerConfig arguments that follow from `arch` alone.

    Raises UnsupportedArchError naming every field whose value cannot be built.
    """
    _refuse_unsupported(arch)
    fields: dict[str, Any] = {"num_layers": arch.num_layers}
    for entry in TABLE:
        if isinstance(entry, Config):
            for value in _values(arch, entry.field):
                fields[entry.target] = entry.convert(value)
    fields.update(_shared_by_dense_and_moe(arch))
    if arch.attention is not None:
        fields["qk_layernorm"] = arch.attention.qk_norm == "head"
    if arch.moe is not None:
        fields.update(_router_fields(arch))
    return fields


def _refuse_unsupported(arch: Arch) -> None:
    problems = [
        f"{entry.field}={value!r} (can build: {', '.join(map(repr, entry.values))})"
        for entry in TABLE
        if isinstance(entry, Only)
        for value in _values(arch, entry.field)
        if value not in entry.values
    ]
    if problems:
        raise UnsupportedArchError("arch.json asks for " + "; ".join(dict.fromkeys(problems)))


def _values(arch: Arch, field: str) -> list[Any]:
    """The values at a dotted path: none when a part on the way is null, several under `layers`."""
    found: list[Any] = [arch]
    for part in field.split("."):
        found = [getattr(item, part) for item in found if item is not None and hasattr(item, part)]
        found = [one for item in found for one in (item if isinstance(item, tuple) else (item,))]
    return found


def _shared_by_dense_and_moe(arch: Arch) -> dict[str, Any]:
    """megatron-core has one activation and one gating for both kinds of feed-forward."""
    parts = [part for part in (arch.mlp, arch.moe) if part is not None]
    kinds = {(part.activation, part.gated) for part in parts}
    if len(kinds) != 1:
        raise UnsupportedArchError(
            f"mlp and moe differ in (activation, gated): {sorted(kinds)}; want them equal"
        )
    activation, gated = kinds.pop()
    fields: dict[str, Any] = {
        "activation_func": ACTIVATIONS[activation],
        "gated_linear_unit": gated,
    }
    if arch.mlp is None and arch.moe is not None:
        # A required field that no layer of an all-MoE model uses.
        fields["ffn_hidden_size"] = arch.moe.ffn_hidden_size
        fields["add_bias_linear"] = False
    return fields


def _router_fields(arch: Arch) -> dict[str, Any]:
    assert arch.moe is not None
    router = arch.moe.router
    # megatron-core normalises sigmoid scores, and softmax scores taken after top-k.
    normalizes = router.score == "sigmoid" or not router.pre_softmax
    if router.normalize != normalizes:
        raise UnsupportedArchError(
            f"moe.router: score={router.score}, pre_softmax={router.pre_softmax} gives "
            f"normalize={normalizes}, arch.json says {router.normalize}"
        )
    _check_group_score(arch.moe)
    return {
        "moe_router_score_function": router.score,
        "moe_router_topk_scaling_factor": None if router.scaling == 1.0 else router.scaling,
        "moe_layer_freq": [int(run.feed_forward == "moe") for run in arch.each_layer()],
        "moe_token_dispatcher_type": "alltoall",
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
    }


def _check_group_score(moe: Moe) -> None:
    """megatron-core ranks a group by the sum of its best top_k / top_groups scores."""
    groups, top_groups = moe.router.groups, moe.router.top_groups
    if groups is None or top_groups is None or groups == top_groups:
        return
    summed = moe.top_k // top_groups
    if {"max": 1, "top2": 2}[moe.router.group_score] != summed:
        raise UnsupportedArchError(
            f"moe.router.group_score={moe.router.group_score}, but top_k({moe.top_k}) // "
            f"top_groups({top_groups}) = {summed} scores of a group would be summed"
        )
