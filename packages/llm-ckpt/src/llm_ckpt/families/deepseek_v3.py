"""DeepSeek-V3 and R1 (transformers' `deepseek_v3`), and Kimi-K2, the same architecture."""

from dataclasses import replace

from llm_ckpt.families import dense, latent, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.mtp import NUMBERED_COPIES

FAMILY = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    fields=(
        *latent.SIZES,
        UniformLayers(),
        latent.LatentRope(),
        Field("rope_interleave", ("position.interleaved",), default=True),
        *latent.EXPERTS,
        moe.first_dense(default=3),
        *latent.SIGMOID,
        moe.PredictionLayers(),
    ),
    constants=latent.SIGMOID_CONSTANTS,
    rules=latent.with_prediction(latent.SIGMOID_RULES),
    copies=dense.COPIES,
    duplicates=NUMBERED_COPIES,
)
# Kimi-K2's config.json keeps the class name of the architecture it is.
KIMI_K2 = replace(FAMILY, name="kimi_k2")
