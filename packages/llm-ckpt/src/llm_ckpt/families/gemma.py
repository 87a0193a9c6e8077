"""Gemma 1 (transformers' `gemma`): norm weights around zero, embeddings times sqrt(hidden)."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Derived, Field, Fixed, UniformLayers
from llm_ckpt.families.rope import RopeFields

# Released configs say gelu and mean its tanh form.
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh", "gelu_new": "gelu_tanh"}

FAMILY = Family(
    name="gemma",
    architecture="GemmaForCausalLM",
    fields=(
        *dense.sizes(
            Field("tie_word_embeddings", ("tie_embeddings",), default=True),
            Field("hidden_act", ("mlp.activation",), default="gelu_tanh", choices=ACTIVATIONS),
        ),
        UniformLayers(),
        RopeFields(),
        dense.kv_heads(16),
        dense.head_dim(256),
        Derived("scalars.embedding", dense.root_of_hidden),
        Fixed("hidden_activation", (None, "gelu_pytorch_tanh"), is_written=False),
        Fixed("use_bidirectional_attention", (None, False)),
    ),
    constants={**dense.CONSTANTS, "norm.zero_centered": True},
    rules=dense.RULES,
    copies=dense.COPIES,
)
