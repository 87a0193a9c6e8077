"""Jais 2 (transformers' `jais2`): layer norms, biases, relu² and no gate."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="jais2",
    architecture="Jais2ForCausalLM",
    fields=(
        *dense.sizes(
            Field("hidden_act", ("mlp.activation",), default="relu2", choices=dense.ACTIVATIONS),
            Field("attention_bias", ("attention.qkv_bias", "attention.out_bias"), default=True),
            without=("rms_norm_eps",),
        ),
        Field("layer_norm_eps", ("norm.eps",), default=1e-5, kind=float),
        Field("mlp_bias", ("mlp.bias",), default=True),
        UniformLayers(),
        RopeFields(),
        dense.kv_heads(),
        dense.head_dim(),
    ),
    constants={**dense.CONSTANTS, "norm.kind": "layer", "mlp.gated": False},
    rules=(
        *dense.ENDS,
        *dense.NORMS,
        *dense.NORM_BIASES,
        *dense.ATTENTION_WEIGHTS,
        *dense.ATTENTION_BIAS,
        *dense.plain_mlp("weight", "bias"),
    ),
    copies=dense.COPIES,
)
