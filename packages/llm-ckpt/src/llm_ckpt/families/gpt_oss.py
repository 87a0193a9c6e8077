"""gpt-oss 20B and 120B (transformers' `gpt_oss`), unquantised or MXFP4."""

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, Ignored, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import LayerTypes, every_nth_full
from llm_ckpt.params import EXPERT, LAYER
from llm_ckpt.rules import InterleavedGlu, Same, Transposed

_EXPERT, _HF = LAYER + EXPERT, dense.HF + "mlp.experts."

FAMILY = Family(
    name="gpt_oss",
    architecture="GptOssForCausalLM",
    fields=(
        *moe.sizes(eps=1e-5, without=("hidden_act", "num_experts_per_tok", "attention_bias")),
        UniformLayers(),
        RopeFields(default_base=150000.0),
        LayerTypes(every_nth_full(2), default=128),
        dense.head_dim(64),
        Field("intermediate_size", ("moe.ffn_hidden_size",)),
        Field("num_local_experts", ("moe.experts",), default=128),
        Field("num_experts_per_tok", ("moe.top_k",), default=4, aliases=("experts_per_token",)),
        Field("attention_bias", ("attention.qkv_bias", "attention.out_bias"), default=True),
        # What config.json calls silu is x · sigmoid(swiglu_alpha · x).
        Field(
            "hidden_act", ("moe.activation",), default="quick_gelu", choices={"silu": "quick_gelu"}
        ),
        Fixed("swiglu_alpha", (1.702,)),
        Field("swiglu_limit", ("moe.clamp",), default=7.0, kind=float),
        # Repeats original_max_position_embeddings of the rotary keys.
        Ignored(("initial_context_length",)),
    ),
    constants={
        **moe.CONSTANTS,
        "attention.sinks": True,
        "moe.bias": True,
        "moe.glu_offset": 1.0,
        "moe.router.linear_bias": True,
    },
    rules=(
        *moe.TRUNK,
        *dense.ATTENTION_BIAS,
        Same(LAYER + "self_attention.core_attention.softmax_offset", dense.HF + "self_attn.sinks"),
        *(
            Same(LAYER + f"mlp.router.{kind}", dense.HF + f"mlp.router.{kind}")
            for kind in ("weight", "bias")
        ),
        Transposed(InterleavedGlu(_EXPERT + "linear_fc1.weight", _HF + "gate_up_proj[{e}]")),
        InterleavedGlu(_EXPERT + "linear_fc1.bias", _HF + "gate_up_proj_bias[{e}]"),
        Transposed(Same(_EXPERT + "linear_fc2.weight", _HF + "down_proj[{e}]")),
        Same(_EXPERT + "linear_fc2.bias", _HF + "down_proj_bias[{e}]"),
    ),
    copies=dense.COPIES,
)
