"""Tiny models with multi-head latent attention."""

from ckpt_zoo.case import Case

VOCAB = 250
ATTENTION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 28,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "max_position_embeddings": 64,
    "vocab_size": VOCAB,
}
EXPERTS = {
    **ATTENTION,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
}
GROUPS = {"n_group": 4, "topk_group": 2}
V3 = {**EXPERTS, **GROUPS, "num_nextn_predict_layers": 0, "rms_norm_eps": 1e-3}
SPARSE = {"index_n_heads": 3, "index_head_dim": 12, "index_topk": 7}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "mscale": 0.8,
    "mscale_all_dim": 0.6,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.9],
    "long_factor": [1.2, 1.7, 2.9, 5.3],
    "original_max_position_embeddings": 16,
}

CASES: tuple[Case, ...] = (
    Case("youtu", ATTENTION),
    Case("youtu", {**ATTENTION, "attention_bias": True, "rope_interleave": False}, "biases"),
    Case("youtu", {**ATTENTION, "q_lora_rank": None, "tie_word_embeddings": False}, "no-q-lora"),
    Case(
        "minicpm3",
        {
            **ATTENTION,
            "hidden_size": 48,
            "v_head_dim": 12,
            "rope_parameters": LONG,
            "scale_emb": 3,
            "scale_depth": 1.4,
            "dim_model_base": 32,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    Case("minicpm3", {**ATTENTION, "q_lora_rank": None, "tie_word_embeddings": False}, "untied"),
    Case("deepseek_v2", {**EXPERTS, "q_lora_rank": None, "topk_method": "greedy"}, "lite"),
    Case(
        "deepseek_v2",
        {
            **EXPERTS,
            **GROUPS,
            "topk_method": "group_limited_greedy",
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
            "attention_bias": True,
        },
        "groups",
    ),
    Case("deepseek_v3", {**V3, "rope_parameters": YARN, "attention_bias": True}),
    Case("deepseek_v3", {**V3, "q_lora_rank": None, "norm_topk_prob": False}, "no-q-lora"),
    Case("deepseek_v32", {**V3, **SPARSE, "rope_parameters": YARN, "attention_bias": True}),
    Case("glm_moe_dsa", {**V3, **SPARSE, "n_group": 1, "topk_group": 1, "attention_bias": True}),
    Case("glm4_moe_lite", {**V3, "n_group": 1, "topk_group": 1, "attention_bias": True}),
    Case("glm4_moe_lite", {**V3, "q_lora_rank": None}, "no-q-lora"),
)
