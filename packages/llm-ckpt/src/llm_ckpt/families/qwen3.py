"""Qwen3, dense (transformers' `qwen3`)."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, FullAttention, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    fields=(
        *dense.SIZES,
        UniformLayers(),
        RopeFields(),
        FullAttention(),
        Field(
            "num_key_value_heads",
            ("attention.query_groups",),
            default=32,
            null=dense.all_heads,
        ),
        Field("head_dim", ("attention.head_dim",), default=128),
    ),
    constants={**dense.CONSTANTS, "attention.qk_norm": "head"},
    rules=(*dense.RULES, *dense.QK_NORMS),
    copies=dense.COPIES,
)
