"""Grok-1 as hpcai-tech published it for transformers (`grok-1`, modeling_grok1.py).

Scores are q·k · attn_output_multiplier, capped by max_attn_value; the two experts keep their
softmax weights. GELU is the exact one, as in that code (xAI's JAX has the tanh form).
"""

from llm_ckpt.families import dense, moe, remote
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.params import EMBEDDING, FINAL_NORM, LAYER, OUTPUT
from llm_ckpt.rules import Qkv, Same

HF = dense.HF
_NORMS = {
    "input_layernorm": "pre_attn_norm",
    "post_self_attn_layernorm": "post_attn_norm",
    "pre_mlp_layernorm": "pre_moe_norm",
    "post_mlp_layernorm": "post_moe_norm",
}

FAMILY = Family(
    name="grok-1",
    architecture="Grok1ModelForCausalLM",
    fields=(
        *dense.sizes(
            Field("intermediate_size", ("moe.ffn_hidden_size",)),
            Field("rms_norm_eps", ("norm.eps",), default=1e-5, kind=float),
            Field("tie_word_embeddings", ("tie_embeddings",), default=True),
            without=("attention_bias", "hidden_act"),
        ),
        UniformLayers(),
        dense.kv_heads(),
        dense.DIVIDED_HEAD_DIM,
        Field("num_experts", ("moe.experts",)),
        Field("num_experts_per_tok", ("moe.top_k",), default=2),
        Field("attn_output_multiplier", ("attention.scale",), default=1.0, kind=float),
        Field("max_attn_value", ("attention.softcap",), default=1.0, kind=float),
        Field("embedding_multiplier_scale", ("scalars.embedding",), default=1.0, kind=float),
        Field("output_multiplier_scale", ("scalars.logits",), default=1.0, kind=float),
        remote.PlainRope(),
        moe.TRAINING,
        remote.RUNTIME,
    ),
    constants={
        **moe.CONSTANTS,
        "norm.placement": "sandwich",
        "moe.activation": "gelu",
        "moe.router.normalize": False,
        "moe.router.pre_softmax": True,
    },
    rules=(
        Same(EMBEDDING, "model.embed_tokens.weight"),
        Same(FINAL_NORM, "model.norm.scale"),
        Same(OUTPUT, "lm_head.weight"),
        *(Same(LAYER + f"{ours}.weight", HF + f"{hf}.scale") for ours, hf in _NORMS.items()),
        Qkv(
            LAYER + "self_attention.linear_qkv.weight",
            q=HF + "attn.q_proj.weight",
            k=HF + "attn.k_proj.weight",
            v=HF + "attn.v_proj.weight",
        ),
        Same(LAYER + "self_attention.linear_proj.weight", HF + "attn.o_proj.weight"),
        *moe.router_rules("moe_block.gate.weight"),
        *moe.expert_rules("moe_block.experts.{e}.", gate="linear", up="linear_v", down="linear_1"),
    ),
    copies=dense.COPIES,
)
