"""InternLM3 (transformers' `internlm3`): Llama; the authors' code calls the biases otherwise."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="internlm3",
    architecture="InternLM3ForCausalLM",
    fields=(
        *dense.sizes(
            Field("rms_norm_eps", ("norm.eps",), default=1e-5, kind=float),
            Field("attention_bias", ("attention.qkv_bias",), default=False, aliases=("qkv_bias",)),
        ),
        Field("mlp_bias", ("mlp.bias", "attention.out_bias"), default=False, aliases=("bias",)),
        UniformLayers(),
        RopeFields(),
        dense.kv_heads(2),
        dense.head_dim(128),
    ),
    constants=dense.CONSTANTS,
    rules=(*dense.RULES, *dense.MLP_BIAS),
    copies=dense.COPIES,
)
