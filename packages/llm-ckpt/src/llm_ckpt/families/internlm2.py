"""InternLM2 and 2.5 (`internlm2`, the authors' modeling_internlm2.py).

The rows of `wqkv` are [q … q k v] for each query group, as megatron-core's are.
"""

from llm_ckpt.families import dense, remote
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, UniformLayers
from llm_ckpt.params import EMBEDDING, FINAL_NORM, LAYER, OUTPUT
from llm_ckpt.rules import Glu, Same

HF = dense.HF

FAMILY = Family(
    name="internlm2",
    architecture="InternLM2ForCausalLM",
    fields=(
        *dense.sizes(without=("attention_bias",)),
        Field("bias", ("attention.qkv_bias", "attention.out_bias"), default=True),
        UniformLayers(),
        dense.kv_heads(),
        dense.DIVIDED_HEAD_DIM,
        remote.LegacyRope(),
        Fixed("pretraining_tp", (1, None)),
        remote.RUNTIME,
    ),
    constants=dense.CONSTANTS,
    rules=(
        Same(EMBEDDING, "model.tok_embeddings.weight"),
        Same(FINAL_NORM, "model.norm.weight"),
        Same(OUTPUT, "output.weight"),
        *dense.norms(input_layernorm="attention_norm", pre_mlp_layernorm="ffn_norm"),
        *(
            Same(LAYER + f"self_attention.{ours}.{kind}", HF + f"attention.{theirs}.{kind}")
            for ours, theirs in (("linear_qkv", "wqkv"), ("linear_proj", "wo"))
            for kind in ("weight", "bias")
        ),
        Glu(
            LAYER + "mlp.linear_fc1.weight",
            gate=HF + "feed_forward.w1.weight",
            up=HF + "feed_forward.w3.weight",
        ),
        Same(LAYER + "mlp.linear_fc2.weight", HF + "feed_forward.w2.weight"),
    ),
    copies={"output.weight": "model.tok_embeddings.weight"},
)
