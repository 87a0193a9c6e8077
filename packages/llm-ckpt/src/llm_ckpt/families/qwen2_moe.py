"""Qwen1.5-MoE and Qwen2-57B-A14B (transformers' `qwen2_moe`): a shared expert with a gate."""

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import SwitchedWindows
from llm_ckpt.params import LAYER
from llm_ckpt.rules import Same

FAMILY = Family(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    fields=(
        *moe.sizes(top_k=4, without=("attention_bias",)),
        UniformLayers(),
        RopeFields(),
        SwitchedWindows(),
        dense.head_dim(),
        moe.DENSE_WIDTH,
        moe.EXPERT_WIDTH,
        moe.SPARSE_STEP,
        moe.SoftmaxWeights(),
        Field("num_experts", ("moe.experts",), default=60),
        Field("shared_expert_intermediate_size", ("moe.shared.ffn_hidden_size",), default=5632),
        Field("qkv_bias", ("attention.qkv_bias",), default=True),
    ),
    constants={**moe.CONSTANTS, "moe.shared.gated": True},
    rules=(
        *moe.TRUNK,
        *dense.MLP_WEIGHTS,
        dense.qkv("bias"),
        *moe.router_rules(),
        *moe.expert_rules(),
        *moe.shared_rules("mlp.shared_expert."),
        Same(LAYER + "mlp.shared_experts.gate_weight", dense.HF + "mlp.shared_expert_gate.weight"),
    ),
    copies=dense.COPIES,
)
