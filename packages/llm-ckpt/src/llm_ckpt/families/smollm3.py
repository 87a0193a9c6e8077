"""SmolLM3 (transformers' `smollm3`): every fourth layer without positions."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Ignored, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import NoRopeLayers

FAMILY = Family(
    name="smollm3",
    architecture="SmolLM3ForCausalLM",
    fields=(
        *dense.sizes(Field("tie_word_embeddings", ("tie_embeddings",), default=True)),
        Field("mlp_bias", ("mlp.bias",), default=False),
        UniformLayers(),
        NoRopeLayers(),
        RopeFields(default_base=2000000.0),
        dense.kv_heads(4),
        dense.head_dim(),
        Ignored(("max_window_layers", "pretraining_tp")),
    ),
    constants=dense.CONSTANTS,
    rules=(*dense.RULES, *dense.MLP_BIAS),
    copies=dense.COPIES,
)
