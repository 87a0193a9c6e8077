"""Tiny dense models that transformers ships."""

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
}

CASES = (
    Case("llama", SIZES),
    Case("llama", {**SIZES, "attention_bias": True, "mlp_bias": True}, "biases"),
    Case("llama", {**SIZES, "tie_word_embeddings": True}, "tied"),
    Case("qwen3", SIZES),
    Case("qwen3", {**SIZES, "attention_bias": True, "tie_word_embeddings": True}, "tied"),
)
