"""DeepSeek-V3.2 (transformers' `deepseek_v32`): V3 whose queries see the keys an indexer chose."""

from llm_ckpt.families import dense, latent, moe
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import UniformLayers
from llm_ckpt.families.mtp import NUMBERED_COPIES

FAMILY = Family(
    name="deepseek_v32",
    architecture="DeepseekV32ForCausalLM",
    fields=(
        *latent.SIZES,
        UniformLayers(),
        latent.LatentRope(),
        *latent.EXPERTS,
        moe.layer_types(default_dense=3),
        latent.EveryLayerIndexed(),
        *latent.SIGMOID,
        *latent.INDEXER_FIELDS,
        moe.PredictionLayers(),
    ),
    # Attention turns channel pairs (0, 1), the indexer (0, D/2): transformers and DeepSeek agree.
    constants={
        **latent.SIGMOID_CONSTANTS,
        "mla.indexer.rope_interleaved": False,
        "mla.indexer.borrowing_layers": [],
    },
    rules=latent.with_prediction(latent.INDEXED_RULES),
    copies=dense.COPIES,
    duplicates=NUMBERED_COPIES,
)
