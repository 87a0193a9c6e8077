"""Mistral 7B, Nemo, Small, Large (transformers' `mistral`)."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import Window

FAMILY = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    fields=(
        *dense.sizes(without=("attention_bias",)),
        UniformLayers(),
        Window(default=4096),
        RopeFields(),
        dense.kv_heads(8),
        dense.head_dim(),
    ),
    constants=dense.CONSTANTS,
    rules=dense.PLAIN_RULES,
    copies=dense.COPIES,
)
