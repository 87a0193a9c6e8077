"""Sections of tiny arch.json documents; a test says only what it changes in them."""

from typing import Any

LATENT = {
    "heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "scale": None,
    "norm_eps": 1e-6,
    "down_bias": False,
    "out_bias": False,
    "q_scale": 1.0,
    "kv_scale": 1.0,
    "indexer": None,
}
ROUTER = {
    "score": "softmax",
    "pre_softmax": False,
    "normalize": True,
    "scaling": 1.0,
    "bias": False,
    "groups": None,
    "top_groups": None,
    "group_score": "max",
    "linear_bias": False,
    "zero_experts": 0,
}
# As DeepSeek-V3's.
SIGMOID_ROUTER = {
    **ROUTER,
    "score": "sigmoid",
    "pre_softmax": True,
    "scaling": 2.5,
    "bias": True,
    "group_score": "top2",
}
# As LongCat-Flash's: choices beside the experts that return the token.
ZERO_ROUTER = {
    **ROUTER,
    "pre_softmax": True,
    "normalize": False,
    "bias": True,
    "zero_experts": 2,
}
EXPERTS = {
    "experts": 4,
    "top_k": 2,
    "ffn_hidden_size": 16,
    "activation": "silu",
    "gated": True,
    "bias": False,
    "clamp": None,
    "glu_offset": 0.0,
    "shared": None,
    "router": ROUTER,
}


def latent(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """`document` with latent attention in all its layers."""
    layers = [{**run, "mixer": "mla"} for run in document["layers"]]
    return {**document, "attention": None, "mla": {**LATENT, **changes}, "layers": layers}
