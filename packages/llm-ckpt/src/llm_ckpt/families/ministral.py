"""Ministral 8B (transformers' `ministral`): Mistral with windows in some layers."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import LayerTypes, all_sliding

FAMILY = Family(
    name="ministral",
    architecture="MinistralForCausalLM",
    fields=(
        *dense.sizes(without=("attention_bias",)),
        UniformLayers(),
        LayerTypes(all_sliding),
        RopeFields(),
        dense.kv_heads(8),
        dense.head_dim(),
    ),
    constants=dense.CONSTANTS,
    rules=dense.PLAIN_RULES,
    copies=dense.COPIES,
)
