"""Llama 1 to 3 (transformers' `llama`)."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    fields=(
        *dense.SIZES,
        UniformLayers(),
        RopeFields(),
        dense.kv_heads(),
        dense.head_dim(),
        Field("mlp_bias", ("mlp.bias",), default=False),
        Fixed("pretraining_tp", (1, None)),
    ),
    constants=dense.CONSTANTS,
    rules=(*dense.RULES, *dense.MLP_BIAS),
    copies=dense.COPIES,
    # Written by old transformers releases; computed from rope_theta, never read back.
    buffers=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)
