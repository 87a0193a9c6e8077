"""Qwen3, dense (transformers' `qwen3`)."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import SwitchedWindows

FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    fields=(
        *dense.SIZES,
        UniformLayers(),
        SwitchedWindows(),
        RopeFields(),
        dense.kv_heads(32),
        dense.head_dim(128),
    ),
    constants={**dense.CONSTANTS, "attention.qk_norm": "head"},
    rules=(*dense.RULES, *dense.QK_NORMS),
    copies=dense.COPIES,
)
