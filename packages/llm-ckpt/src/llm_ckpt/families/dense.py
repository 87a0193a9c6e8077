"""Fields and rules that pre-norm, gated, rotary decoder families share (Llama's naming)."""

from collections.abc import Mapping

from llm_ckpt.families.fields import Codec, Default, Derived, Field, Json
from llm_ckpt.params import EMBEDDING, FINAL_NORM, LAYER, OUTPUT
from llm_ckpt.rules import Glu, Qkv, Rule, Same

HF = "model.layers.{i}."
# Names of transformers' ACT2FN; the first of those with one meaning is the one written.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}

# Facts of arch.json that no such family's config.json can say: neutral values, to be overridden
# one by one ({**CONSTANTS, "norm.kind": "layer"}) or by a field. A part that no layer has (`mlp`
# of a model of experts alone, `attention` of one with latent attention) becomes null by itself.
MODEL: Mapping[str, Json] = {
    "output_bias": False,
    "output_normalized": False,
    "embedding_norm": False,
    "norm.kind": "rms",
    "norm.zero_centered": False,
    "norm.placement": "pre",
    "mtp": None,
    "scalars.embedding": 1.0,
    "scalars.residual": 1.0,
    "scalars.logits": 1.0,
    "scalars.logit_softcap": None,
}
ATTENTION: Mapping[str, Json] = {
    "attention.qkv_bias": False,
    "attention.out_bias": False,
    "attention.qk_norm": "none",
    "attention.softcap": None,
    "attention.sinks": False,
    "attention.scale": None,
    "attention.output_gate": False,
    "attention.shared_kv": 1,
}
MLP: Mapping[str, Json] = {
    "mlp.gated": True,
    "mlp.bias": False,
    "mlp.clamp": None,
    "mlp.glu_offset": 0.0,
}
CONSTANTS: Mapping[str, Json] = {**MODEL, **ATTENTION, **MLP}

SIZES: tuple[Codec, ...] = (
    Field("vocab_size", ("vocab_size",)),
    Field("hidden_size", ("hidden_size",)),
    Field("intermediate_size", ("mlp.ffn_hidden_size",)),
    Field("num_attention_heads", ("attention.heads",)),
    Field("max_position_embeddings", ("max_position_embeddings",)),
    Field("rms_norm_eps", ("norm.eps",), default=1e-6, kind=float),
    Field("hidden_act", ("mlp.activation",), default="silu", choices=ACTIVATIONS),
    Field("tie_word_embeddings", ("tie_embeddings",), default=False),
    Field("attention_bias", ("attention.qkv_bias", "attention.out_bias"), default=False),
)


def sizes(*changed: Codec, without: tuple[str, ...] = ()) -> tuple[Codec, ...]:
    """SIZES with the codecs of `changed` in the place of those that share a key with them."""
    gone = {key for codec in changed for key in codec.keys} | set(without)
    return (*(codec for codec in SIZES if not gone & set(codec.keys)), *changed)


def all_heads(config: Mapping[str, Json]) -> Json:
    """As many key/value heads as query heads."""
    return config.get("num_attention_heads")


def divided(config: Mapping[str, Json]) -> Json:
    """The hidden size shared out to the heads."""
    return config["hidden_size"] // config["num_attention_heads"]


def kv_heads(default: Default = all_heads) -> Field:
    """`num_key_value_heads`; null says as many as query heads."""
    return Field("num_key_value_heads", ("attention.query_groups",), default, null=all_heads)


def head_dim(default: Default = divided, *, aliases: tuple[str, ...] = ()) -> Field:
    """`head_dim`; null says that the heads share the hidden size."""
    return Field("head_dim", ("attention.head_dim",), default, null=divided, aliases=aliases)


def root_of_hidden(config: Mapping[str, Json]) -> Json:
    """What Gemma multiplies embeddings with."""
    return float(config["hidden_size"] ** 0.5)


# For families without the key.
DIVIDED_HEAD_DIM = Derived("attention.head_dim", divided)


# RULES has biases of attention, as SIZES has its key; MLP_BIAS is for families with that key too.
HEAD: Rule = Same(OUTPUT, "lm_head.weight")
ENDS: tuple[Rule, ...] = (
    Same(EMBEDDING, "model.embed_tokens.weight"),
    Same(FINAL_NORM, "model.norm.weight"),
    HEAD,
)
NORMS: tuple[Rule, ...] = (
    Same(LAYER + "input_layernorm.weight", HF + "input_layernorm.weight"),
    Same(LAYER + "pre_mlp_layernorm.weight", HF + "post_attention_layernorm.weight"),
)


def qkv(kind: str) -> Rule:
    """The rule of query, key and value weights or biases."""
    return Qkv(
        LAYER + f"self_attention.linear_qkv.{kind}",
        q=HF + f"self_attn.q_proj.{kind}",
        k=HF + f"self_attn.k_proj.{kind}",
        v=HF + f"self_attn.v_proj.{kind}",
    )


def proj(kind: str) -> Rule:
    """The rule of attention's output weight or bias."""
    return Same(LAYER + f"self_attention.linear_proj.{kind}", HF + f"self_attn.o_proj.{kind}")


def norms(**names: str) -> tuple[Rule, ...]:
    """Rules of a layer's norms, megatron-core's name = Hugging Face's."""
    return tuple(Same(LAYER + f"{ours}.weight", HF + f"{hf}.weight") for ours, hf in names.items())


def mlp(kind: str) -> tuple[Rule, ...]:
    """The rules of a gated feed-forward's weights or biases."""
    return (
        Glu(
            LAYER + f"mlp.linear_fc1.{kind}",
            gate=HF + f"mlp.gate_proj.{kind}",
            up=HF + f"mlp.up_proj.{kind}",
        ),
        Same(LAYER + f"mlp.linear_fc2.{kind}", HF + f"mlp.down_proj.{kind}"),
    )


def plain_mlp(*kinds: str, up: str = "up_proj", down: str = "down_proj") -> tuple[Rule, ...]:
    """The rules of a feed-forward whose first linear is one tensor: ungated, or gate and up."""
    return tuple(
        Same(LAYER + f"mlp.{ours}.{kind}", HF + f"mlp.{hf}.{kind}")
        for kind in kinds
        for ours, hf in (("linear_fc1", up), ("linear_fc2", down))
    )


# Of families whose norms are layer norms.
NORM_BIASES: tuple[Rule, ...] = (
    Same(LAYER + "input_layernorm.bias", HF + "input_layernorm.bias"),
    Same(LAYER + "pre_mlp_layernorm.bias", HF + "post_attention_layernorm.bias"),
    Same("decoder.final_layernorm.bias", "model.norm.bias"),
)
# Norms only on the outputs of blocks, and norms on both sides, in the naming of OLMo 2 and Gemma 2.
POST_NORMS = norms(
    post_self_attn_layernorm="post_attention_layernorm",
    post_mlp_layernorm="post_feedforward_layernorm",
)
SANDWICH_NORMS = (
    *norms(input_layernorm="input_layernorm", pre_mlp_layernorm="pre_feedforward_layernorm"),
    *POST_NORMS,
)
GATE_UP: tuple[Rule, ...] = plain_mlp("weight", up="gate_up_proj")
ATTENTION_WEIGHTS: tuple[Rule, ...] = (qkv("weight"), proj("weight"))
ATTENTION_BIAS: tuple[Rule, ...] = (qkv("bias"), proj("bias"))
QK_NORMS: tuple[Rule, ...] = tuple(
    Same(
        LAYER + f"self_attention.{part}_layernorm.weight",
        HF + f"self_attn.{part}_norm.weight",
    )
    for part in ("q", "k")
)
MLP_WEIGHTS: tuple[Rule, ...] = mlp("weight")
MLP_BIAS: tuple[Rule, ...] = mlp("bias")
PLAIN_RULES: tuple[Rule, ...] = (*ENDS, *NORMS, *ATTENTION_WEIGHTS, *MLP_WEIGHTS)
RULES: tuple[Rule, ...] = (*PLAIN_RULES, *ATTENTION_BIAS)

# A tied model's folder may still hold the head; it must then equal the embedding.
COPIES = {"lm_head.weight": "model.embed_tokens.weight"}
