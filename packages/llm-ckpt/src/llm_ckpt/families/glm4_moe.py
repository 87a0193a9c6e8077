"""GLM-4.5, 4.6, 4.7 and their Air models (transformers' `glm4_moe`)."""

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.mtp import NUMBERED, NUMBERED_COPIES, prediction_layers
from llm_ckpt.families.rope import RopeFields

_LAYER_RULES = (
    *dense.NORMS,
    *dense.ATTENTION_WEIGHTS,
    dense.qkv("bias"),
    *dense.QK_NORMS,
    *moe.router_rules(bias="mlp.gate.e_score_correction_bias"),
    *moe.expert_rules(),
    *moe.shared_rules(),
)

FAMILY = Family(
    name="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    fields=(
        *moe.sizes(eps=1e-5, top_k=8, without=("attention_bias",)),
        UniformLayers(),
        RopeFields(fraction=0.5),
        dense.head_dim(),
        moe.DENSE_WIDTH,
        moe.EXPERT_WIDTH,
        moe.first_dense(default=1),
        *moe.sigmoid_fields(),
        moe.SharedExperts(default=1),
        moe.PredictionLayers(default=1),
        Field("n_routed_experts", ("moe.experts",), default=128, aliases=("num_local_experts",)),
        Field("attention_bias", ("attention.qkv_bias",), default=False),
        Field(
            "use_qk_norm",
            ("attention.qk_norm",),
            default="none",
            choices={True: "head", False: "none"},
        ),
    ),
    constants={**moe.CONSTANTS, **moe.SIGMOID},
    rules=(
        *dense.ENDS,
        *_LAYER_RULES,
        *dense.MLP_WEIGHTS,
        *prediction_layers(_LAYER_RULES, hf_layer=dense.HF, hf=NUMBERED),
    ),
    copies=dense.COPIES,
    duplicates=NUMBERED_COPIES,
)
