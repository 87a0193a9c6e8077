"""Solar Open (transformers' `solar_open`): every layer has experts."""

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="solar_open",
    architecture="SolarOpenForCausalLM",
    fields=(
        *moe.sizes(eps=1e-5, top_k=8, without=("attention_bias",)),
        UniformLayers(),
        RopeFields(default_base=1e6, fraction=1.0),
        dense.head_dim(128),
        moe.DENSE_WIDTH,
        moe.EXPERT_WIDTH,
        moe.first_dense(),
        *moe.sigmoid_fields(),
        moe.SharedExperts(default=1),
        Field("n_routed_experts", ("moe.experts",), default=128, aliases=("num_local_experts",)),
        Field("attention_bias", ("attention.qkv_bias",), default=False),
    ),
    constants={**moe.CONSTANTS, **moe.SIGMOID},
    rules=(
        *moe.TRUNK,
        dense.qkv("bias"),
        *moe.router_rules(bias="mlp.gate.e_score_correction_bias"),
        *moe.expert_rules(),
        *moe.shared_rules(),
    ),
    copies=dense.COPIES,
)
