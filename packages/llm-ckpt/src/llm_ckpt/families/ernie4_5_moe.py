"""ERNIE 4.5 21B-A3B and 300B-A47B (transformers' `ernie4_5_moe`): neighbouring pairs rotate."""

from collections.abc import Mapping
from itertools import pairwise

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, Ignored, Json, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.params import LAYER
from llm_ckpt.rules import Row


def _has_experts(config: Mapping[str, Json], count: int) -> list[bool]:
    start, interval = config.get("moe_layer_start_index", 1), config.get("moe_layer_interval", 1)
    end = config.get("moe_layer_end_index", -1)
    last = count - 1 if end == -1 else end
    return [(layer + 1) % interval == 0 and start <= layer <= last for layer in range(count)]


def _start_and_end(has_experts: list[bool]) -> dict[str, Json]:
    layers = [layer for layer, has in enumerate(has_experts) if has]
    steps = {b - a for a, b in pairwise(layers)} or {1}
    return {
        "moe_layer_start_index": layers[0],
        "moe_layer_end_index": layers[-1],
        "moe_layer_interval": min(steps),
    }


FAMILY = Family(
    name="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    fields=(
        *moe.sizes(
            Field("tie_word_embeddings", ("tie_embeddings",), default=True),
            Field("moe_k", ("moe.top_k",), default=6, aliases=("num_experts_per_tok",)),
            eps=1e-5,
            without=("attention_bias",),
        ),
        UniformLayers(),
        RopeFields(default_base=500000.0, interleaved=True),
        dense.head_dim(),
        moe.DENSE_WIDTH,
        moe.EXPERT_WIDTH,
        moe.ExpertLayers(
            ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),
            _has_experts,
            _start_and_end,
        ),
        moe.SharedExperts("moe_num_shared_experts", default=2),
        Field("moe_num_experts", ("moe.experts",), default=64, aliases=("num_experts",)),
        Fixed("use_bias", (False,)),
        Fixed("moe_norm_min", (1e-12,)),
        Fixed("moe_gate", ("topk",)),
        Fixed("moe_use_aux_free", (True,)),
        Ignored(("moe_capacity", "moe_aux_loss_lambda", "num_nextn_predict_layers")),
    ),
    # The bias is added to softmax scores, so these are made before the choice.
    constants={**moe.CONSTANTS, "moe.router.bias": True, "moe.router.pre_softmax": True},
    rules=(
        *moe.TRUNK,
        *dense.MLP_WEIGHTS,
        *moe.router_rules(),
        Row(
            LAYER + "mlp.router.expert_bias",
            dense.HF + "mlp.moe_statics.e_score_correction_bias",
        ),
        *moe.expert_rules(),
        *moe.shared_rules(),
    ),
    copies=dense.COPIES,
    # A prediction layer without experts, unlike the last of the decoder's; transformers skips it.
    left_out=(r"model\.mtp_.+",),
)
