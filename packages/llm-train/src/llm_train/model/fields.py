"""The one table from `arch.json` fields to megatron-core: config field or module choice.

A field of `llm_train.arch.Arch` must stand in exactly one entry:
tests/llm_train/test_train_fields.py fails otherwise.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F

from llm_train.arch import Arch
from llm_train.handover import SHORTCUT, handover_problems


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

TABLE: tuple[Config | Module | Ignored, ...] = (
    Ignored("format", "checked when read"),
    Ignored("version", "checked when read"),
    Ignored("family", "provenance: llm-train knows primitives, never families"),
    Module("vocab_size", "GPTModel.vocab_size, padded to a multiple of tp"),
    Config("hidden_size", "hidden_size"),
    Module("max_position_embeddings", "GPTModel.max_sequence_length"),
    Module("tie_embeddings", "GPTModel.share_embeddings_and_output_weights"),
    Module("output_bias", "llm_train.model.ends"),
    Module("output_normalized", "llm_train.model.ends"),
    Module("embedding_norm", "llm_train.model.ends"),
    Config("norm.kind", "normalization", NORMALIZATIONS.__getitem__),
    Config("norm.eps", "layernorm_epsilon"),
    Config("norm.zero_centered", "layernorm_zero_centered_gamma"),
    Module("norm.placement", "norms of LayerSubmodules"),
    Module("layers.count", "TransformerConfig.num_layers"),
    Module("layers.mixer", "llm_train.model.spec.MIXERS"),
    Module("layers.feed_forward", "llm_train.model.spec: mlp and shortcut_moe of the layer"),
    Module("layers.window", "CoreAttention.window of that layer"),
    Module("layers.rope", "Attention.has_rope of that layer"),
    Config("attention.heads", "num_attention_heads"),
    Config("attention.query_groups", "num_query_groups"),
    Config("attention.head_dim", "kv_channels"),
    Module("attention.qkv_bias", "linear_qkv class"),
    Module("attention.out_bias", "linear_proj class"),
    Module("attention.qk_norm", "q_layernorm and k_layernorm classes"),
    Module("attention.softcap", "CoreAttention.softcap"),
    Module("attention.sinks", "CoreAttention.softmax_offset"),
    Config("attention.scale", "softmax_scale"),
    Config("attention.output_gate", "attention_output_gate"),
    Module("attention.shared_kv", "Attention.linear_q, llm_train.handover"),
    Config("mla.heads", "num_attention_heads"),
    Module("mla.q_lora_rank", "LatentAttention"),
    Module("mla.kv_lora_rank", "LatentAttention"),
    Module("mla.qk_nope_head_dim", "LatentAttention"),
    Module("mla.qk_rope_head_dim", "LatentAttention"),
    Module("mla.v_head_dim", "LatentAttention"),
    Module("mla.scale", "LatentAttention"),
    Module("mla.norm_eps", "LatentAttention"),
    Module("mla.down_bias", "LatentAttention"),
    Module("mla.out_bias", "LatentAttention"),
    Module("mla.q_scale", "LatentAttention"),
    Module("mla.kv_scale", "LatentAttention"),
    Module("mla.indexer.heads", "Indexer"),
    Module("mla.indexer.head_dim", "Indexer"),
    Module("mla.indexer.top_k", "Indexer"),
    Module("mla.indexer.rope_interleaved", "Indexer"),
    Module("mla.indexer.borrowing_layers", "llm_train.handover"),
    Module("gdn.key_heads", "GatedDeltaNet"),
    Module("gdn.value_heads", "GatedDeltaNet"),
    Module("gdn.key_head_dim", "GatedDeltaNet"),
    Module("gdn.value_head_dim", "GatedDeltaNet"),
    Module("gdn.conv_kernel", "GatedDeltaNet.conv1d"),
    Module("mamba2.heads", "MambaMixer"),
    Module("mamba2.head_dim", "MambaMixer"),
    Module("mamba2.groups", "MambaMixer"),
    Module("mamba2.state_dim", "MambaMixer"),
    Module("mamba2.conv_kernel", "MambaMixer.conv1d"),
    Module("mamba2.chunk", "selective_scan, at most CHUNK: it changes no result"),
    Module("mamba2.conv_bias", "MambaMixer.conv1d"),
    Module("mamba2.proj_bias", "MambaMixer.in_proj and out_proj"),
    Module("mamba2.gated_norm", "MambaMixer.norm"),
    Module("position.kind", "GPTModel.position_embedding_type, CoreAttention.alibi_heads"),
    Module("position.base", "llm_train.model.rope"),
    Module("position.fraction", "llm_train.model.rope"),
    Module("position.interleaved", "Attention.is_interleaved"),
    Module("position.scaling", "llm_train.model.rope"),
    Module("mlp.activation", "TransformerConfig.activation_func, with moe.activation"),
    Module("mlp.gated", "TransformerConfig.gated_linear_unit, with moe.gated"),
    Config("mlp.ffn_hidden_size", "ffn_hidden_size"),
    Module("mlp.bias", "linears of the dense feed-forward"),
    Module("mlp.clamp", "TransformerConfig.activation_func_clamp_value, with moe.clamp"),
    Module("mlp.glu_offset", "TransformerConfig.glu_linear_offset, with moe.glu_offset"),
    Config("moe.experts", "num_moe_experts"),
    Config("moe.top_k", "moe_router_topk"),
    Config("moe.ffn_hidden_size", "moe_ffn_hidden_size"),
    Module("moe.activation", "TransformerConfig.activation_func, with mlp.activation"),
    Module("moe.gated", "TransformerConfig.gated_linear_unit, with mlp.gated"),
    Module("moe.bias", "linears of the experts"),
    Module("moe.clamp", "TransformerConfig.activation_func_clamp_value, with mlp.clamp"),
    Module("moe.glu_offset", "TransformerConfig.glu_linear_offset, with mlp.glu_offset"),
    Config("moe.shared.ffn_hidden_size", "moe_shared_expert_intermediate_size"),
    Config("moe.shared.gated", "moe_shared_expert_gate"),
    Module("moe.router.score", "llm_train.model.routing"),
    Module("moe.router.pre_softmax", "llm_train.model.routing"),
    Module("moe.router.normalize", "llm_train.model.routing"),
    Module("moe.router.scaling", "llm_train.model.routing"),
    Config("moe.router.bias", "moe_router_enable_expert_bias"),
    Module("moe.router.groups", "llm_train.model.routing"),
    Module("moe.router.top_groups", "llm_train.model.routing"),
    Module("moe.router.group_score", "llm_train.model.routing"),
    Module("moe.router.linear_bias", "Router.bias"),
    Module("moe.router.zero_experts", "ZeroExpertMixture, rows of Router.weight"),
    Config("mtp.layers", "mtp_num_layers"),
    Module("scalars.embedding", "llm_train.model.ends"),
    Module("scalars.residual", "Layer.residual_scale"),
    Module("scalars.logits", "llm_train.model.ends"),
    Module("scalars.logit_softcap", "llm_train.model.ends"),
)


def config_fields(arch: Arch) -> dict[str, Any]:
    """TransformerConfig arguments that follow from `arch` alone.

    Raises UnsupportedArchError naming every field whose value cannot be built.
    """
    _refuse_unsupported(arch)
    # Every linear is told of its own bias.
    fields: dict[str, Any] = {"num_layers": arch.num_layers, "add_bias_linear": False}
    for entry in TABLE:
        if isinstance(entry, Config):
            for value in _values(arch, entry.field):
                fields[entry.target] = entry.convert(value)
    fields.update(_shared_by_dense_and_moe(arch))
    if arch.attention is None and arch.mla is None:
        fields["num_attention_heads"] = _heads_of_linear_mixers(arch)
    if arch.attention is not None:
        # With it megatron-core sums the gradients of norms that every rank holds; those over all
        # heads lie cut.
        fields["qk_layernorm"] = arch.attention.qk_norm in ("head", "head_after_rope")
    if arch.moe is not None:
        fields.update(_router_fields(arch))
    return fields


def _refuse_unsupported(arch: Arch) -> None:
    problems = list[str]()
    if arch.moe is not None and arch.moe.bias and arch.moe.shared is not None:
        problems.append("moe.bias=True with moe.shared (a shared expert is built without biases)")
    problems += handover_problems(arch)
    has_window = any(run.mixer == "mla" and run.window is not None for run in arch.layers)
    if has_window and arch.mla is not None and arch.mla.indexer is not None:
        problems.append("mla.indexer with layers.window (keys are chosen of all that lie before)")
    if problems:
        raise UnsupportedArchError("arch.json asks for " + "; ".join(dict.fromkeys(problems)))


def _values(arch: Arch, field: str) -> list[Any]:
    """The values at a dotted path: none when a part on the way is null, several under `layers`."""
    found: list[Any] = [arch]
    for part in field.split("."):
        found = [getattr(item, part) for item in found if item is not None and hasattr(item, part)]
        found = [one for item in found for one in (item if isinstance(item, tuple) else (item,))]
    return found


def _heads_of_linear_mixers(arch: Arch) -> int:
    """For a required number that no layer uses: megatron-core wants tp to divide it too."""
    heads = (arch.mamba2 and arch.mamba2.heads, arch.gdn and arch.gdn.value_heads)
    return math.gcd(*(count for count in heads if count)) or arch.hidden_size


def _shared_by_dense_and_moe(arch: Arch) -> dict[str, Any]:
    """megatron-core has one activation, gating and clamping for both kinds of feed-forward."""
    parts = [part for part in (arch.mlp, arch.moe) if part is not None]
    kinds = {(part.activation, part.gated, part.clamp, part.glu_offset) for part in parts}
    if not kinds:
        return {}
    if len(kinds) != 1:
        raise UnsupportedArchError(
            f"mlp and moe differ in (activation, gated, clamp, glu_offset): "
            f"{sorted(map(str, kinds))}; want them equal"
        )
    activation, gated, clamp, offset = kinds.pop()
    fields: dict[str, Any] = {
        "activation_func": ACTIVATIONS[activation],
        "gated_linear_unit": gated,
        "activation_func_clamp_value": clamp,
        "glu_linear_offset": offset,
    }
    if arch.mlp is None and arch.moe is not None:
        # A required field that no layer of an all-MoE model uses.
        fields["ffn_hidden_size"] = arch.moe.ffn_hidden_size
    return fields


def _router_fields(arch: Arch) -> dict[str, Any]:
    assert arch.moe is not None
    # Balancing losses know two kinds of scores, and a bias goes with sigmoid alone.
    is_softmax = arch.moe.router.score == "softmax" and not arch.moe.router.bias
    return {
        "moe_router_score_function": "softmax" if is_softmax else "sigmoid",
        "moe_router_pre_softmax": arch.moe.router.pre_softmax,
        "moe_layer_freq": [int(run.feed_forward in ("moe", SHORTCUT)) for run in arch.each_layer()],
    }
