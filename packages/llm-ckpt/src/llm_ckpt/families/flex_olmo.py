"""FlexOlmo (transformers' `flex_olmo`): OLMo 2's norms after each block, with experts."""

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.params import LAYER
from llm_ckpt.rules import Same

FAMILY = Family(
    name="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    fields=(
        *moe.sizes(top_k=5),
        UniformLayers(),
        RopeFields(default_base=5e5),
        dense.head_dim(),
        Field("intermediate_size", ("moe.ffn_hidden_size",)),
        moe.SoftmaxWeights(),
        Field("num_experts", ("moe.experts",), default=7),
    ),
    constants={**moe.CONSTANTS, "norm.placement": "post", "attention.qk_norm": "full"},
    rules=(
        *dense.ENDS,
        *dense.ATTENTION_WEIGHTS,
        *dense.ATTENTION_BIAS,
        *dense.QK_NORMS,
        Same(
            LAYER + "post_self_attn_layernorm.weight", dense.HF + "post_attention_layernorm.weight"
        ),
        Same(LAYER + "post_mlp_layernorm.weight", dense.HF + "post_feedforward_layernorm.weight"),
        *moe.router_rules(),
        *moe.expert_rules(),
    ),
    copies=dense.COPIES,
)
