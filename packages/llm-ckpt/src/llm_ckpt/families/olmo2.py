"""OLMo 2 (transformers' `olmo2`): norms only behind blocks, and over all heads of q and k."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    fields=(
        *dense.sizes(Field("rms_norm_eps", ("norm.eps",), default=1e-5, kind=float)),
        UniformLayers(),
        RopeFields(),
        dense.kv_heads(),
        dense.head_dim(),
    ),
    constants={**dense.CONSTANTS, "norm.placement": "post", "attention.qk_norm": "full"},
    rules=(
        *dense.ENDS,
        *dense.POST_NORMS,
        *dense.ATTENTION_WEIGHTS,
        *dense.ATTENTION_BIAS,
        *dense.QK_NORMS,
        *dense.MLP_WEIGHTS,
    ),
    copies=dense.COPIES,
)
