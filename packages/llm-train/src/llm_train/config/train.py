"""Steps, batches and precision."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from llm_train.config.section import Count, Section


class Precision(StrEnum):
    """The type of the weights in forward and backward; the optimizer keeps fp32 masters."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class TrainConfig(Section):
    """Steps, batches and what is computed when."""

    max_steps: Count = Field(description="optimizer steps in the whole run")
    seq_length: Count = Field(description="tokens per sequence")
    global_batch_size: Count = Field(description="sequences per optimizer step, over all ranks")
    micro_batch_size: Count = Field(default=1, description="sequences per forward on one rank")
    seed: int = Field(default=1234, ge=0, description="of initial weights, sample order, dropout")
    precision: Precision = Field(default=Precision.FP32, description="fp32, bf16 or fp16")
    eval_every: Count | None = Field(
        default=None, description="steps between evaluations; null = never"
    )
    eval_steps: Count = Field(default=8, description="global batches per evaluation")
    log_every: Count = Field(default=1, description="steps between console lines")
