"""dots.llm1 (transformers' `dots1`)."""

from collections.abc import Mapping

from llm_ckpt.families import dense, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Fixed, Ignored, Json, UniformLayers
from llm_ckpt.families.rope import RopeFields
from llm_ckpt.families.windows import LayerTypes


def _last_slide(config: Mapping[str, Json], count: int) -> list[str]:
    """Layers from `max_window_layers` on slide, when there is a window."""
    has_window = config.get("sliding_window", 4096) is not None
    first = config.get("max_window_layers", 62) if has_window else count
    return ["full_attention" if layer < first else "sliding_attention" for layer in range(count)]


FAMILY = Family(
    name="dots1",
    architecture="Dots1ForCausalLM",
    fields=(
        *moe.sizes(),
        UniformLayers(),
        RopeFields(),
        LayerTypes(_last_slide),
        Ignored(("max_window_layers", "ep_size", "pretraining_tp")),
        Fixed("use_sliding_window", (False,), is_written=False),
        Fixed("num_nextn_predict_layers", (0,), is_written=False),
        dense.head_dim(),
        moe.DENSE_WIDTH,
        moe.EXPERT_WIDTH,
        moe.first_dense(),
        moe.LAYER_FREQUENCY,
        *moe.sigmoid_fields(normalize=False),
        moe.SharedExperts(),
        Field("n_routed_experts", ("moe.experts",), aliases=("num_local_experts",)),
    ),
    constants={**moe.CONSTANTS, **moe.SIGMOID, "attention.qk_norm": "head"},
    rules=(
        *moe.TRUNK,
        *dense.QK_NORMS,
        *dense.ATTENTION_BIAS,
        *dense.MLP_WEIGHTS,
        *moe.router_rules(bias="mlp.gate.e_score_correction_bias"),
        *moe.expert_rules(),
        *moe.shared_rules(),
    ),
    copies=dense.COPIES,
)
