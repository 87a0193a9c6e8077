"""PLM-1.8B (`plm`, the authors' modeling_plm.py; their transformers fork's configuration_plm.py).

Latent attention without a query latent, an ungated feed-forward with squared ReLU.
"""

from llm_ckpt.families import dense, latent, remote
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.params import LAYER
from llm_ckpt.rules import Same

_ABSENT = (".bias", "q_layernorm.weight", "linear_q_down_proj.weight", "linear_q_up_proj.weight")

FAMILY = Family(
    name="plm",
    architecture="PLMForCausalLM",
    fields=(
        *(
            codec
            for codec in latent.SIZES
            if not {"hidden_act", "q_lora_rank", "attention_bias", "mlp_bias"} & set(codec.keys)
        ),
        Field("hidden_act", ("mlp.activation",), default="relu2", choices=dense.ACTIVATIONS),
        Fixed("q_lora_rank", (None,)),
        Fixed("attention_bias", (False,)),
        Fixed("mlp_bias", (False,)),
        Fixed("rope_interleave", (True,)),
        UniformLayers(),
        remote.LegacyRope(latent.LatentRope(rope=RopeFields(default_base=100000.0))),
        remote.RUNTIME,
    ),
    constants={
        **latent.CONSTANTS,
        "mlp.gated": False,
        "mla.q_lora_rank": None,
        "mla.down_bias": False,
        "mla.out_bias": False,
    },
    rules=(
        *dense.ENDS,
        *dense.NORMS,
        *(rule for rule in latent.attention() if not rule.mcore.endswith(_ABSENT)),
        Same(LAYER + "mlp.linear_fc1.weight", dense.HF + "mlp.up_proj.weight"),
        Same(LAYER + "mlp.linear_fc2.weight", dense.HF + "mlp.down_proj.weight"),
    ),
    copies=dense.COPIES,
)
