"""K-EXAONE (transformers' `exaone_moe`): layers that attend to everything do not rotate."""

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Ignored, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import LayerTypes, nth_full_by_key

FAMILY = Family(
    name="exaone_moe",
    architecture="ExaoneMoeForCausalLM",
    fields=(
        *moe.sizes(eps=1e-5, top_k=8, without=("attention_bias",)),
        UniformLayers(),
        LayerTypes(nth_full_by_key, turns_in_windows=True),
        Ignored(("sliding_window_pattern",)),
        RopeFields(),
        dense.head_dim(),
        moe.DENSE_WIDTH,
        moe.EXPERT_WIDTH,
        moe.layer_types(default_dense=1),
        *moe.sigmoid_fields(scaling=2.5),
        moe.SharedExperts("num_shared_experts", default=1),
        Field("num_experts", ("moe.experts",), default=64),
    ),
    constants={**moe.CONSTANTS, **moe.SIGMOID, "attention.qk_norm": "head"},
    rules=(
        *moe.TRUNK,
        *dense.QK_NORMS,
        *dense.MLP_WEIGHTS,
        *moe.router_rules(bias="mlp.e_score_correction_bias"),
        *moe.expert_rules(),
        *moe.shared_rules(),
    ),
    copies=dense.COPIES,
)
