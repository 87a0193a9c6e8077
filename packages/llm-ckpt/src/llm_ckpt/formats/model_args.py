"""The `args` of a Megatron checkpoint: options of Megatron-LM that describe model and layout.

Names are Megatron-LM's; `multi_latent_attention` and what follows it are also MindSpeed-LLM's.
"""

from typing import Any

import torch

from llm_ckpt.arch import Arch, Mla, Moe
from llm_ckpt.formats.dialects import Dialect
from llm_ckpt.placement import Grid, Pipeline


def model_args(
    arch: Arch,
    *,
    pipeline: Pipeline,
    grid: Grid,
    dialect: Dialect,
    padded_vocab_size: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Option → value; only what a plain number, string or list can say."""
    position = arch.position
    is_rope = position.kind == "rope"
    facts: dict[str, Any] = {
        **_layout_args(pipeline, grid, dialect, has_experts=arch.moe is not None),
        "num_layers": arch.num_layers + len(pipeline.noop_layers),
        "hidden_size": arch.hidden_size,
        "max_position_embeddings": arch.max_position_embeddings,
        "position_embedding_type": "rope" if is_rope else position.kind,
        "untie_embeddings_and_output_weights": not arch.tie_embeddings,
        "normalization": "RMSNorm" if arch.norm.kind == "rms" else "LayerNorm",
        "norm_epsilon": arch.norm.eps,
        "apply_layernorm_1p": arch.norm.zero_centered,
        "vocab_size": arch.vocab_size,
        "padded_vocab_size": padded_vocab_size,
        "num_experts": None,
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "iteration": 1,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
    }
    if position.kind == "rope":
        facts |= {"rotary_base": position.base, "rotary_percent": position.fraction}
        if position.scaling is not None and position.scaling.kind == "llama3":
            facts |= {"use_rope_scaling": True, "rope_scaling_factor": position.scaling.factor}
    return facts | _part_args(arch)


def _layout_args(
    pipeline: Pipeline, grid: Grid, dialect: Dialect, *, has_experts: bool
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "tensor_model_parallel_size": grid.tp,
        "pipeline_model_parallel_size": pipeline.pp,
        "virtual_pipeline_model_parallel_size": pipeline.vpp if pipeline.vpp > 1 else None,
        "expert_model_parallel_size": grid.ep,
        "transformer_impl": dialect.implementation,
    }
    if has_experts:
        facts["expert_tensor_parallel_size"] = grid.expert_tensor
        facts["moe_grouped_gemm"] = dialect.experts != "sequential"
    if grid.tp_extends_ep:
        facts["moe_tp_extend_ep"] = True
    if pipeline.noop_layers:
        facts["noop_layers"] = ",".join(map(str, pipeline.noop_layers))
    if pipeline.layers_per_stage is not None:
        facts["num_layer_list"] = ",".join(map(str, pipeline.layers_per_stage))
    if pipeline.schedule == "dualpipev":
        facts["schedules_method"] = "dualpipev"
    if dialect.splits_mla:
        facts["mla_mm_split"] = True
    return facts


def _part_args(arch: Arch) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    attention, mlp = arch.attention, arch.mlp
    if attention is not None:
        facts |= {
            "num_attention_heads": attention.heads,
            "group_query_attention": attention.query_groups != attention.heads,
            "num_query_groups": attention.query_groups,
            "kv_channels": attention.head_dim,
            "add_qkv_bias": attention.qkv_bias,
            "qk_layernorm": attention.qk_norm != "none",
        }
    if mlp is not None:
        facts |= {
            "ffn_hidden_size": mlp.ffn_hidden_size,
            "swiglu": mlp.gated and mlp.activation == "silu",
            "add_bias_linear": mlp.bias,
        }
    if arch.mla is not None:
        facts |= _mla_args(arch.mla)
    if arch.moe is not None:
        facts |= _moe_args(arch.moe)
        facts["moe_layer_freq"] = [int(run.feed_forward == "moe") for run in arch.each_layer()]
        if all(facts["moe_layer_freq"]):
            facts["moe_layer_freq"] = 1
    if arch.mtp is not None:
        facts["mtp_num_layers"] = arch.mtp.layers
    return facts


def _mla_args(mla: Mla) -> dict[str, Any]:
    return {
        "multi_latent_attention": True,
        "num_attention_heads": mla.heads,
        "q_lora_rank": mla.q_lora_rank,
        "kv_lora_rank": mla.kv_lora_rank,
        "qk_head_dim": mla.qk_nope_head_dim,
        "qk_pos_emb_head_dim": mla.qk_rope_head_dim,
        "v_head_dim": mla.v_head_dim,
        "qk_layernorm": True,
    }


def _moe_args(moe: Moe) -> dict[str, Any]:
    router, shared = moe.router, moe.shared
    return {
        "num_experts": moe.experts,
        "moe_ffn_hidden_size": moe.ffn_hidden_size,
        "moe_router_topk": moe.top_k,
        "moe_router_score_function": router.score,
        "moe_router_pre_softmax": router.pre_softmax,
        "moe_router_topk_scaling_factor": router.scaling,
        "moe_router_enable_expert_bias": router.bias,
        "moe_router_num_groups": router.groups,
        "moe_router_group_topk": router.top_groups,
        "moe_shared_expert_intermediate_size": shared.ffn_hidden_size if shared else None,
        "moe_shared_expert_gate": shared.gated if shared else False,
        "swiglu": moe.gated and moe.activation == "silu",
    }
