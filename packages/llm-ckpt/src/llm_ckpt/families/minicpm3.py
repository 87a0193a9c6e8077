"""MiniCPM3 (transformers' `minicpm3`): latent attention, dense, with muP's multipliers."""

from llm_ckpt.families import dense, latent
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, UniformLayers
from llm_ckpt.families.mup import Mup

FAMILY = Family(
    name="minicpm3",
    architecture="MiniCPM3ForCausalLM",
    fields=(
        *latent.SIZES,
        Field("tie_word_embeddings", ("tie_embeddings",), default=True),
        UniformLayers(),
        latent.LatentRope(interleaved=False),
        Mup(scale_emb=12.0, scale_depth=1.4, dim_model_base=256),
    ),
    constants=latent.CONSTANTS,
    rules=(*latent.RULES, *dense.MLP_BIAS),
    copies=dense.COPIES,
)
