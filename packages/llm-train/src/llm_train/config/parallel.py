"""How the model is split over ranks."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, NonNegativeInt, field_validator

from llm_train.config.section import Count, Section


class ParallelConfig(Section):
    """How the model is split; data parallel takes the ranks that are left."""

    tp: Count = Field(default=1, description="tensor parallel size, in ranks")
    pp: Count = Field(default=1, description="pipeline stages")
    vpp: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="model chunks per stage (interleaved schedule); null = off"
    )
    layers_per_stage: tuple[NonNegativeInt, ...] | None = Field(
        default=None,
        description="layers of each stage (may be 0, noops included); with vpp pp * vpp numbers, "
        "chunk 0 of every stage first, then chunk 1 of every stage; null = as many in each",
    )
    noop_layers: tuple[NonNegativeInt, ...] = Field(
        default=(),
        description="places of empty layers, counted from 0 among all layers with the empty ones; "
        "they make stages even or leave room beside the embedding and the loss",
    )
    ep: Count = Field(default=1, description="expert parallel size, in ranks")
    etp: Count = Field(default=1, description="tensor parallel size inside an expert, in ranks")
    sequence_parallel: bool = Field(
        default=True, description="shard norms and dropout along the sequence; used when tp > 1"
    )
    overlap_grad_reduce: bool = Field(
        default=False, description="reduce gradients while backward is running"
    )
    overlap_param_gather: bool = Field(
        default=False, description="gather updated weights while forward is running"
    )

    @field_validator("noop_layers")
    @classmethod
    def _rises(cls, places: tuple[int, ...]) -> tuple[int, ...]:
        for one, two in pairwise(places):
            if one >= two:
                raise ValueError(f"noop_layers want rising places: {one} stands before {two}")
        return places
