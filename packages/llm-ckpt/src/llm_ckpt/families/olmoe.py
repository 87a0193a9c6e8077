"""OLMoE (transformers' `olmoe`)."""

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="olmoe",
    architecture="OlmoeForCausalLM",
    fields=(
        *moe.sizes(eps=1e-5, top_k=8),
        UniformLayers(),
        RopeFields(),
        dense.head_dim(),
        Field("intermediate_size", ("moe.ffn_hidden_size",)),
        moe.SoftmaxWeights(),
        Field("num_experts", ("moe.experts",), default=64),
        Fixed("clip_qkv", (None,)),
    ),
    constants={**moe.CONSTANTS, "attention.qk_norm": "full"},
    rules=(
        *moe.TRUNK,
        *dense.QK_NORMS,
        *dense.ATTENTION_BIAS,
        *moe.router_rules(),
        *moe.expert_rules(),
    ),
    copies=dense.COPIES,
)
