"""Nemotron-3, Nemotron-4, Minitron (transformers' `nemotron`): layer norms around zero, relu²."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="nemotron",
    architecture="NemotronForCausalLM",
    fields=(
        *dense.sizes(
            Field("hidden_act", ("mlp.activation",), default="relu2", choices=dense.ACTIVATIONS),
            without=("rms_norm_eps",),
        ),
        Field("norm_eps", ("norm.eps",), default=1e-5, kind=float),
        Field("mlp_bias", ("mlp.bias",), default=False),
        UniformLayers(),
        RopeFields(fraction=0.5),
        dense.kv_heads(),
        dense.head_dim(),
    ),
    constants={
        **dense.CONSTANTS,
        "norm.kind": "layer",
        "norm.zero_centered": True,
        "mlp.gated": False,
    },
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
