"""How samples become sequences and losses when `stage: sft`."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from llm_train.config.section import Count, Positive, Section


class TooLong(StrEnum):
    """What is done with a sample of more than train.seq_length tokens."""

    STOP = "stop"
    DROP = "drop"
    TRUNCATE = "truncate"


class Unlearned(StrEnum):
    """What is done with a sample in which no token is learned."""

    STOP = "stop"
    DROP = "drop"


class LossMean(StrEnum):
    """Over what the loss of a step is the mean."""

    TOKENS = "tokens"
    MICRO_BATCHES = "micro_batches"


class SftConfig(Section):
    """Rows of llm-data's sample datasets as sequences, and what their loss is."""

    too_long: TooLong = Field(
        default=TooLong.STOP,
        description="samples beyond train.seq_length: stop, drop, or truncate (keep their first "
        "train.seq_length tokens); counted",
    )
    unlearned: Unlearned = Field(
        default=Unlearned.STOP,
        description="samples in which no token is learned: stop, or drop; counted",
    )
    loss_mean: LossMean = Field(
        default=LossMean.TOKENS,
        description="tokens = over all learned tokens of the global batch; micro_batches = the "
        "mean of each micro-batch's mean, as MindSpeed-LLM has it: it depends on micro_batch_size",
    )
    shuffle: bool = Field(
        default=True, description="another order of samples in every epoch, by train.seed"
    )
    pad_to: Count = Field(
        default=8, description="padded lengths are multiples of it, up to train.seq_length"
    )
    neftune_alpha: Positive | None = Field(
        default=None,
        description="noise on embeddings in training: uniform within alpha / √(tokens · hidden) "
        "(NEFTune, arXiv 2310.05914); null = none",
    )
