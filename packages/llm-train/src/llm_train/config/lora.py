"""Low-rank adapters: which linears have them, and of what kind."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from llm_train.config.section import Count, Fraction, Positive, Section


class Quantize(StrEnum):
    """What frozen weights are kept as."""

    NF4 = "nf4"


class LoraConfig(Section):
    """Adapters (LoRA, arXiv 2106.09685) that train while the model itself stays as it is."""

    target_modules: tuple[str, ...] = Field(
        min_length=1,
        description="linears that are adapted, at least one: last parts of names (linear_qkv, "
        "linear_proj, linear_fc1, linear_fc2, word_embeddings, …) or globs over whole names "
        "(decoder.layers.[01].*.linear_qkv, *.experts.linear_fc1)",
    )
    modules_to_save: tuple[str, ...] = Field(
        default=(),
        description="modules that train whole beside the adapters, as peft's modules_to_save: last "
        "parts of names (word_embeddings, output_layer, final_layernorm, router, …) or globs over "
        "whole names; not experts",
    )
    rank: Count = Field(default=16, description="rows of A, columns of B")
    alpha: Positive = Field(default=32.0, description="B·A is multiplied by alpha / rank")
    dropout: Fraction = Field(
        default=0.0, description="share of an adapter's inputs that a step drops"
    )
    rslora: bool = Field(
        default=False, description="alpha / √rank instead of alpha / rank (arXiv 2312.03732)"
    )
    dora: bool = Field(
        default=False, description="learn the length of each output row too (arXiv 2402.09353)"
    )
    load: Path | None = Field(
        default=None,
        description="PEFT folder that the adapters begin as, peft's own or another run's; rank, "
        "alpha, rslora, dora, target_modules and modules_to_save are to be the folder's; null = "
        "random A, zero B",
    )
    overlap: bool = Field(
        default=False,
        description="compute the adapters of cut linears while what these exchange between "
        "tensor-parallel ranks is under way, in the order of fewest operations (MindSpeed-LLM's "
        "--lora-fusion); results are those of plain adapters",
    )
    fused_mlp: bool = Field(
        default=False,
        description="compute dense feed-forwards and their adapters as one, overlapped too, "
        "keeping neither activation nor product for backward; needs linear_fc1 and linear_fc2",
    )
    quantize: Quantize | None = Field(
        default=None,
        description="keep the frozen weights of the layers' linears in nf4 (QLoRA, arXiv "
        "2305.14314); null = in train.precision",
    )
    double_quantize: bool = Field(
        default=True, description="quantise the scales of nf4 too: 4.13 bits a weight, not 4.5"
    )
    base: Path | None = Field(
        default=None,
        description="what adapter_config.json calls the base model; null = model.load",
    )

    @property
    def scaling(self) -> float:
        """What B·A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
