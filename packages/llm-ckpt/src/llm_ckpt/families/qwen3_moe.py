"""Qwen3-30B-A3B, 235B-A22B and Coder (transformers' `qwen3_moe`)."""

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Ignored, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import SwitchedWindows

FAMILY = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    fields=(
        *moe.sizes(top_k=8),
        UniformLayers(),
        RopeFields(),
        SwitchedWindows(),
        dense.head_dim(),
        moe.DENSE_WIDTH,
        moe.EXPERT_WIDTH,
        moe.SPARSE_STEP,
        moe.SoftmaxWeights(),
        Field("num_experts", ("moe.experts",), default=128, aliases=("num_local_experts",)),
        # Of Qwen3-Coder's config.json, where there is no shared expert.
        Ignored(("shared_expert_intermediate_size", "qkv_bias")),
    ),
    constants={**moe.CONSTANTS, "attention.qk_norm": "head"},
    rules=(
        *moe.TRUNK,
        *dense.QK_NORMS,
        *dense.ATTENTION_BIAS,
        *dense.MLP_WEIGHTS,
        *moe.router_rules(),
        *moe.expert_rules(),
    ),
    copies=dense.COPIES,
)
