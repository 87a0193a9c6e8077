"""EXAONE 4.0 (transformers' `exaone4`): norms behind blocks; full layers do not rotate."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Ignored, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import LayerTypes, nth_full_by_key

FAMILY = Family(
    name="exaone4",
    architecture="Exaone4ForCausalLM",
    fields=(
        *dense.sizes(
            Field("rms_norm_eps", ("norm.eps",), default=1e-5, kind=float),
            without=("attention_bias",),
        ),
        UniformLayers(),
        LayerTypes(nth_full_by_key, turns_in_windows=True),
        Ignored(("sliding_window_pattern",)),
        RopeFields(),
        dense.kv_heads(32),
        dense.head_dim(),
    ),
    constants={**dense.CONSTANTS, "norm.placement": "post", "attention.qk_norm": "head"},
    rules=(
        *dense.ENDS,
        *dense.POST_NORMS,
        *dense.ATTENTION_WEIGHTS,
        *dense.QK_NORMS,
        *dense.MLP_WEIGHTS,
    ),
    copies=dense.COPIES,
)
