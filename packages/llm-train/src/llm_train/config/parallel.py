"""How the model is split over ranks."""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from llm_train.config.section import Count, Section


class ContextParallel(StrEnum):
    """How the ranks that share a sequence attend to each other's tokens."""

    RING = "ring"
    ULYSSES = "ulysses"
    HYBRID = "hybrid"
    ALLGATHER = "allgather"


class ParallelConfig(Section):
    """How the model is split; data parallel takes the ranks that are left."""

    tp: Count = Field(default=1, description="tensor parallel size, in ranks")
    cp: Count = Field(default=1, description="context parallel size: ranks that share a sequence")
    cp_kind: ContextParallel = Field(
        default=ContextParallel.RING,
        description="ring, ulysses, hybrid or allgather; used when cp > 1",
    )
    cp_ulysses: Count | None = Field(
        default=None,
        description="hybrid only: ranks that exchange heads for tokens; rings join cp / cp_ulysses",
    )
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
    fsdp: bool = Field(
        default=False,
        description="shard weights, gradients and optimizer state over the data-parallel ranks; "
        "each layer is gathered for its forward and its backward (FSDP2, ZeRO stage 3)",
    )
    fsdp_reshard_after_forward: bool = Field(
        default=True,
        description="fsdp only: let go of a layer's weights after its forward; false keeps them "
        "until its backward: a gather less, the memory of all layers more (ZeRO stage 2)",
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.cp_kind is ContextParallel.HYBRID) != (self.cp_ulysses is not None):
            raise ValueError(
                f"found cp_kind={self.cp_kind}, cp_ulysses={self.cp_ulysses}: hybrid needs "
                "cp_ulysses, and only hybrid has it"
            )
        return self

    @property
    def ulysses_degree(self) -> int:
        """Ranks that exchange heads for tokens; 1 = none."""
        if self.cp_kind is ContextParallel.ULYSSES:
            return self.cp
        return self.cp_ulysses if self.cp > 1 and self.cp_ulysses is not None else 1

    @property
    def ranks_of_model(self) -> int:
        """Ranks that hold and feed one model together; data parallel takes copies of them."""
        return self.ranks_of_layer * self.pp

    @property
    def ranks_of_layer(self) -> int:
        """Ranks that talk to each other inside a layer."""
        return self.tp * self.cp
