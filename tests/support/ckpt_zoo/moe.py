"""Tiny mixture-of-experts models that transformers ships."""

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

CASES: tuple[Case, ...] = (
    Case(
        "mixtral",
        {**SIZES, "head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 3},
    ),
)
