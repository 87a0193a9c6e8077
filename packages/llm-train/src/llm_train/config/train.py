"""Steps, batches and precision."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from llm_train.config.section import Count, Positive, Section


class Precision(StrEnum):
    """The type of the weights in forward and backward; the optimizer keeps fp32 masters."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class OnNan(StrEnum):
    """What a step does whose loss or gradient is not finite; it never changes the weights."""

    STOP = "stop"
    SKIP = "skip"


class BatchRamp(Section):
    """A global batch that grows from `start` to train.global_batch_size over the first samples."""

    start: Count = Field(description="sequences of the first steps")
    increment: Count = Field(description="sequences by which it grows at a time")
    samples: Count = Field(description="sequences over which it grows, in equal parts")


class TrainConfig(Section):
    """Steps, batches and what is computed when."""

    max_steps: Count = Field(description="optimizer steps in the whole run")
    seq_length: Count = Field(description="tokens per sequence")
    global_batch_size: Count = Field(description="sequences per optimizer step, over all ranks")
    batch_ramp: BatchRamp | None = Field(
        default=None, description="grow the global batch over the first samples; null = off"
    )
    micro_batch_size: Count = Field(default=1, description="sequences per forward on one rank")
    seed: int = Field(default=1234, ge=0, description="of initial weights, sample order, dropout")
    precision: Precision = Field(default=Precision.FP32, description="fp32, bf16 or fp16")
    attention_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of attention weights that a step drops"
    )
    hidden_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of what embeddings and blocks put out that a step drops",
    )
    loss_chunk: Count | None = Field(
        default=None,
        description="tokens of a micro-batch whose logits exist at a time, in backward made again; "
        "null = all",
    )
    mtp_loss_scale: float = Field(
        default=0.1,
        ge=0,
        description="weight of multi-token prediction: the mean of its layers' losses, in the sum",
    )
    indexer_loss_coeff: float = Field(
        default=0.0,
        ge=0,
        description="weight of the loss that sparse-attention indexers learn from: each layer's "
        "divergence of its indexer from its attention, in the sum; 0 = indexers are frozen",
    )
    eval_every: Count | None = Field(
        default=None, description="steps between evaluations; null = never"
    )
    eval_steps: Count = Field(default=8, description="global batches per evaluation")
    log_every: Count = Field(default=1, description="steps between console lines")
    deterministic: bool = Field(
        default=False,
        description="only operations that give the same bits in every run; slower on a device",
    )
    on_nan: OnNan = Field(
        default=OnNan.STOP,
        description="stop or skip: a step whose loss or gradient norm is NaN or infinite",
    )
    timeout_s: Positive = Field(
        default=600.0, description="seconds after which a rank gives up waiting for another"
    )
