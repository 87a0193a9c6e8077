"""Helium 1 (transformers' `helium`): neighbouring pairs rotate."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="helium",
    architecture="HeliumForCausalLM",
    fields=(
        *dense.sizes(
            Field("rms_norm_eps", ("norm.eps",), default=1e-8, kind=float),
            Field("attention_bias", ("attention.qkv_bias",), default=False),
        ),
        Field("mlp_bias", ("mlp.bias",), default=False),
        UniformLayers(),
        RopeFields(default_base=100000.0, interleaved=True),
        dense.kv_heads(20),
        dense.head_dim(128),
    ),
    constants=dense.CONSTANTS,
    rules=(*dense.PLAIN_RULES, dense.qkv("bias"), *dense.MLP_BIAS),
    copies=dense.COPIES,
)
