"""Qwen1.5, Qwen2, Qwen2.5, QwQ, dense (transformers' `qwen2`): biases on q, k and v alone."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Fixed, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import SwitchedWindows

FAMILY = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    fields=(
        *dense.sizes(without=("attention_bias",)),
        UniformLayers(),
        SwitchedWindows(),
        RopeFields(),
        dense.kv_heads(32),
        dense.head_dim(),
        Fixed("use_mrope", (False,), is_written=False),
    ),
    constants={**dense.CONSTANTS, "attention.qkv_bias": True},
    rules=(*dense.PLAIN_RULES, dense.qkv("bias")),
    copies=dense.COPIES,
)
