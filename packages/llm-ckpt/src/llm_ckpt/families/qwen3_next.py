"""Qwen3-Next and Qwen3-Coder-Next (transformers' `qwen3_next`)."""

from llm_ckpt.families import dense, gdn, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.params import LAYER
from llm_ckpt.rules import GdnIn

_INPUT = GdnIn(
    LAYER + "self_attention.in_proj.weight",
    qkvz=dense.HF + "linear_attn.in_proj_qkvz.weight",
    ba=dense.HF + "linear_attn.in_proj_ba.weight",
)

FAMILY = Family(
    name="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    fields=(
        *moe.SIZES,
        UniformLayers(),
        *gdn.SIZES,
        RopeFields(fraction=0.25),
        moe.DENSE_WIDTH,
        moe.EXPERT_WIDTH,
        moe.SPARSE_STEP,
        moe.SoftmaxWeights(default=True),
        Field("num_experts", ("moe.experts",), default=512),
        Field("shared_expert_intermediate_size", ("moe.shared.ffn_hidden_size",), default=512),
        Fixed("use_sliding_window", (False, None)),
        # The released folders hold a prediction layer of which config.json says nothing.
        moe.PredictionLayers(default=1),
    ),
    constants={**gdn.CONSTANTS, "moe.shared.gated": True},
    rules=gdn.with_prediction((*gdn.RULES, _INPUT, *dense.MLP_WEIGHTS, *gdn.EXPERTS)),
    copies=dense.COPIES,
)
