"""GLM-4-0414, GLM-Z1 (transformers' `glm4`): GLM with norms on both sides of blocks."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="glm4",
    architecture="Glm4ForCausalLM",
    fields=(
        *dense.sizes(
            Field("rms_norm_eps", ("norm.eps",), default=1.5625e-07, kind=float),
            Field("attention_bias", ("attention.qkv_bias",), default=True),
        ),
        UniformLayers(),
        RopeFields(fraction=0.5, interleaved=True),
        dense.kv_heads(2),
        dense.head_dim(128),
    ),
    constants={**dense.CONSTANTS, "norm.placement": "sandwich"},
    rules=(
        *dense.ENDS,
        *dense.NORMS,
        *dense.norms(
            post_self_attn_layernorm="post_self_attn_layernorm",
            post_mlp_layernorm="post_mlp_layernorm",
        ),
        *dense.ATTENTION_WEIGHTS,
        dense.qkv("bias"),
        *dense.GATE_UP,
    ),
    copies=dense.COPIES,
)
