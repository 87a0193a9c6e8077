"""StarCoder and SantaCoder (transformers' `gpt_bigcode`): GPT-2 with one key/value head."""

from llm_ckpt.families import gpt2
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, Ignored
from llm_ckpt.params import LAYER
from llm_ckpt.rules import PackedQkv, Same

FAMILY = Family(
    name="gpt_bigcode",
    architecture="GPTBigCodeForCausalLM",
    fields=(
        *gpt2.FIELDS,
        Field("n_head", ("attention.heads",)),
        Fixed("multi_query", (True,)),
        Fixed("num_key_value_heads", (1,), is_written=False),
        Ignored(
            (
                *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"),
                *("attention_softmax_type", "inference_runner", "validate_runner_input"),
                *("pre_allocate_kv_cache", "max_sequence_length", "max_batch_size"),
            )
        ),
    ),
    constants={**gpt2.CONSTANTS, "attention.query_groups": 1},
    rules=(
        *gpt2.TRUNK,
        *(
            PackedQkv(LAYER + f"self_attention.linear_qkv.{kind}", gpt2.HF + f"attn.c_attn.{kind}")
            for kind in ("weight", "bias")
        ),
        *(
            Same(LAYER + f"{ours}.{kind}", gpt2.HF + f"{hf}.{kind}")
            for kind in ("weight", "bias")
            for ours, hf in gpt2.LINEARS
        ),
    ),
    copies={"lm_head.weight": "transformer.wte.weight"},
    prefix="transformer.",
)
