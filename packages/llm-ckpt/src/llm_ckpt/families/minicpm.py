"""MiniCPM 1B/2B and MoE-8x2B (`minicpm`, the authors' modeling_minicpm.py): Llama with muP.

Experts carry Mixtral's names. The first config.json files have no model_type, only
`architectures`; embeddings are tied unless a config.json says otherwise.
"""

from llm_ckpt.families import dense, moe, remote
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Derived, Field, Fixed, UniformLayers
from llm_ckpt.families.mup import Mup

FAMILY = Family(
    name="minicpm",
    architecture="MiniCPMForCausalLM",
    fields=(
        *dense.sizes(
            Field("intermediate_size", ("mlp.ffn_hidden_size", "moe.ffn_hidden_size")),
            Field(
                "hidden_act",
                ("mlp.activation", "moe.activation"),
                default="silu",
                choices=dense.ACTIVATIONS,
            ),
            Field("tie_word_embeddings", ("tie_embeddings",), default=True),
            Fixed("attention_bias", (False,)),
        ),
        UniformLayers(),
        Derived(
            "layers.feed_forward", lambda config: "moe" if config.get("num_experts") else "dense"
        ),
        Field("num_experts", ("moe.experts",), default=None),
        Field("num_experts_per_tok", ("moe.top_k",), default=2),
        dense.kv_heads(),
        dense.DIVIDED_HEAD_DIM,
        remote.LegacyRope(),
        Mup(scale_emb=1.0, scale_depth=1.0, dim_model_base=1),
        Fixed("pretraining_tp", (1, None)),
        remote.RUNTIME,
    ),
    constants=moe.CONSTANTS,
    rules=(
        *dense.PLAIN_RULES,
        *moe.router_rules(),
        *moe.expert_rules(gate="w1", up="w3", down="w2"),
    ),
    copies=dense.COPIES,
    buffers=remote.BUFFERS,
)
