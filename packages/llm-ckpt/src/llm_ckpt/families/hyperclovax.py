"""HyperCLOVA X SEED (transformers' `hyperclovax`): multipliers, norms on both sides."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields

PLACEMENTS = {True: "sandwich", False: "pre"}

FAMILY = Family(
    name="hyperclovax",
    architecture="HyperCLOVAXForCausalLM",
    fields=(
        *dense.SIZES,
        Field("mlp_bias", ("mlp.bias",), default=False),
        UniformLayers(),
        RopeFields(),
        dense.kv_heads(),
        dense.head_dim(),
        Field("embedding_multiplier", ("scalars.embedding",), default=1.0, kind=float),
        Field("residual_multiplier", ("scalars.residual",), default=1.0, kind=float),
        Field("logits_scaling", ("scalars.logits",), default=1.0, kind=float),
        Field("attention_multiplier", ("attention.scale",), default=None, kind=float),
        Field("use_post_norm", ("norm.placement",), default="sandwich", choices=PLACEMENTS),
    ),
    constants=dense.CONSTANTS,
    rules=(
        *dense.RULES,
        *dense.norms(post_self_attn_layernorm="post_norm1", post_mlp_layernorm="post_norm2"),
        *dense.MLP_BIAS,
    ),
    copies=dense.COPIES,
)
