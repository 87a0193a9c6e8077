"""Seed-OSS (transformers' `seed_oss`)."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Ignored, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="seed_oss",
    architecture="SeedOssForCausalLM",
    fields=(
        *dense.sizes(Field("attention_bias", ("attention.qkv_bias",), default=True)),
        Field("attention_out_bias", ("attention.out_bias",), default=False),
        Field("mlp_bias", ("mlp.bias",), default=False),
        UniformLayers(),
        RopeFields(),
        dense.kv_heads(8),
        dense.head_dim(128),
        Ignored(("residual_dropout", "pretraining_tp")),
    ),
    constants=dense.CONSTANTS,
    rules=(*dense.RULES, *dense.MLP_BIAS),
    copies=dense.COPIES,
)
