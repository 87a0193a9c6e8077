"""AFM-4.5B (transformers' `arcee`): Llama with relu² and no gate."""

from llm_ckpt.families import dense
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="arcee",
    architecture="ArceeForCausalLM",
    fields=(
        *dense.sizes(
            Field("rms_norm_eps", ("norm.eps",), default=1e-5, kind=float),
            Field("hidden_act", ("mlp.activation",), default="relu2", choices=dense.ACTIVATIONS),
        ),
        Field("mlp_bias", ("mlp.bias",), default=False),
        UniformLayers(),
        RopeFields(),
        dense.kv_heads(),
        dense.head_dim(),
    ),
    constants={**dense.CONSTANTS, "mlp.gated": False},
    rules=(
        *dense.ENDS,
        *dense.NORMS,
        *dense.ATTENTION_WEIGHTS,
        *dense.ATTENTION_BIAS,
        *dense.plain_mlp("weight", "bias"),
    ),
    copies=dense.COPIES,
)
