"""Granite 3 with experts (transformers' `granitemoe`, `granitemoeshared`): stacked experts."""

from dataclasses import replace

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Power, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.params import EXPERT, LAYER
from llm_ckpt.rules import Same

_HF = dense.HF + "block_sparse_moe."

FAMILY = Family(
    name="granitemoe",
    architecture="GraniteMoeForCausalLM",
    fields=(
        *moe.sizes(top_k=2),
        UniformLayers(),
        RopeFields(),
        dense.head_dim(),
        Field("intermediate_size", ("moe.ffn_hidden_size",)),
        Field("num_local_experts", ("moe.experts",), default=8),
        Field("embedding_multiplier", ("scalars.embedding",), default=1.0, kind=float),
        Field("residual_multiplier", ("scalars.residual",), default=1.0, kind=float),
        Field("attention_multiplier", ("attention.scale",), default=1.0, kind=float),
        Power("logits_scaling", "scalars.logits", -1, default=1.0),
    ),
    constants=moe.CONSTANTS,
    rules=(
        *moe.TRUNK,
        *dense.ATTENTION_BIAS,
        *moe.router_rules("block_sparse_moe.router.layer.weight"),
        Same(LAYER + EXPERT + "linear_fc1.weight", _HF + "input_linear.weight[{e}]"),
        Same(LAYER + EXPERT + "linear_fc2.weight", _HF + "output_linear.weight[{e}]"),
    ),
    copies=dense.COPIES,
)
SHARED = replace(
    FAMILY,
    name="granitemoeshared",
    architecture="GraniteMoeSharedForCausalLM",
    fields=(
        *FAMILY.fields,
        Field("shared_intermediate_size", ("moe.shared.ffn_hidden_size",)),
    ),
    constants={**FAMILY.constants, "moe.shared.gated": False},
    rules=(
        *FAMILY.rules,
        *(
            Same(
                LAYER + f"mlp.shared_experts.linear_{ours}.weight",
                dense.HF + f"shared_mlp.{theirs}_linear.weight",
            )
            for ours, theirs in (("fc1", "input"), ("fc2", "output"))
        ),
    ),
)
