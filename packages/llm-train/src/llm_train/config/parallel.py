"""How the model is split over ranks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llm_train.config.section import Count, Section


class ParallelConfig(Section):
    """How the model is split; data parallel takes the ranks that are left."""

    tp: Count = Field(default=1, description="tensor parallel size, in ranks")
    pp: Count = Field(default=1, description="pipeline stages")
    vpp: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="model chunks per stage (interleaved schedule); null = off"
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
