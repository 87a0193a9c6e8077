"""Phi-3, Phi-3.5, Phi-4 and their minis (transformers' `phi3`): packed projections, LongRoPE."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, Ignored, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import Window
from llm_ckpt.params import LAYER
from llm_ckpt.rules import PackedQkv

FAMILY = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    fields=(
        *dense.sizes(
            Field("rms_norm_eps", ("norm.eps",), default=1e-5, kind=float),
            without=("attention_bias",),
        ),
        UniformLayers(),
        Window(),
        RopeFields(
            fraction=1.0,
            kinds={"su": "longrope", "yarn": "longrope"},
            default_original=4096,
        ),
        dense.kv_heads(),
        dense.DIVIDED_HEAD_DIM,
        *(
            Fixed(key, (value,), is_written=False)
            for key, value in (
                ("attention_bias", False),
                ("mlp_bias", False),
                ("lm_head_bias", False),
                ("full_attn_mod", 1),
                ("interpolate_factor", 1),
            )
        ),
        Ignored(("resid_pdrop", "embd_pdrop")),
    ),
    constants=dense.CONSTANTS,
    rules=(
        *dense.ENDS,
        *dense.NORMS,
        PackedQkv(
            LAYER + "self_attention.linear_qkv.weight",
            dense.HF + "self_attn.qkv_proj.weight",
        ),
        dense.proj("weight"),
        *dense.GATE_UP,
    ),
    copies=dense.COPIES,
)
