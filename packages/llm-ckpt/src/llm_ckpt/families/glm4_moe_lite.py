"""GLM-4.7-Flash (transformers' `glm4_moe_lite`): DeepSeek-V3's architecture."""

from llm_ckpt.families import dense, latent, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.mtp import NUMBERED_COPIES

FAMILY = Family(
    name="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    fields=(
        *latent.SIZES,
        UniformLayers(),
        latent.LatentRope(),
        Field("rope_interleave", ("position.interleaved",), default=True),
        *latent.EXPERTS,
        moe.layer_types(default_dense=1),
        *latent.SIGMOID,
        moe.PredictionLayers(),
    ),
    constants=latent.SIGMOID_CONSTANTS,
    rules=latent.with_prediction(latent.SIGMOID_RULES),
    copies=dense.COPIES,
    duplicates=NUMBERED_COPIES,
)
