"""BLOOM (transformers' `bloom`): ALiBi, a norm after the embedding, layer norms, biases.

Its packed rows are q, k, v of each head in turn, which is how megatron-core groups them.
"""

from collections.abc import Mapping

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Derived, Field, Fixed, Ignored, Json, UniformLayers
from llm_ckpt.params import EMBEDDING, LAYER
from llm_ckpt.rules import Same

HF = "transformer.h.{i}."
# Parts of a layer: megatron-core's name, Hugging Face's.
PARTS = (
    ("input_layernorm", "input_layernorm"),
    ("self_attention.linear_qkv", "self_attention.query_key_value"),
    ("self_attention.linear_proj", "self_attention.dense"),
    ("pre_mlp_layernorm", "post_attention_layernorm"),
    ("mlp.linear_fc1", "mlp.dense_h_to_4h"),
    ("mlp.linear_fc2", "mlp.dense_4h_to_h"),
)
NORMS = (
    ("embedding.norm", "transformer.word_embeddings_layernorm"),
    ("decoder.final_layernorm", "transformer.ln_f"),
)


def hidden(config: Mapping[str, Json]) -> int:
    """The hidden size under either name."""
    return config.get("hidden_size") or config["n_embed"]


def head_dim(config: Mapping[str, Json]) -> int:
    """The hidden size shared out to the heads."""
    return hidden(config) // (config.get("n_head") or config["num_attention_heads"])


FAMILY = Family(
    name="bloom",
    architecture="BloomForCausalLM",
    fields=(
        Field("vocab_size", ("vocab_size",)),
        Field("hidden_size", ("hidden_size",), aliases=("n_embed",)),
        Derived("mlp.ffn_hidden_size", lambda config: 4 * hidden(config)),
        Field(
            "n_head",
            ("attention.heads", "attention.query_groups"),
            aliases=("num_attention_heads",),
        ),
        Derived("attention.head_dim", head_dim),
        UniformLayers("n_layer", ("num_hidden_layers",)),
        # ALiBi has no limit; the length that the model was trained with.
        Field("seq_length", ("max_position_embeddings",), default=2048),
        Field("layer_norm_epsilon", ("norm.eps",), default=1e-5, kind=float),
        Field("tie_word_embeddings", ("tie_embeddings",), default=True),
        Fixed("apply_residual_connection_post_layernorm", (False,)),
        Fixed("n_inner", (None,), is_written=False),
        Fixed("skip_bias_add", (True,), is_written=False),
        Fixed("skip_bias_add_qkv", (False,), is_written=False),
        # How a kernel computes, and what training dropped.
        Ignored(
            (
                *("slow_but_exact", "pretraining_tp", "hidden_dropout", "offset_alibi"),
                *("attention_softmax_in_fp32", "masked_softmax_fusion", "bias_dropout_fusion"),
                "unk_token_id",
            )
        ),
    ),
    constants={
        **dense.CONSTANTS,
        "embedding_norm": True,
        "norm.kind": "layer",
        "position.kind": "alibi",
        "attention.qkv_bias": True,
        "attention.out_bias": True,
        "mlp.activation": "gelu_tanh",
        "mlp.gated": False,
        "mlp.bias": True,
    },
    rules=(
        Same(EMBEDDING, "transformer.word_embeddings.weight"),
        *(
            Same(f"{ours}.{kind}", f"{hf}.{kind}")
            for kind in ("weight", "bias")
            for ours, hf in (*((LAYER + ours, HF + hf) for ours, hf in PARTS), *NORMS)
        ),
        dense.HEAD,
    ),
    copies={"lm_head.weight": "transformer.word_embeddings.weight"},
    prefix="transformer.",
)
