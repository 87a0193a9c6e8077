"""StarCoder2 (transformers' `starcoder2`): layer norms, biases, no gate."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, Ignored, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import Window

FAMILY = Family(
    name="starcoder2",
    architecture="Starcoder2ForCausalLM",
    fields=(
        *dense.sizes(
            Field("tie_word_embeddings", ("tie_embeddings",), default=True),
            Field(
                "hidden_act", ("mlp.activation",), default="gelu_tanh", choices=dense.ACTIVATIONS
            ),
            without=("attention_bias", "rms_norm_eps"),
        ),
        Field("norm_epsilon", ("norm.eps",), default=1e-5, kind=float),
        Field("use_bias", ("attention.qkv_bias", "attention.out_bias", "mlp.bias"), default=True),
        UniformLayers(),
        Window(),
        RopeFields(),
        dense.kv_heads(2),
        dense.head_dim(),
        Fixed("mlp_type", ("default",), is_written=False),
        Fixed("norm_type", ("layer_norm",), is_written=False),
        Ignored(("residual_dropout", "embedding_dropout")),
    ),
    constants={**dense.CONSTANTS, "norm.kind": "layer", "mlp.gated": False},
    rules=(
        *dense.ENDS,
        *dense.NORMS,
        *dense.NORM_BIASES,
        *dense.ATTENTION_WEIGHTS,
        *dense.ATTENTION_BIAS,
        *dense.plain_mlp("weight", "bias", up="c_fc", down="c_proj"),
    ),
    copies=dense.COPIES,
)
