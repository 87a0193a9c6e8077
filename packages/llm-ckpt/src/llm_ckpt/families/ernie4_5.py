"""ERNIE 4.5, dense (transformers' `ernie4_5`): neighbouring pairs rotate."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="ernie4_5",
    architecture="Ernie4_5ForCausalLM",
    fields=(
        *dense.sizes(
            Field("tie_word_embeddings", ("tie_embeddings",), default=True),
            Field("rms_norm_eps", ("norm.eps",), default=1e-5, kind=float),
            without=("attention_bias",),
        ),
        Field("use_bias", ("attention.qkv_bias", "attention.out_bias", "mlp.bias"), default=False),
        UniformLayers(),
        RopeFields(default_base=500000.0, interleaved=True),
        dense.kv_heads(2),
        dense.head_dim(128),
    ),
    constants=dense.CONSTANTS,
    rules=(*dense.RULES, *dense.MLP_BIAS),
    copies=dense.COPIES,
)
