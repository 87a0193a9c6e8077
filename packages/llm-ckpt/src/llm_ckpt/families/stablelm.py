"""StableLM 2 and 3B (transformers' `stablelm`): layer norms, a quarter of each head rotates."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, Ignored, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="stablelm",
    architecture="StableLmForCausalLM",
    fields=(
        *dense.sizes(without=("attention_bias", "rms_norm_eps")),
        Field("layer_norm_eps", ("norm.eps",), default=1e-5, kind=float),
        Field("use_qkv_bias", ("attention.qkv_bias",), default=False),
        UniformLayers(),
        RopeFields(fraction=0.25),
        dense.kv_heads(32),
        dense.DIVIDED_HEAD_DIM,
        Fixed("qk_layernorm", (False,)),
        Fixed("use_parallel_residual", (False,)),
        Ignored(("hidden_dropout",)),
    ),
    constants={**dense.CONSTANTS, "norm.kind": "layer"},
    rules=(*dense.PLAIN_RULES, *dense.NORM_BIASES, dense.qkv("bias")),
    copies=dense.COPIES,
)
