"""Gemma 2 (transformers' `gemma2`): norms on both sides, softcaps, alternating windows."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Derived, Field, Fixed, Ignored, Power, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import LayerTypes, alternating

FAMILY = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    fields=(
        *dense.sizes(
            Field("tie_word_embeddings", ("tie_embeddings",), default=True),
            without=("hidden_act",),
        ),
        Field(
            "hidden_activation",
            ("mlp.activation",),
            default="gelu_tanh",
            choices=dense.ACTIVATIONS,
        ),
        UniformLayers(),
        LayerTypes(alternating),
        RopeFields(),
        dense.kv_heads(4),
        dense.head_dim(256),
        Derived("scalars.embedding", dense.root_of_hidden),
        Power("query_pre_attn_scalar", "attention.scale", -0.5, default=256),
        Field("attn_logit_softcapping", ("attention.softcap",), default=50.0, null=None),
        Field("final_logit_softcapping", ("scalars.logit_softcap",), default=30.0, null=None),
        Fixed("use_bidirectional_attention", (None, False)),
        # Unlike Gemma 1 the key is read by nothing; the cache is how tokens are generated.
        Ignored(("hidden_act", "cache_implementation", "sliding_window_size")),
    ),
    constants={
        **dense.CONSTANTS,
        "norm.zero_centered": True,
        "norm.placement": "sandwich",
    },
    rules=(
        *dense.ENDS,
        *dense.SANDWICH_NORMS,
        *dense.ATTENTION_WEIGHTS,
        *dense.ATTENTION_BIAS,
        *dense.MLP_WEIGHTS,
    ),
    copies=dense.COPIES,
)
