"""Mixtral 8x7B and 8x22B (transformers' `mixtral`)."""

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    fields=(
        *moe.SIZES,
        UniformLayers(),
        RopeFields(default_base=1e6),
        moe.HEAD_DIM,
        Field("intermediate_size", ("moe.ffn_hidden_size",)),
        Fixed("sliding_window", (None,)),
        Field("num_local_experts", ("moe.experts",), default=8),
    ),
    constants=moe.CONSTANTS,
    rules=(
        *moe.TRUNK,
        *moe.router_rules("block_sparse_moe.gate.weight"),
        *moe.expert_rules("block_sparse_moe.experts.{e}.", gate="w1", up="w3", down="w2"),
    ),
    copies=dense.COPIES,
)
