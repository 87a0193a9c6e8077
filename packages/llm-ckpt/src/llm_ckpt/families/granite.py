"""Granite 3 and 4, dense (transformers' `granite`): multipliers."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Power, UniformLayers
from llm_ckpt.families.rope import RopeFields

MULTIPLIERS = (
    Field("embedding_multiplier", ("scalars.embedding",), default=1.0, kind=float),
    Field("residual_multiplier", ("scalars.residual",), default=1.0, kind=float),
    Field("attention_multiplier", ("attention.scale",), default=1.0, kind=float),
    Power("logits_scaling", "scalars.logits", -1, default=1.0),
)

FAMILY = Family(
    name="granite",
    architecture="GraniteForCausalLM",
    fields=(
        *dense.SIZES,
        Field("mlp_bias", ("mlp.bias",), default=False),
        UniformLayers(),
        RopeFields(),
        dense.kv_heads(),
        dense.head_dim(),
        *MULTIPLIERS,
    ),
    constants=dense.CONSTANTS,
    rules=(*dense.RULES, *dense.MLP_BIAS),
    copies=dense.COPIES,
)
