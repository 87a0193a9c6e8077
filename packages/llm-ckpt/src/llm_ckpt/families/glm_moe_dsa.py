"""GLM-5 (transformers' `glm_moe_dsa`): DeepSeek-V3.2's architecture, the indexer interleaved."""

from llm_ckpt.families import dense, latent, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Fixed, UniformLayers
from llm_ckpt.families.mtp import NUMBERED_COPIES

FAMILY = Family(
    name="glm_moe_dsa",
    architecture="GlmMoeDsaForCausalLM",
    fields=(
        *latent.SIZES,
        UniformLayers(),
        latent.LatentRope(),
        Fixed("rope_interleave", (True,)),
        Fixed("indexer_rope_interleave", (True,)),
        *latent.EXPERTS,
        moe.layer_types(default_dense=3),
        latent.EveryLayerIndexed(),
        latent.IndexedLayers(),
        *latent.SIGMOID,
        *latent.INDEXER_FIELDS,
        moe.PredictionLayers(),
    ),
    constants={**latent.SIGMOID_CONSTANTS, "mla.indexer.rope_interleaved": True},
    rules=latent.with_prediction(latent.INDEXED_RULES),
    copies=dense.COPIES,
    duplicates=NUMBERED_COPIES,
)
