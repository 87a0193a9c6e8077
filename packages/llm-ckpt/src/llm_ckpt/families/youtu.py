"""Youtu-LLM (transformers' `youtu`): latent attention, dense."""

from llm_ckpt.families import dense, latent
from llm_ckpt.families.family import Family
from llm_ckpt.families.fields import Field, Ignored, UniformLayers

FAMILY = Family(
    name="youtu",
    architecture="YoutuForCausalLM",
    fields=(
        *latent.SIZES,
        Field("tie_word_embeddings", ("tie_embeddings",), default=True),
        UniformLayers(),
        latent.LatentRope(),
        Field("rope_interleave", ("position.interleaved",), default=True),
        # How the embedding is initialised.
        Ignored(("embedding_initializer_range",)),
    ),
    constants=latent.CONSTANTS,
    rules=latent.RULES,
    copies=dense.COPIES,
)
