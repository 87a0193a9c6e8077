"""Mixtral 8x7B and 8x22B (transformers' `mixtral`)."""

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import Window

FAMILY = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    fields=(
        *moe.sizes(eps=1e-5, top_k=2),
        UniformLayers(),
        RopeFields(default_base=1e6),
        dense.head_dim(),
        Field("intermediate_size", ("moe.ffn_hidden_size",)),
        Window(),
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
