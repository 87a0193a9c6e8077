"""GPT-2, and GPT-3's shape (transformers' `gpt2`): learned positions, layer norms, biases.

Linear layers are stored transposed (`Conv1D`), q, k and v in one.
"""

from collections.abc import Mapping

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Codec, Derived, Field, Fixed, Ignored, Json, UniformLayers
from llm_ckpt.params import EMBEDDING, LAYER, POSITIONS
from llm_ckpt.rules import PackedQkv, Rule, Same, Transposed

HF = "transformer.h.{i}."


def inner(config: Mapping[str, Json]) -> Json:
    """Four times the hidden size."""
    return 4 * config["n_embd"]


FIELDS: tuple[Codec, ...] = (
    Field("vocab_size", ("vocab_size",)),
    Field("n_embd", ("hidden_size",)),
    Field("n_inner", ("mlp.ffn_hidden_size",), default=inner),
    Derived("attention.head_dim", lambda config: config["n_embd"] // config["n_head"]),
    UniformLayers("n_layer"),
    Field("n_positions", ("max_position_embeddings",), default=1024, aliases=("n_ctx",)),
    Field("layer_norm_epsilon", ("norm.eps",), default=1e-5, kind=float),
    Field(
        "activation_function",
        ("mlp.activation",),
        default="gelu_tanh",
        choices=dense.ACTIVATIONS,
    ),
    Field("tie_word_embeddings", ("tie_embeddings",), default=True),
    Fixed("scale_attn_weights", (True,)),
    Fixed("add_cross_attention", (False,)),
    # Heads of classifiers, dropout of training, and the order in which a kernel works.
    Ignored(
        (
            *("summary_type", "summary_use_proj", "summary_activation"),
            *("summary_proj_to_labels", "summary_first_dropout"),
            *("resid_pdrop", "embd_pdrop", "attn_pdrop", "reorder_and_upcast_attn"),
        )
    ),
)
CONSTANTS: Mapping[str, Json] = {
    **dense.CONSTANTS,
    "norm.kind": "layer",
    "position.kind": "learned",
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.gated": False,
    "mlp.bias": True,
}


def stored(rule: Rule, kind: str) -> Rule:
    """A linear layer's weight is stored transposed, its bias is not."""
    return Transposed(rule) if kind == "weight" else rule


# All but the linear layers.
TRUNK: tuple[Rule, ...] = (
    Same(EMBEDDING, "transformer.wte.weight"),
    Same(POSITIONS, "transformer.wpe.weight"),
    *(
        Same(f"{ours}.{kind}", f"{hf}.{kind}")
        for kind in ("weight", "bias")
        for ours, hf in (
            (LAYER + "input_layernorm", HF + "ln_1"),
            (LAYER + "pre_mlp_layernorm", HF + "ln_2"),
            ("decoder.final_layernorm", "transformer.ln_f"),
        )
    ),
    dense.HEAD,
)
LINEARS = (
    ("self_attention.linear_proj", "attn.c_proj"),
    ("mlp.linear_fc1", "mlp.c_fc"),
    ("mlp.linear_fc2", "mlp.c_proj"),
)

FAMILY = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    fields=(
        *FIELDS,
        Field("n_head", ("attention.heads", "attention.query_groups")),
        Fixed("scale_attn_by_inverse_layer_idx", (False,)),
    ),
    constants=CONSTANTS,
    rules=(
        *TRUNK,
        *(
            stored(
                PackedQkv(LAYER + f"self_attention.linear_qkv.{kind}", HF + f"attn.c_attn.{kind}"),
                kind,
            )
            for kind in ("weight", "bias")
        ),
        *(
            stored(Same(LAYER + f"{ours}.{kind}", HF + f"{hf}.{kind}"), kind)
            for kind in ("weight", "bias")
            for ours, hf in LINEARS
        ),
    ),
    copies={"lm_head.weight": "transformer.wte.weight"},
    # The causal mask, as old transformers releases stored it.
    buffers=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
    prefix="transformer.",
)
