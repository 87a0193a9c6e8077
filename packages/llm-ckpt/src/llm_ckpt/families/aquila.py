"""Aquila and Aquila2 (`aquila`, the authors' modeling_aquila.py): Llama; the 34B has groups."""

from llm_ckpt.families import dense, remote
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Fixed, UniformLayers

FAMILY = Family(
    name="aquila",
    architecture="AquilaForCausalLM",
    fields=(
        *dense.sizes(without=("attention_bias",)),
        UniformLayers(),
        dense.kv_heads(),
        dense.DIVIDED_HEAD_DIM,
        remote.LegacyRope(),
        Fixed("pretraining_tp", (1, None)),
        remote.RUNTIME,
    ),
    constants=dense.CONSTANTS,
    rules=dense.PLAIN_RULES,
    copies=dense.COPIES,
    buffers=remote.BUFFERS,
)
