"""Tiny dense models that transformers ships.

Token sequences are 24 long (tests/llm_ckpt/test_ckpt_zoo.py): windows, trained lengths and scaled
positions are shorter, so that each shows in the logits.
"""

from ckpt_zoo.case import Case

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "vocab_size": 250,
    # Some families' own is beyond this vocabulary.
    "pad_token_id": None,
    # Large enough to show.
    "rms_norm_eps": 0.02,
}
# Heads that share the hidden size, for families without the key.
SHARED = {key: value for key, value in SIZES.items() if key != "head_dim"}
# Of families whose norms are layer norms, each with a name of its own for the key.
LAYER_NORM = {key: value for key, value in SIZES.items() if key != "rms_norm_eps"}
LAYER_NORM_SHARED = {key: value for key, value in LAYER_NORM.items() if key != "head_dim"}
BIASES = {"attention_bias": True, "mlp_bias": True}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 5}


def rope(kind, base=20000.0, **options):
    """`rope_parameters` of one type."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": base, **options}}


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
# With these the band between both betas lies inside a head.
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=2048)
DEEPSEEK_YARN = rope(
    "yarn",
    factor=4.0,
    original_max_position_embeddings=1024,
    beta_fast=16,
    beta_slow=2,
    mscale=0.7,
    mscale_all_dim=1.3,
    truncate=False,
)


def longrope(pairs, original):
    """Phi-3's scaling; sequences of 24 tokens take the long factors when `original` is less."""
    short, long = ([start + step * i for i in range(pairs)] for start, step in ((1, 0.1), (2, 0.3)))
    scaling = rope("longrope", short_factor=short, long_factor=long, partial_rotary_factor=0.5)
    return {**scaling, "original_max_position_embeddings": original}


# All multipliers differ from 1 and from each other.
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.35,
    "logits_scaling": 7.0,
}
GPT2 = {
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 8,
    "n_inner": 96,
    "n_positions": 64,
    "vocab_size": 250,
    "layer_norm_epsilon": 0.02,
}
# Heads wide enough that more than one pair of channels rotates.
STABLELM = {
    **LAYER_NORM_SHARED,
    "layer_norm_eps": 0.02,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BLOOM = {
    "hidden_size": 64,
    "n_layer": 3,
    "n_head": 8,
    "vocab_size": 250,
    "layer_norm_epsilon": 0.02,
}

CASES = (
    Case("llama", SIZES),
    Case("llama", {**SIZES, **BIASES}, "biases"),
    Case("llama", {**SIZES, "tie_word_embeddings": True}, "tied"),
    Case("llama", {**SIZES, **rope("linear", factor=3.0)}, "linear"),
    Case(
        "llama",
        {**SIZES, "max_position_embeddings": 16, **rope("dynamic", factor=3.0)},
        "dynamic",
    ),
    Case("llama", {**SIZES, **LLAMA3}, "llama3"),
    Case("llama", {**SIZES, **YARN}, "yarn"),
    Case("llama", {**SIZES, **DEEPSEEK_YARN}, "mscale"),
    Case("llama", {**SIZES, "hidden_act": "gelu", "num_key_value_heads": 8}, "gelu"),
    Case("qwen2", SHARED),
    Case(
        "qwen2",
        {
            **SHARED,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
        "windows",
    ),
    Case("qwen3", SIZES),
    Case("qwen3", {**SIZES, "attention_bias": True, "tie_word_embeddings": True}, "tied"),
    Case("qwen3", {**SIZES, **WINDOWS, "use_sliding_window": True}, "windows"),
    Case("mistral", {**SIZES, "head_dim": None, "sliding_window": 5}),
    Case("mistral", {**SIZES, "sliding_window": None}, "full"),
    Case("ministral", {**SIZES, **WINDOWS}),
    Case("gemma", SIZES),
    Case("gemma", {**SIZES, "attention_bias": True, "tie_word_embeddings": False}, "untied"),
    Case(
        "gemma2",
        {
            **SIZES,
            "query_pre_attn_scalar": 24,
            "sliding_window": 5,
            "attn_logit_softcapping": 0.6,
            "final_logit_softcapping": 1.5,
        },
    ),
    Case(
        "gemma2",
        {
            **SIZES,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "sliding_window": 5,
        },
        "biases",
    ),
    Case(
        "vaultgemma",
        {
            **SIZES,
            "attention_bias": True,
            "attn_logit_softcapping": 0.6,
            "sliding_window": 5,
            "tie_word_embeddings": False,
        },
    ),
    Case("phi3", {**SHARED, "sliding_window": 5, "num_key_value_heads": 2}),
    Case("phi3", {**SHARED, **longrope(2, original=16)}, "long"),
    Case("phi3", {**SHARED, **longrope(2, original=32)}, "short"),
    Case("glm", {**SIZES, "attention_bias": False}),
    Case("glm", {**SIZES, **rope("default", partial_rotary_factor=0.25)}, "biases"),
    Case("glm4", {**SIZES, "attention_bias": True}),
    Case("seed_oss", {**SIZES, "attention_out_bias": True, "mlp_bias": True}),
    Case("seed_oss", {**SIZES, "tie_word_embeddings": True}, "tied"),
    Case("internlm3", SIZES),
    Case("internlm3", {**SIZES, **BIASES}, "biases"),
    Case("olmo2", SHARED),
    Case("olmo2", {**SHARED, "attention_bias": True, "num_key_value_heads": 8}, "biases"),
    Case("olmo3", {**SHARED, "attention_bias": True, "sliding_window": 5}),
    Case("exaone4", {**SHARED, "sliding_window": 5, "sliding_window_pattern": 3}),
    Case(
        "exaone4",
        {**SHARED, "sliding_window": None, "layer_types": ["full_attention"] * 4},
        "full",
    ),
    Case("ernie4_5", SIZES),
    Case("ernie4_5", {**SIZES, "use_bias": True, "tie_word_embeddings": False}, "biases"),
    Case("granite", {**SHARED, **MULTIPLIERS}),
    Case("granite", {**SHARED, **MULTIPLIERS, **BIASES, "tie_word_embeddings": True}, "biases"),
    Case("granite_swa", {**SHARED, **MULTIPLIERS, "sliding_window": 5}),
    Case(
        "granite_swa",
        {
            **SHARED,
            **BIASES,
            **WINDOWS,
            "layer_rope_theta": [500.0, 0, 0, 500.0],
            "tie_word_embeddings": False,
        },
        "bases",
    ),
    Case("hunyuan_v1_dense", SIZES),
    Case(
        "hunyuan_v1_dense",
        {**SIZES, "attention_bias": True, **rope("dynamic", factor=1.0, alpha=50.0)},
        "alpha",
    ),
    Case("smollm3", SHARED),
    Case(
        "smollm3",
        {
            **SHARED,
            **BIASES,
            "tie_word_embeddings": False,
            "no_rope_layers": [0, 1, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 5,
        },
        "windows",
    ),
    Case("bloom", BLOOM),
    Case("bloom", {**BLOOM, "hidden_size": 48, "n_head": 6, "tie_word_embeddings": False}, "six"),
    Case("gpt2", GPT2, max_pp=1),
    Case("gpt2", {**GPT2, "n_inner": None, "tie_word_embeddings": False}, "untied", max_pp=1),
    Case("gpt_bigcode", GPT2, max_tp=1, max_pp=1),
    Case("gpt_bigcode", {**GPT2, "tie_word_embeddings": False}, "untied", max_tp=1, max_pp=1),
    Case(
        "starcoder2",
        {
            **LAYER_NORM_SHARED,
            "norm_epsilon": 0.02,
            "sliding_window": 5,
            "tie_word_embeddings": False,
        },
    ),
    Case("starcoder2", {**LAYER_NORM_SHARED, "norm_epsilon": 0.02, "use_bias": False}, "tied"),
    Case("arcee", SIZES),
    Case("arcee", {**SIZES, **BIASES, "tie_word_embeddings": True}, "biases"),
    Case("nemotron", {**LAYER_NORM, "norm_eps": 0.02}),
    Case("nemotron", {**LAYER_NORM, "norm_eps": 0.02, **BIASES}, "biases"),
    Case("jais2", {**LAYER_NORM, "layer_norm_eps": 0.02}),
    Case(
        "jais2",
        {**LAYER_NORM, "layer_norm_eps": 0.02, "attention_bias": False, "mlp_bias": False},
        "no-biases",
    ),
    Case("helium", SHARED | {"head_dim": 8}),
    Case("helium", {**SHARED, **BIASES, "head_dim": 8}, "biases"),
    Case("stablelm", {**STABLELM, "use_qkv_bias": True}),
    Case("stablelm", {**STABLELM, **rope("default", partial_rotary_factor=0.5)}, "half"),
    Case("hyperclovax", {**SIZES, **MULTIPLIERS}),
    Case("hyperclovax", {**SIZES, **MULTIPLIERS, **BIASES, "use_post_norm": False}, "pre-norm"),
)
