"""OLMo 3 (transformers' `olmo3`): OLMo 2, three layers of four in a window."""

from llm_ckpt.families import dense, olmo2
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import LayerTypes, every_nth_full

FAMILY = Family(
    name="olmo3",
    architecture="Olmo3ForCausalLM",
    fields=(
        *dense.sizes(Field("rms_norm_eps", ("norm.eps",), default=1e-5, kind=float)),
        UniformLayers(),
        LayerTypes(every_nth_full(4)),
        RopeFields(default_base=500000.0),
        dense.kv_heads(),
        dense.head_dim(),
    ),
    constants={**dense.CONSTANTS, "norm.placement": "post", "attention.qk_norm": "full"},
    rules=olmo2.FAMILY.rules,
    copies=dense.COPIES,
)
