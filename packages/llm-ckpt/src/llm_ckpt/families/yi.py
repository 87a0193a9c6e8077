"""Yi before it was published as Llama (`Yi`, the authors' modeling_yi.py): norms `ln1`, `ln2`."""

from llm_ckpt.families import dense, remote
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Fixed, UniformLayers
from llm_ckpt.families.rope import RopeFields

FAMILY = Family(
    name="Yi",
    architecture="YiForCausalLM",
    fields=(
        *dense.sizes(without=("attention_bias",)),
        UniformLayers(),
        dense.kv_heads(),
        dense.DIVIDED_HEAD_DIM,
        remote.LegacyRope(RopeFields(default_base=5000000.0)),
        Fixed("pretraining_tp", (1, None)),
        remote.RUNTIME,
    ),
    constants=dense.CONSTANTS,
    rules=(
        *dense.ENDS,
        *dense.norms(input_layernorm="ln1", pre_mlp_layernorm="ln2"),
        *dense.ATTENTION_WEIGHTS,
        *dense.MLP_WEIGHTS,
    ),
    copies=dense.COPIES,
    buffers=remote.BUFFERS,
)
