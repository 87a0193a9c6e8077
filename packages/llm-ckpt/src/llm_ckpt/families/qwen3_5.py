"""Text models of Qwen3.5, dense and of experts (transformers' `qwen3_5_text`, `…_moe_text`)."""

from llm_ckpt.families import dense, gdn, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Codec, Field, Ignored, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.params import LAYER
from llm_ckpt.rules import GdnApart

_LINEAR = dense.HF + "linear_attn.in_proj_"
_INPUT = GdnApart(
    LAYER + "self_attention.in_proj.weight",
    qkv=_LINEAR + "qkv.weight",
    z=_LINEAR + "z.weight",
    b=_LINEAR + "b.weight",
    a=_LINEAR + "a.weight",
)
_COMMON: tuple[Codec, ...] = (
    UniformLayers(),
    *gdn.SIZES,
    RopeFields(fraction=0.25),
    moe.PredictionLayers(keys=("mtp_num_hidden_layers",)),
    Ignored(("mtp_use_dedicated_embeddings", "mamba_ssm_dtype")),
)

DENSE = Family(
    name="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    fields=(
        *dense.SIZES,
        Field("num_key_value_heads", ("attention.query_groups",), default=4),
        *_COMMON,
    ),
    constants={**gdn.CONSTANTS, "layers.feed_forward": "dense"},
    rules=gdn.with_prediction((*gdn.RULES, _INPUT, *dense.MLP_WEIGHTS)),
    copies=dense.COPIES,
)
EXPERTS = Family(
    name="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    fields=(
        *moe.SIZES,
        *_COMMON,
        moe.EXPERT_WIDTH,
        Field("num_experts", ("moe.experts",), default=256),
        Field("shared_expert_intermediate_size", ("moe.shared.ffn_hidden_size",), default=512),
    ),
    constants={**gdn.CONSTANTS, "moe.shared.gated": True},
    rules=gdn.with_prediction((*gdn.RULES, _INPUT, *gdn.EXPERTS)),
    copies=dense.COPIES,
)
