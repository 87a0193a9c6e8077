"""Hunyuan 0.5B to 7B (transformers' `hunyuan_v1_dense`): q and k are normed after they rotate."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, Ignored, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.params import LAYER
from llm_ckpt.rules import Same

# Keys of the released configs, each with the one value that transformers computes with.
FIXED = tuple(
    Fixed(key, (value,), is_written=False)
    for key, value in (
        ("use_qk_norm", True),
        ("use_rotary_pos_emb", True),
        ("use_cla", False),
        ("mlp_bias", False),
        ("norm_type", "rms"),
        ("add_classification_head", False),
    )
)

FAMILY = Family(
    name="hunyuan_v1_dense",
    architecture="HunYuanDenseV1ForCausalLM",
    fields=(
        *dense.sizes(Field("rms_norm_eps", ("norm.eps",), default=1e-5, kind=float)),
        UniformLayers(),
        RopeFields(),
        dense.kv_heads(),
        dense.head_dim(aliases=("attention_head_dim",)),
        *FIXED,
        Ignored(("pretraining_tp", "eod_token_id", "mask_init_id", "org_vocab_size")),
    ),
    constants={**dense.CONSTANTS, "attention.qk_norm": "head_after_rope"},
    rules=(
        *dense.RULES,
        *(
            Same(
                LAYER + f"self_attention.{ours}_layernorm.weight",
                dense.HF + f"self_attn.{hf}_layernorm.weight",
            )
            for ours, hf in (("q", "query"), ("k", "key"))
        ),
    ),
    copies=dense.COPIES,
)
