"""Tiny mixture-of-experts models that transformers ships."""

from dataclasses import replace

from ckpt_zoo.case import Case

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 250,
}

EXPERTS = {"moe_intermediate_size": 40, "num_experts_per_tok": 3}
SIGMOID = {
    **SIZES,
    **EXPERTS,
    "head_dim": 12,
    "n_routed_experts": 12,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.7,
}
UNGROUPED = {"n_group": 1, "topk_group": 1, "norm_topk_prob": False}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(4)],
    "long_factor": [2.0 + 0.3 * i for i in range(4)],
    "short_mscale": 1.24,
    "long_mscale": 1.24,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 8.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 16,
}
GRANITE = {
    **SIZES,
    "intermediate_size": 40,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "embedding_multiplier": 2.5,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.3,
    "logits_scaling": 1.6,
}

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def _spread(case: Case) -> Case:
    """The case with two expert-parallel ranks where its experts divide."""
    experts = next(case.config[key] for key in _EXPERTS if key in case.config)
    return replace(case, max_ep=1 if experts % 2 else 2)


_CASES = (
    Case("mixtral", {**SIZES, "head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 3}),
    Case(
        "mixtral",
        {**SIZES, "num_local_experts": 4, "sliding_window": 7, "rms_norm_eps": 1e-3},
        "window",
    ),
    Case(
        "qwen2_moe",
        {
            **SIZES,
            **EXPERTS,
            "num_experts": 6,
            "shared_expert_intermediate_size": 56,
            "decoder_sparse_step": 2,
        },
    ),
    Case(
        "qwen2_moe",
        {
            **SIZES,
            **EXPERTS,
            "num_experts": 6,
            "shared_expert_intermediate_size": 56,
            "norm_topk_prob": True,
            "mlp_only_layers": [0, 2],
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
        "windows",
    ),
    Case("qwen3_moe", {**SIZES, **EXPERTS, "num_experts": 8, "head_dim": 12}),
    Case(
        "qwen3_moe",
        {
            **SIZES,
            **EXPERTS,
            "num_experts": 8,
            "norm_topk_prob": True,
            "attention_bias": True,
            "mlp_only_layers": [1],
            "tie_word_embeddings": True,
        },
        "mixed",
    ),
    Case(
        "phimoe",
        {
            **SIZES,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "attention_bias": True,
            "lm_head_bias": True,
            "rope_parameters": LONGROPE,
            "sliding_window": 9,
        },
    ),
    Case(
        "gpt_oss",
        {
            **SIZES,
            "head_dim": 12,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "sliding_window": 6,
            "rope_parameters": YARN,
            "swiglu_limit": 0.5,
        },
    ),
    Case("glm4_moe", {**SIGMOID, "attention_bias": True, "use_qk_norm": True}),
    Case("glm4_moe", {**SIGMOID, **UNGROUPED, "first_k_dense_replace": 2}, "air"),
    Case("minimax_m2", {**SIZES, "head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 3}),
    Case(
        "minimax_m2",
        {
            **SIZES,
            "head_dim": 16,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "rotary_dim": 8,
        },
        "partial",
    ),
    Case(
        "hunyuan_v1_moe",
        {**SIZES, "head_dim": 16, "num_experts": 6, "moe_topk": [2] * 4, "attention_bias": True},
    ),
    Case(
        "ernie4_5_moe",
        {
            **SIZES,
            "moe_intermediate_size": 40,
            "moe_num_experts": 8,
            "moe_k": 3,
            "moe_layer_start_index": 1,
            "tie_word_embeddings": False,
        },
    ),
    Case(
        "ernie4_5_moe",
        {
            **SIZES,
            "num_hidden_layers": 6,
            "moe_intermediate_size": 40,
            "moe_num_experts": 8,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 4,
            "moe_layer_interval": 2,
            "moe_num_shared_experts": 0,
        },
        "interval",
    ),
    Case("olmoe", {**SIZES, "num_experts": 8, "num_experts_per_tok": 3, "attention_bias": True}),
    Case(
        "olmoe",
        {**SIZES, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True},
        "normalized",
    ),
    Case("dots1", {**SIGMOID, "n_shared_experts": 2, "first_k_dense_replace": 1}),
    Case(
        "dots1",
        {
            **SIGMOID,
            **UNGROUPED,
            "n_shared_experts": 1,
            "attention_bias": True,
            "sliding_window": 6,
            "max_window_layers": 2,
        },
        "windows",
    ),
    Case("flex_olmo", {**SIZES, "pad_token_id": 0, "num_experts": 7, "num_experts_per_tok": 3}),
    Case(
        "flex_olmo",
        {
            **SIZES,
            "pad_token_id": 0,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "attention_bias": True,
        },
        "biases",
    ),
    Case("granitemoe", {**GRANITE, "attention_bias": True}),
    Case("granitemoeshared", {**GRANITE, "attention_bias": True, "shared_intermediate_size": 56}),
    Case(
        "exaone_moe",
        {
            **SIZES,
            **EXPERTS,
            "num_experts": 12,
            "n_group": 4,
            "topk_group": 2,
            "sliding_window": 6,
            "sliding_window_pattern": 4,
        },
    ),
    Case("solar_open", {**SIGMOID, "attention_bias": True, "n_shared_experts": 2}),
)

CASES: tuple[Case, ...] = tuple(map(_spread, _CASES))
